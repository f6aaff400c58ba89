"""Position tables: the two fixed 2-D sin-cos ones, and resampling to another grid."""

from __future__ import annotations

from typing import Literal

import numpy as np

from triport.core.errors import UserError
from triport.core.spec import Pair


def table(kind: Literal["moco", "mae"], width: int, grid: Pair) -> np.ndarray:
    """Return the fixed table (1, 1 + rows * columns, width), float32; row 0, of the class token, is zero.

    Patches stand in raster order. Channels are quarters: sine and cosine of one coordinate, then of the other.
    MoCo v3 (vits.py) takes the row first and computes in float32; MAE (util/pos_embed.py) the column, in float64.
    Powers, sines and cosines are taken in float64 and rounded: numpy's versions differ in float32's last bit.
    For grids that are not square each keeps its rule, which the originals' code does only for square ones.
    """
    if width % 4:
        raise UserError(f"a 2-D sin-cos position table needs a width divisible by 4, not {width}")
    dtype = np.float32 if kind == "moco" else np.float64
    quarter = width // 4
    exponents = (np.arange(quarter, dtype=dtype) / dtype(quarter)).astype(np.float64)
    omega = dtype(1) / np.power(10000.0, exponents).astype(dtype)
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    first, second = (rows, columns) if kind == "moco" else (columns, rows)
    halves = []
    for place in (first, second):
        angle = (place.astype(dtype)[:, None] * omega).astype(np.float64)
        halves += [np.sin(angle), np.cos(angle)]
    patches = np.concatenate(halves, axis=1).astype(np.float32)
    return np.concatenate([np.zeros((1, width), np.float32), patches])[None]


def resample(position: np.ndarray, old: Pair, new: Pair) -> np.ndarray:
    """Resample a table (1, 1 + old, width) to (1, 1 + new, width), bicubic as MAE's and DeiT's fine-tuning do.

    The class token's row stays. The kernel is the cubic of Keys with a = -0.75, half-pixel centres, clamped
    borders: torch.nn.functional.interpolate(mode="bicubic", align_corners=False).
    """
    position = np.asarray(position)
    if position.ndim != 3 or position.shape[1] != 1 + old[0] * old[1]:
        raise UserError(f"a position table of shape {position.shape} does not hold a grid of {old[0]} x {old[1]}")
    if tuple(old) == tuple(new):
        return position
    width = position.shape[2]
    patches = position[0, 1:].reshape(old[0], old[1], width).astype(np.float64)
    patches = np.einsum("ij,jkd->ikd", _cubic(old[0], new[0]), patches)
    patches = np.einsum("ij,kjd->kid", _cubic(old[1], new[1]), patches)
    flat = patches.reshape(new[0] * new[1], width).astype(position.dtype)
    return np.concatenate([position[0, :1], flat])[None]


def _cubic(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of bicubic interpolation along one axis."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    base = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(centre - (base + tap))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(base + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
