"""Images as rows of patches and back, and a patch's own mean and deviation, in the order of MAE's decoder."""

from __future__ import annotations

import numpy as np

from triport.core.spec import Pair

EPS = 1e-6  # added to a patch's variance where targets are normalised (models_mae.py)


def patchify(images: np.ndarray, patch: Pair) -> np.ndarray:
    """Images (n, channels, height, width) -> (n, patches, rows * columns * channels), the decoder's order of pixels."""
    n, channels, height, width = images.shape
    rows = images.reshape(n, channels, height // patch[0], patch[0], width // patch[1], patch[1])
    return rows.transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, patch[0] * patch[1] * channels)


def unpatchify(rows: np.ndarray, patch: Pair, sides: Pair, channels: int) -> np.ndarray:
    """The inverse of `patchify`; sides: rows and columns of patches."""
    blocks = rows.reshape(len(rows), *sides, *patch, channels).transpose(0, 5, 1, 3, 2, 4)
    return blocks.reshape(len(rows), channels, sides[0] * patch[0], sides[1] * patch[1])


def statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (n, patches, 1) of each patch (n, patches, pixels): unbiased variance plus EPS."""
    return rows.mean(axis=2, keepdims=True), np.sqrt(rows.var(axis=2, ddof=1, keepdims=True) + EPS)
