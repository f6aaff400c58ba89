"""The arrays in a pickle, described but not read: stand-ins for what numpy names there.

Nothing of numpy's own unpickling code sees what the file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from triport.core.pickle.machine import Global, Inert, Span
from triport.core.source import Damaged, Source, Stretch

CODE = re.compile(r"[<>|=]?[A-Za-z][0-9]{0,6}(\[[a-z]{1,2}\])?", re.ASCII)  # of any dtype without fields
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"}

MAX_AXES = 32  # numpy 1.x allows no more


class Pending:
    """A value whose pickle first makes it and then, in a BUILD, says what it is."""

    def build(self, state: object) -> None:
        """Take what the pickle says."""
        raise NotImplementedError

    def finish(self) -> object:
        """Return the value."""
        raise NotImplementedError


class DType(Pending):
    """numpy.dtype: a code, and a byte order that comes with the state. Arrays of anything but numbers are inert."""

    other: Inert | None = None

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or code.lstrip("<>|=") not in NUMBERS:
            if not isinstance(code, str) or not CODE.fullmatch(code):
                raise Damaged("holds a numpy dtype of no known kind")
            self.other = Inert(f"numpy.dtype of {code}")
            return
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        """Take the byte order from (3, '<', None, ...)."""
        if self.other is not None:
            return
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise Damaged("holds a numpy dtype without a byte order")
        self.dtype = self.dtype.newbyteorder(order)

    def finish(self) -> object:
        """A dtype as a value is its name."""
        return self.other or self.dtype.name


@dataclass(frozen=True)
class Values:
    """An array that a pickle describes: its shape, its dtype, and its values once `load` is called.

    What `load` gives has C order and native byte order; it is a read-only view of the file where the bytes stand so,
    and `stretch` says where they begin there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], np.ndarray]
    stretch: Stretch | None = None


class Array(Pending):
    """numpy.ndarray: made empty, then told version, shape, dtype, Fortran order and bytes."""

    def __init__(self, source: Source, make: Callable[[Values], Any]) -> None:
        self.source, self.make = source, make
        self.made: Any = None

    def build(self, state: object) -> None:
        """Describe the array; its bytes stay where they are."""
        if not isinstance(state, tuple) or len(state) != 5 or self.made is not None:
            raise Damaged("holds a numpy array in an unknown form")
        _, shape, dtype, fortran, data = state
        found = described(self.source, shape, dtype, fortran is True, data)
        self.made = found if isinstance(found, Inert) else self.make(found)

    def finish(self) -> Any:
        """What `make` gave of the array once it was described; an inert record for one of no numbers."""
        if self.made is None:
            raise Damaged("holds a numpy array that is never described")
        return self.made


def described(source: Source, shape: object, dtype: object, fortran: bool, data: object) -> Values | Inert:
    """Return the array that `data`, a Span or short latin-1 text, holds; an inert record for one of no numbers."""
    if not isinstance(dtype, DType):
        raise Damaged("holds a numpy array without a dtype")
    if dtype.other is not None:
        return Inert(f"numpy.ndarray of {dtype.other.name.rpartition(' ')[2]}")
    kind = dtype.dtype
    sizes = checked_shape(shape, kind.itemsize)
    size = math.prod(sizes)
    stored: Span | bytes = data if isinstance(data, Span) else data.encode("latin-1") if isinstance(data, str) else b""
    if isinstance(data, bytes):
        stored = data
    length = stored.length if isinstance(stored, Span) else len(stored)
    wide = 2 if isinstance(stored, Span) and stored.kind == "latin1" else 1
    if not size * kind.itemsize <= length <= size * kind.itemsize * wide:
        raise Damaged(f"holds an array of shape {sizes} and dtype {kind.name} in {length} bytes")

    def load() -> np.ndarray:
        raw = np.frombuffer(stored, np.uint8) if isinstance(stored, bytes) else span_array(source, stored)
        if raw.nbytes != size * kind.itemsize:
            raise Damaged(f"holds an array of shape {sizes} and dtype {kind.name} in {raw.nbytes} bytes")
        return ready(raw, kind).reshape(sizes, order="F" if fortran else "C")

    plain = isinstance(stored, Span) and wide == 1 and kind.isnative and not fortran
    stretch = source.stretch(stored.offset) if isinstance(stored, Span) and plain else None
    return Values(sizes, kind, lambda: np.asarray(load(), order="C"), stretch)


def ready(raw: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return bytes as an array of `dtype`, native and aligned; copied only where they are not so already."""
    if raw.ctypes.data % dtype.alignment:
        raw = raw.copy()
    array = raw.view(dtype)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def span_array(source: Source, span: Span) -> np.ndarray:
    """Return the bytes a Span holds as uint8."""
    if span.kind != "latin1":
        return source.array(span.offset, span.length)
    try:
        text = str(source.array(span.offset, span.length).data, "utf-8")
        return np.frombuffer(text.encode("latin-1"), np.uint8)
    except UnicodeError:
        raise Damaged("holds the bytes of an array in a text that is broken") from None


def checked_shape(shape: object, itemsize: int) -> tuple[int, ...]:
    """Return `shape` as a tuple of sizes whose array can exist at all; Damaged otherwise."""
    sizes = checked_numbers(shape)
    if math.prod(n for n in sizes if n) * itemsize >= 2**62:
        raise Damaged(f"an array of shape {sizes} cannot exist")
    return sizes


def checked_numbers(numbers: object) -> tuple[int, ...]:
    """Return sizes, strides or offsets as a tuple of ints from 0 on; Damaged where they are something else."""
    if not isinstance(numbers, (tuple, list)) or len(numbers) > MAX_AXES:
        raise Damaged(f"an array's shape is not a tuple of at most {MAX_AXES} numbers")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise Damaged("an array's shape holds something else than sizes")
    return tuple(numbers)


def array_table(source: Source, make: Callable[[Values], Any]) -> dict[str, Callable[..., Any]]:
    """Return the stand-ins that every pickle of arrays needs; `make` gives the reader's own kind of array."""

    def reconstruct(kind: object, shape: object, code: object) -> Array:
        if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
            raise Damaged("holds an array of a class other than numpy.ndarray")
        return Array(source, make)

    table: dict[str, Callable[..., Any]] = {
        "_codecs.encode": encode,
        "numpy.ndarray": not_called,
        "numpy.dtype": DType,
    }
    return table | {f"{module}.multiarray._reconstruct": reconstruct for module in ("numpy.core", "numpy._core")}


def not_called(*_: object) -> object:
    """A class that a pickle may name but not make."""
    raise Damaged("makes an object in a way no checkpoint needs")


def encode(text: object, coding: object = "utf-8") -> bytes | Span:
    """codecs.encode(text, "latin1"): how protocol 2 writes bytes."""
    if coding not in ("latin1", "latin-1"):
        raise Damaged("encodes text in a way no checkpoint needs")
    if isinstance(text, Span) and text.kind == "text":
        return Span("latin1", text.offset, text.length)
    if not isinstance(text, str):
        raise Damaged("encodes something that is not text")
    return text.encode("latin-1")
