"""Two arrays whose shapes differ on purpose, brought to the part that both have; and what tells them apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triport.parity_tests.reference.layers import Array

Pair = tuple[NDArray, NDArray]


def align(a: NDArray, b: NDArray) -> Pair | None:
    """The part of two arrays that can be compared, or None.

    A block may compute the class token alone: 1 of N tokens, or (n, width), is token 0. A decoder's last layers may
    leave the class token out: N of N + 1 tokens are the last ones. A map may be (n, c, h, w) or (n, h, w, c), a patch
    embedding (n, c, h, w) or (n, patches, c).
    """
    if a.shape == b.shape:
        return a, b
    transposed = _longer(b, a)
    if transposed is not None:
        return transposed[1], transposed[0]
    return _longer(a, b)


def _longer(a: NDArray, b: NDArray) -> Pair | None:
    """As `align`, where `a` is the array that has more."""
    n, width = a.shape[0] if a.ndim else 0, a.shape[-1] if a.ndim else 0
    if a.ndim == 3 and b.shape in ((n, 1, width), (n, width)):
        return a[:, 0].reshape(b.shape), b
    if a.ndim == 3 and b.shape == (n, a.shape[1] - 1, width):
        return a[:, 1:], b
    if a.ndim == 4 and b.shape == (n, a.shape[2], a.shape[3], a.shape[1]):
        return a.transpose(0, 2, 3, 1), b
    if a.ndim == 4 and b.shape == (n, a.shape[2] * a.shape[3], a.shape[1]):
        return a.reshape(n, a.shape[1], -1).transpose(0, 2, 1), b
    return None


def relation(a: NDArray, b: NDArray) -> str:
    """In words how b comes from a, where that is simple: a multiple, a transpose, other rows or columns; else ""."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.array_equal(a.T, b):
        return "the second is the first transposed"
    if a.ndim > 1 and a.shape == b.shape and np.allclose(np.sort(a.ravel()), np.sort(b.ravel()), rtol=0, atol=1e-6):
        return "both hold the same numbers in another order"
    factor = multiple(a, b)
    return f"the second is {factor:.5g} times the first" if factor is not None else ""


def multiple(a: Array, b: Array, tolerance: float = 1e-3) -> float | None:
    """c where b = c a up to `tolerance` of b's length and c is not 1; else None."""
    a, b = np.ravel(a), np.ravel(b)
    square, length = float(a @ a), float(np.sqrt(b @ b))
    if square == 0 or length == 0:
        return None
    factor = float(a @ b) / square
    close = float(np.sqrt(((b - factor * a) ** 2).sum())) < tolerance * length
    return factor if close and abs(factor - 1) > 2 * tolerance else None
