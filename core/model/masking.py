"""MAE's random masking: noise keyed by sample, and what it keeps, restores and hides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from triport.core.rng import generator


class Mask(NamedTuple):
    """Which patches of each image an encoder sees."""

    visible: np.ndarray  # (n, k) int64, the visible patches in the order the encoder sees them
    restore: np.ndarray  # (n, L) int64, place of each patch in [visible, hidden]
    mask: np.ndarray  # (n, L) float32, 1 = hidden


def visible_patches(patches: int, ratio: float) -> int:
    """How many of `patches` stay visible: the product is truncated, not rounded (models_mae.py)."""
    return int(patches * (1 - ratio))


def noise(seed: int, epoch: int, samples: Iterable[int], patches: int) -> np.ndarray:
    """Uniform noise (n, patches) float32 that depends on seed, epoch and sample alone."""
    rows = [generator(seed, "mask", epoch, int(sample)).random(patches, dtype=np.float32) for sample in samples]
    return np.stack(rows) if rows else np.zeros((0, patches), np.float32)


def mask(noise: np.ndarray, ratio: float) -> Mask:
    """Turn noise (n, L) into a Mask: the patches with the smallest noise stay visible (models_mae.py).

    The sort is stable, so equal noise gives the same mask whatever library asks.
    """
    shuffle = np.argsort(noise, axis=1, kind="stable")
    restore = np.argsort(shuffle, axis=1, kind="stable")
    count = visible_patches(noise.shape[1], ratio)
    hidden = np.ones(noise.shape, np.float32)
    hidden[:, :count] = 0
    return Mask(
        visible=shuffle[:, :count].astype(np.int64),
        restore=restore.astype(np.int64),
        mask=np.take_along_axis(hidden, restore, axis=1),
    )
