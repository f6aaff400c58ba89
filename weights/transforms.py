"""What may happen to an array on its way between layouts, each with its inverse; nothing is read before it must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triport.core.errors import UserError
from triport.core.model.position import resample
from triport.core.spec import Pair
from triport.weights.arrays import DTYPES, Lazy

STRIP, PAD = 64, 16  # rows turned at once; columns that are left out of use between two of them


def transpose(array: Lazy) -> Lazy:
    """(out, in) to (in, out) and back: PyTorch's fully connected weights against Paddle's."""
    if len(array.shape) != 2:
        raise UserError(f"a matrix was expected, not an array of shape {array.shape}")
    return Lazy(array.shape[::-1], array.dtype, lambda: _transposed(array.read()))


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """The transpose in C order, by strips that stay in the processor's cache: ten times the speed of one copy.

    A strip is copied first, its rows set apart: rows of a multiple of 4096 bytes would fall on the same cache lines.
    """
    rows, columns = matrix.shape
    transposed = np.empty((columns, rows), matrix.dtype)
    strip = np.empty((STRIP, columns + PAD), matrix.dtype)[:, :columns]
    for start in range(0, rows, STRIP):
        count = min(STRIP, rows - start)
        strip[:count] = matrix[start : start + count]
        transposed[:, start : start + count] = strip[:count].T
    return transposed


def by_head(array: Lazy, heads: int) -> Lazy:
    """Rows that go by q, k, v and in each by head, to rows by head and in each q, k, v (LiBai, weight_convert.py)."""
    return _swapped(array, 3, heads)


def by_role(array: Lazy, heads: int) -> Lazy:
    """The inverse of `by_head`."""
    return _swapped(array, heads, 3)


def _swapped(array: Lazy, outer: int, inner: int) -> Lazy:
    rows = array.shape[0] if array.shape else 0
    if rows == 0 or rows % (outer * inner):
        raise UserError(
            f"{rows} rows of a query-key-value projection do not divide into {outer * inner // 3} heads: "
            "say the right number with --heads"
        )

    def load() -> np.ndarray:
        value = array.read()
        grouped = value.reshape(outer, inner, rows // (outer * inner), *value.shape[1:])
        return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(value.shape)

    return Lazy(array.shape, array.dtype, load)


def join(arrays: Sequence[Lazy]) -> Lazy:
    """The rows of several arrays in one: query, key and value in the fused projection."""
    first = arrays[0]
    if any(a.shape != first.shape or a.dtype != first.dtype for a in arrays) or not first.shape:
        kinds = ", ".join(f"{a.dtype}{a.shape}" for a in arrays)
        raise UserError(f"query, key and value should be alike, but are {kinds}")
    shape = (len(arrays) * first.shape[0], *first.shape[1:])
    return Lazy(shape, first.dtype, lambda: np.concatenate([a.read() for a in arrays]))


def share(array: Lazy, index: int, count: int) -> Lazy:
    """One of `count` equal blocks of rows: the inverse of `join`."""
    rows = array.shape[0] if array.shape else 0
    if rows == 0 or rows % count:
        raise UserError(f"{rows} rows do not divide into {count} equal blocks")
    size = rows // count
    block = slice(index * size, (index + 1) * size)
    return Lazy((size, *array.shape[1:]), array.dtype, lambda: array.read()[block])


def constant(shape: Sequence[int], dtype: str, value: float) -> Lazy:
    """An array of one value."""
    return Lazy(tuple(shape), dtype, lambda: np.full(tuple(shape), value, DTYPES[dtype]))


def resized(array: Lazy, old: Pair, new: Pair) -> Lazy:
    """A position table (1, 1 + old, width) on another grid, bicubic; computed in float64, kept in the table's dtype."""
    shape = (1, 1 + new[0] * new[1], array.shape[-1])
    return Lazy(shape, array.dtype, lambda: np.ascontiguousarray(resample(array.read(), old, new)))


def cast(array: Lazy, dtype: str, name: str = "an array") -> Lazy:
    """Floating values in another floating dtype; integers and truth values stay as they are.

    Reading it is a UserError where a finite value would become infinite.
    """
    if array.dtype == dtype or not floating(array.dtype):
        return array

    def load() -> np.ndarray:
        values = array.read()
        with np.errstate(over="ignore", invalid="ignore"):
            made = values.astype(DTYPES[dtype])
        if np.count_nonzero(np.isfinite(made)) != np.count_nonzero(np.isfinite(values)):
            raise UserError(f"'{name}' holds values too large for {dtype}: choose another with --dtype")
        return made

    return Lazy(array.shape, dtype, load)


def floating(dtype: str) -> bool:
    """Whether a dtype is a real floating one."""
    return dtype.startswith(("float", "bfloat"))
