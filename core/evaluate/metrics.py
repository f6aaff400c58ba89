"""Accuracy in whole numbers: counts that add up over batches and processes without rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def top_k(logits: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)) -> np.ndarray:
    """Count the rows whose label is among the k largest logits.

    logits (n, classes), labels (n,) -> int64 (len(ks),). Ties count for the smaller class index, so a
    constant output scores what always answering class 0 scores. A k above the number of classes counts every row.
    """
    if not len(labels):
        return np.zeros(len(ks), np.int64)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    index = np.arange(logits.shape[1])[None]
    ahead = (logits > own) | ((logits == own) & (index < labels[:, None]))
    # A NaN is never ahead of anything, so a row with one would pass for right.
    rank = np.where(np.isnan(logits).any(axis=1), logits.shape[1], ahead.sum(axis=1))
    return np.array([(rank < k).sum() for k in ks], np.int64)


def confusion(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (classes, classes): how often the true class (row) was answered as the other (column)."""
    answers = logits.argmax(axis=1) if len(labels) else np.zeros(0, np.int64)
    return (
        np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes).astype(np.int64)
    )


def mean_per_class(table: np.ndarray) -> float:
    """Return the mean over the classes that occur of the share answered rightly, from a confusion table."""
    rows = table.sum(axis=1)
    seen = rows > 0
    return float((np.diagonal(table)[seen] / rows[seen]).mean()) if seen.any() else 0.0
