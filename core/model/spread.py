"""How widely feature vectors point: the one measure of collapse, of training outputs and of held-out features."""

from __future__ import annotations

import numpy as np


def normalise(features: np.ndarray) -> np.ndarray:
    """Return float32 rows of length 1; a row of zeros stays zero."""
    features = np.asarray(features, np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.float32(1e-12))


def spread(features: np.ndarray) -> float:
    """Return how widely directions are spread: 1 is isotropic, 0 is collapsed to one direction, or one row alone.

    The mean over the d dimensions of the standard deviation of the unit rows, times sqrt(d) (Chen and He, arXiv
    2011.10566, section 4.1). The deviation is that of the rows at hand (divided by their number, not by one less), so
    that a single row has one too.
    """
    unit = normalise(features).astype(np.float64)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))
