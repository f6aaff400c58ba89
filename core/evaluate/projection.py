"""Features in the plane: their first two principal components."""

from __future__ import annotations

from typing import Any

import numpy as np

from triport.core.model.spread import normalise

MOST = 500  # points of a drawing
CLASSES = 10  # that a drawing tells apart


def plane(features: np.ndarray, labels: np.ndarray, classes: list[str], epoch: int) -> dict[str, Any]:
    """Return features (n, width), labels (n,) -1 where unknown, as projection.json holds them.

    points (k, 2) are the first two principal components of the rows scaled to length 1, `share` of their variance;
    of many classes the first ones that are there are shown, of many rows evenly spaced ones.
    """
    shown = np.unique(labels)[:CLASSES]
    rows, labels = features[np.isin(labels, shown)], labels[np.isin(labels, shown)]
    take = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)
    rows, labels = normalise(rows[take]).astype(np.float64), labels[take]
    rows = rows - rows.mean(axis=0)
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    main = vectors[:2].T
    main = main * np.sign(main[np.abs(main).argmax(axis=0), np.arange(main.shape[1])])  # a run's pictures agree
    points = rows @ main
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    total = float((values**2).sum())
    names = [classes[label] if 0 <= label < len(classes) else "held-out images" for label in shown]
    return {
        "epoch": epoch,
        "share": float((values[:2] ** 2).sum()) / total if total > 0 else 0.0,
        "points": np.round(points, 4).tolist(),
        "labels": np.searchsorted(shown, labels).tolist(),
        "classes": names,
        "of_classes": max(len(classes), len(shown)),
    }
