"""The harmless stand-ins for the classes and functions that checkpoints of all frameworks name in their pickles.

A stand-in takes the same arguments and gives a plain value, a Lazy array or an inert record of attributes. Nothing
of the named module is imported. What is in no table of this file, torch_file, paddle_file or oneflow_file becomes an
Inert, of which only the name is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from triport.weights.arrays import Inert, Lazy, checked_shape, dtype_name
from triport.weights.pickle.machine import Fields, Global, Span, put
from triport.weights.source import Damaged, Source

CODE = re.compile(r"[<>|=]?[A-Za-z][0-9]{0,6}(\[[a-z]{1,2}\])?", re.ASCII)  # of any dtype without fields
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"}

# Classes of which an instance may stand in a training checkpoint; only name and attributes are kept.
INERT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "passl.core.grad_clip.ClipGradByGlobalNorm",
    "passl.scheduler.lr_callable.CosineWithFixLR",
    "passl.scheduler.lr_scheduler.MultiStepDecay",
    "passl.scheduler.lr_scheduler.Poly",
    "passl.scheduler.lr_scheduler.Step",
    "passl.scheduler.lr_scheduler.TimmCosine",
    "passl.scheduler.lr_scheduler.ViTLRScheduler",
    "paddle.optimizer.lr.MultiStepDecay",
)
NAMED = tuple(f"mmengine.logging.history_buffer.HistoryBuffer.{name}" for name in ("min", "max", "mean", "current"))


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


class Array(Pending):
    """numpy.ndarray: made empty, then told version, shape, dtype, Fortran order and bytes."""

    def __init__(self, source: Source) -> None:
        self.source, self.lazy = source, None  # type: tuple[Source, Lazy | Inert | None]

    def build(self, state: object) -> None:
        """Describe the array; its bytes stay where they are."""
        if not isinstance(state, tuple) or len(state) != 5 or self.lazy is not None:
            raise Damaged("holds a numpy array in an unknown form")
        _, shape, dtype, fortran, data = state
        self.lazy = described(self.source, shape, dtype, fortran is True, data)

    def finish(self) -> Lazy | Inert:
        """The array, once described."""
        if self.lazy is None:
            raise Damaged("holds a numpy array that is never described")
        return self.lazy


def described(source: Source, shape: object, dtype: object, fortran: bool, data: object) -> Lazy | Inert:
    """Return the array that `data`, a Span or short latin-1 text, holds; an inert record for one of no numbers."""
    if not isinstance(dtype, DType):
        raise Damaged("holds a numpy array without a dtype")
    if dtype.other is not None:
        return Inert(f"numpy.ndarray of {dtype.other.name.rpartition(' ')[2]}")
    kind = dtype.dtype
    sizes = checked_shape(shape, kind.itemsize)
    size = math.prod(sizes)
    content: Span | bytes = data if isinstance(data, Span) else data.encode("latin-1") if isinstance(data, str) else b""
    if isinstance(data, bytes):
        content = data
    length = content.length if isinstance(content, Span) else len(content)
    wide = 2 if isinstance(content, Span) and content.kind == "latin1" else 1
    if not size * kind.itemsize <= length <= size * kind.itemsize * wide:
        raise Damaged(f"holds an array of shape {sizes} and dtype {kind.name} in {length} bytes")

    def load() -> np.ndarray:
        raw = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else span_array(source, content)
        if raw.nbytes != size * kind.itemsize:
            raise Damaged(f"holds an array of shape {sizes} and dtype {kind.name} in {raw.nbytes} bytes")
        return ready(raw, kind).reshape(sizes, order="F" if fortran else "C")

    return Lazy(sizes, dtype_name(kind), lambda: np.asarray(load(), order="C"), where=source.path)


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


def common(source: Source) -> dict[str, Callable[..., Any]]:
    """Return the table of stand-ins that a pickle of any framework may use."""

    def scalar(dtype: object, data: object) -> object:
        found = described(source, (), dtype, False, data)
        if isinstance(found, Inert):
            return found
        raw = found.read()
        return Inert(f"numpy.{raw.dtype.name}") if raw.dtype.kind == "c" else raw.item()

    def frombuffer(data: object, dtype: object, shape: object, order: object) -> Lazy | Inert:
        return described(source, shape, dtype, order == "F" if isinstance(order, str) else False, data)

    def reconstruct(kind: object, shape: object, code: object) -> Array:
        if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
            raise Damaged("holds an array of a class other than numpy.ndarray")
        return Array(source)

    table: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _dict,
        "collections.defaultdict": lambda factory=None, pairs=(): _dict(pairs),
        "collections.Counter": _dict,
        "collections.deque": lambda items=(), length=None: _list(items),
        "argparse.Namespace": Fields,
        "types.SimpleNamespace": Fields,
        "_codecs.encode": _encode,
        "numpy.ndarray": _not_called,
        "numpy.dtype": DType,
    }
    for module in ("numpy.core", "numpy._core"):
        table[f"{module}.multiarray._reconstruct"] = reconstruct
        table[f"{module}.multiarray.scalar"] = scalar
        table[f"{module}.numeric._frombuffer"] = frombuffer
    for module in ("builtins", "__builtin__"):
        table |= {f"{module}.{name}": _not_called for name in ("object", "dict", "list", "int", "float", "str", "bool")}
        table |= {f"{module}.set": _list, f"{module}.frozenset": _list, f"{module}.bytes": lambda: b""}
        table |= {f"{module}.tuple": lambda items=(): tuple(_list(items)), f"{module}.getattr": _attribute}
    for module in ("copyreg", "copy_reg"):
        table[f"{module}._reconstructor"] = _bare
    for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        table[f"pathlib.{name}"] = table[f"pathlib._local.{name}"] = _path
    return table | {name: _inert(name) for name in INERT} | dict.fromkeys(NAMED, _not_called)


def _inert(name: str) -> Callable[[], Fields]:
    """An object of a class that is not there: its name and what attributes the pickle sets."""
    return lambda: Fields(__class__=name)


def _bare(kind: object, base: object, state: object = None) -> object:
    """copyreg._reconstructor of a plain class (pickles of protocol 0 and 1): an object without attributes yet."""
    if not isinstance(kind, Global) or not (kind.name == "argparse.Namespace" or kind.name in INERT):
        return Inert(kind.name if isinstance(kind, Global) else "copyreg._reconstructor")
    return kind.call()


def _attribute(owner: object = None, name: object = None, *_: object) -> str | Inert:
    """getattr, never done: mmengine's logs name methods of their own class; the dotted name is all that is kept."""
    if not isinstance(owner, Global) or owner.name not in INERT or not isinstance(name, str):
        return Inert("builtins.getattr")
    return f"{owner.name}.{name[:80]}"


