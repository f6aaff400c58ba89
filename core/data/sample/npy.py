"""Reads .npy arrays, from bytes or mapped from a file, and never allocates what the file does not hold."""

from __future__ import annotations

import io
import math
import tokenize
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format

from triport.core.errors import UserError

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes; numpy's own limit since 1.24
_DAMAGE = (
    ValueError,
    TypeError,
    SyntaxError,
    KeyError,
    EOFError,
    MemoryError,
    RecursionError,
    OverflowError,
    tokenize.TokenError,
)


def read_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return (shape, whether in Fortran order, dtype) and leave the file at the first value. UserError if damaged."""
    try:
        version = npy_format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        width = 2 if version == (1, 0) else 4
        start = file.tell()
        if int.from_bytes(file.read(width), "little") > MAX_HEADER:
            raise ValueError("a header that long")
        file.seek(start)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = cast(Any, read)(file)
        if dtype.hasobject or dtype.itemsize < 1 or any(size < 0 for size in shape):
            raise ValueError(f"values of type {dtype}")
    except _DAMAGE as error:
        raise UserError(f"{where}: not a .npy file of numbers: {_line(error)}") from None
    return tuple(shape), fortran, dtype


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def from_bytes(data: bytes | memoryview, where: str) -> np.ndarray:
    """Return the array in the bytes of a .npy file, without a copy. UserError where they are not one."""
    file = io.BytesIO(data)
    shape, fortran, dtype = read_header(file, where)
    start, count = file.tell(), math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise UserError(f"{where}: the .npy file is cut short, or longer than its header says")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")


class Mapped:
    """An array in a .npy file, read from the disk as it is asked for; a copy in another process maps it again."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        try:
            with path.open("rb") as file:
                self.shape, self._fortran, self.dtype = read_header(file, f"'{path}'")
                self._start = file.tell()
        except FileNotFoundError:
            raise UserError(f"'{path}' is missing") from None
        if path.stat().st_size - self._start != math.prod(self.shape) * self.dtype.itemsize:
            raise UserError(f"'{path}' is cut short, or longer than its header says; fetch it again")
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        return cast(np.ndarray, self.whole()[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.whole(), dtype)

    def whole(self) -> np.ndarray:
        """Return the mapped array; nothing is read before it is used."""
        if self._map is None:
            order: Any = "F" if self._fortran else "C"
            if math.prod(self.shape):
                self._map = np.memmap(self.path, self.dtype, "r", self._start, self.shape, order)
            else:
                self._map = np.zeros(self.shape, self.dtype)
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}
