"""Reads the pickles that CIFAR comes in without running any code from them.

A pickle may name any function and have it called. Here the names a numpy array needs are answered by
stand-ins that only collect what the file says; every other name is refused. Not even numpy's own
unpickling code sees the file's bytes.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np

from triport.core.errors import UserError


class _Type:
    """Stands for numpy.dtype: keeps the type's name, such as "u1"."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like; single bytes have none."""


class _Array:
    """Stands for numpy.ndarray: keeps the shape, the type's name and the bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> np.ndarray:
        """Return the array, uint8 only, after checking that the shape and the bytes agree."""
        _, shape, kind, fortran, raw = self.state
        if not isinstance(kind, _Type) or kind.name not in ("u1", "|u1", "uint8"):
            raise ValueError("an array that is not uint8")
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
            raise ValueError("an array whose shape and bytes disagree")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, coding: str = "latin1") -> bytes:
    """Stands for _codecs.encode, with which protocol 2 writes bytes."""
    if not isinstance(text, str) or coding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown coding")
    return text.encode("latin1")


# what the unpickler raises on a damaged or refused file
_DAMAGE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def load(path: Path) -> dict[str, Any]:
    """Return the dictionary in the pickle at `path`, as `loads`."""
    return loads(path.read_bytes(), str(path))


def loads(data: bytes, where: str) -> dict[str, Any]:
    """Return the dictionary in a pickle: plain values and uint8 arrays.

    Keys are text, whether Python 2 or 3 wrote them. UserError where the file asks for anything but
    plain values and arrays (nothing of it has run then), is cut short, or holds no dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise TypeError("it holds no dictionary")
        return {_text(key): item.value() if isinstance(item, _Array) else item for key, item in found.items()}
    except _DAMAGE as error:
        raise UserError(
            f"'{where}' is not a CIFAR file that can be read safely: {error or type(error).__name__}"
        ) from None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(cast(object, value))


def texts(values: Any) -> list[str]:
    """Return a pickled list of names as text."""
    return [_text(value) for value in values]