def _not_called(*_: object) -> object:
    """A class that a pickle may name but not make."""
    raise Damaged("makes an object in a way no checkpoint needs")


def _dict(pairs: object = ()) -> dict[Any, Any]:
    """A dict from pairs, as OrderedDict took them in Python 2."""
    made: dict[Any, Any] = {}
    for pair in pairs.items() if isinstance(pairs, dict) else _list(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Damaged("makes a dict of something else than pairs")
        put(made, pair[0], pair[1])
    return made


def _list(items: object = ()) -> list[Any]:
    """A list from a list or tuple."""
    if not isinstance(items, (list, tuple)):
        raise Damaged("makes a list of something else than a list")
    return list(items)


def _path(*parts: object) -> str:
    """A pathlib path as text."""
    if not all(isinstance(part, str) for part in parts):
        raise Damaged("holds a path of something else than text")
    return "/".join(str(part) for part in parts).replace("//", "/")


def _encode(text: object, coding: object = "utf-8") -> object:
    """codecs.encode(text, "latin1"): how protocol 2 writes bytes."""
    if coding not in ("latin1", "latin-1"):
        raise Damaged("encodes text in a way no checkpoint needs")
    if isinstance(text, Span) and text.kind == "text":
        return Span("latin1", text.offset, text.length)
    if not isinstance(text, str):
        raise Damaged("encodes something that is not text")
    return text.encode("latin-1")
