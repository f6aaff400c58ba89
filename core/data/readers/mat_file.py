"""Reads numeric arrays from MATLAB 5 files, the format of Flowers-102's labels, without scipy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from triport.core.errors import UserError

_COMPRESSED, _MATRIX = 15, 14
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_LIMIT = 1 << 28  # bytes of one unpacked variable


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a MATLAB 5 file by name; cells, structs, text and complex numbers are passed over.

    Format: "MAT-File Format", MathWorks, chapter 1 (level 5). UserError where the file is something else.
    """
    data = path.read_bytes()
    mark = data[126:128]
    if len(data) < 128 or mark not in (b"IM", b"MI"):
        raise UserError(f"'{path}' is not a MATLAB 5 file; fetch the original .mat file again")
    order = "<" if mark == b"IM" else ">"
    arrays: dict[str, np.ndarray] = {}
    try:
        for kind, body in _elements(data[128:], order, padded=False):
            if kind == _COMPRESSED:
                kind, body = next(_elements(_unpack(body), order))
            if kind == _MATRIX and (named := _matrix(body, order)):
                arrays[named[0]] = named[1]
    except (struct.error, zlib.error, ValueError, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is damaged ({error}); fetch the original .mat file again") from None
    return arrays


def _unpack(body: bytes) -> bytes:
    opened = zlib.decompressobj()
    data = opened.decompress(body, _LIMIT)
    if opened.unconsumed_tail:
        raise ValueError("a variable is too large")
    return data


def _elements(data: bytes, order: str, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield (type, bytes) of each element; inside a matrix they are padded to 8 bytes."""
    at = 0
    while at + 8 <= len(data):
        (word,) = struct.unpack_from(order + "I", data, at)
        if word >> 16:  # the small form: type, size and up to four bytes in one
            kind, size, start = word & 0xFFFF, word >> 16, at + 4
            at += 8
        else:
            (size,) = struct.unpack_from(order + "I", data, at + 4)
            kind, start = word, at + 8
            at = start + (-(-size // 8) * 8 if padded else size)
        if start + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]


def _matrix(body: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Return (name, array) of a matrix, or None where it is not numeric."""
    parts = _elements(body, order)
    (_, flags), (_, dims), (_, name) = next(parts), next(parts), next(parts)
    (word,) = struct.unpack_from(order + "I", flags)
    if not 6 <= word & 0xFF <= 15 or word & 0x800:  # mxDOUBLE_CLASS ... mxUINT64_CLASS; not complex
        return None
    kind, numbers = next(parts)
    shape = np.frombuffer(dims, order + "i4")
    return name.decode("ascii"), np.frombuffer(numbers, order + _NUMBERS[kind]).reshape(shape, order="F")
