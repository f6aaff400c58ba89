"""Reads numeric arrays from MATLAB 5 files, the format of Flowers-102's labels.

Not by scipy: its reader is compiled code that a damaged file ends by SIGSEGV. The format: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from triport.core.errors import UserError

_LIMIT = 1 << 18  # bytes of a file; Flowers' have 15 thousand
_UNPACKED = 1 << 26  # bytes of a variable
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_MATRIX, _COMPRESSED, _COMPLEX = 14, 15, 1 << 11


class _Damaged(Exception):
    """What is wrong with a file."""


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a MATLAB file (versions 5 to 7) by name; text, cells, structs, complex are left out.

    UserError where the file is something else or damaged, and where it is too large.
    """
    if not path.is_file():
        raise UserError(f"MATLAB file '{path}' is missing")
    if path.stat().st_size > _LIMIT:
        raise UserError(
            f"'{path}' has more than {_LIMIT} bytes, too many for labels; fetch the original .mat file again"
        )
    try:
        return _variables(path.read_bytes())
    except _Damaged as reason:
        raise UserError(
            f"'{path}' is not a whole MATLAB 5 file ({reason}); fetch the original .mat file again"
        ) from None


def _variables(data: bytes) -> dict[str, np.ndarray]:
    """All numeric variables of a file."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _Damaged("its header is another")
    if np.frombuffer(data, f"{order}u2", 1, 124)[0] != 0x100:
        raise _Damaged("it is of another version: MATLAB writes this one by save -v7")
    found: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for kind, body in _elements(data[128:], order):
        if kind == _COMPRESSED:
            inner = list(_elements(_unpacked(body), order))
            if len(inner) != 1:
                raise _Damaged(f"{len(inner)} variables are compressed as one")
            kind, body = inner[0]
        if kind != _MATRIX:
            raise _Damaged(f"a variable is of kind {kind}")
        name, array = _matrix(body, order)
        if name in seen:
            raise _Damaged(f"variable '{name}' is there twice")
        seen.add(name)
        if array is not None:
            found[name] = array
    return found


def _unpacked(body: bytes) -> bytes:
    """A variable that was compressed."""
    unpacker = zlib.decompressobj()
    try:
        whole = unpacker.decompress(body, _UNPACKED)
    except zlib.error as error:
        raise _Damaged(str(error)) from None
    if not unpacker.eof:
        raise _Damaged("a variable ends too early, or is too large")
    return whole


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The kind and bytes of every element of a stretch."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise _Damaged("it ends too early")
        kind, size = (int(number) for number in np.frombuffer(data, f"{order}u4", 2, at))
        if kind >> 16:  # a small element: its bytes stand where the size would
            kind, size, at = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise _Damaged("a small element has more than 4 bytes")
            step = 4
        else:
            at += 8
            step = size if kind == _COMPRESSED else -(-size // 8) * 8
        if size > len(data) - at:
            raise _Damaged("it ends too early")
        yield kind, data[at : at + size]
        at += step


def _matrix(body: bytes, order: str) -> tuple[str, np.ndarray | None]:
    """A variable's name and values; None where they are not real numbers."""
    parts = list(_elements(body, order))
    if len(parts) < 3 or parts[0][0] != 6 or len(parts[0][1]) != 8:
        raise _Damaged("a variable has no flags")
    flags = int(np.frombuffer(parts[0][1], f"{order}u4", 1)[0])
    name, wanted = parts[2][1].decode("latin-1"), _CLASSES.get(flags & 0xFF)
    if wanted is None or flags & _COMPLEX:
        return name, None
    if [parts[1][0], parts[2][0]] != [5, 1] or len(parts[1][1]) % 4:
        raise _Damaged("a variable has no sizes and name")
    shape = [int(size) for size in np.frombuffer(parts[1][1], f"{order}i4")]
    if len(parts) != 4 or parts[3][0] not in _STORED:
        raise _Damaged(f"variable '{name}' has no values")
    stored = np.dtype(order + _STORED[parts[3][0]])
    if min(shape, default=-1) < 0 or len(shape) > 32 or math.prod(shape) * stored.itemsize != len(parts[3][1]):
        raise _Damaged(f"variable '{name}' is not of the size {' x '.join(map(str, shape))}")
    if stored.kind == "f" and wanted[0] != "f":
        raise _Damaged(f"variable '{name}' of whole numbers has others")
    values = np.frombuffer(parts[3][1], stored).reshape(shape, order="F")
    with np.errstate(over="ignore"):
        array = values.astype(wanted)
        same = np.array_equal(array.astype(stored), values, equal_nan=stored.kind == "f")
    if not same:
        raise _Damaged(f"variable '{name}' has numbers that do not fit its own class")
    return name, array
