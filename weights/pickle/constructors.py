"""The harmless stand-ins for the classes and functions that checkpoints of all frameworks name in their pickles.

A stand-in takes the same arguments and gives a plain value, a Lazy array or an inert record of attributes. Nothing
of the named module is imported. What is in no table of this file, torch_file, paddle_file or oneflow_file becomes an
Inert, of which only the name is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from triport.core.pickle.machine import Fields, Global, put
from triport.core.pickle.numpy_arrays import Values, array_table, described, not_called
from triport.core.source import Damaged, Source
from triport.weights.arrays import Inert, Lazy, dtype_name

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


def common(source: Source) -> dict[str, Callable[..., Any]]:
    """Return the table of stand-ins that a pickle of any framework may use."""

    def scalar(dtype: object, data: object) -> object:
        found = described(source, (), dtype, False, data)
        if isinstance(found, Inert):
            return found
        raw = _lazy(source, found).read()
        return Inert(f"numpy.{raw.dtype.name}") if raw.dtype.kind == "c" else raw.item()

    def frombuffer(data: object, dtype: object, shape: object, order: object) -> Lazy | Inert:
        found = described(source, shape, dtype, order == "F" if isinstance(order, str) else False, data)
        return found if isinstance(found, Inert) else _lazy(source, found)

    table: dict[str, Callable[..., Any]] = array_table(source, partial(_lazy, source)) | {
        "collections.OrderedDict": _dict,
        "collections.defaultdict": lambda factory=None, pairs=(): _dict(pairs),
        "collections.Counter": _dict,
        "collections.deque": lambda items=(), length=None: _list(items),
        "argparse.Namespace": Fields,
        "types.SimpleNamespace": Fields,
    }
    for module in ("numpy.core", "numpy._core"):
        table[f"{module}.multiarray.scalar"] = scalar
        table[f"{module}.numeric._frombuffer"] = frombuffer
    for module in ("builtins", "__builtin__"):
        table |= {f"{module}.{name}": not_called for name in ("object", "dict", "list", "int", "float", "str", "bool")}
        table |= {f"{module}.set": _list, f"{module}.frozenset": _list, f"{module}.bytes": lambda: b""}
        table |= {f"{module}.tuple": lambda items=(): tuple(_list(items)), f"{module}.getattr": _attribute}
    for module in ("copyreg", "copy_reg"):
        table[f"{module}._reconstructor"] = _bare
    for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        table[f"pathlib.{name}"] = table[f"pathlib._local.{name}"] = _path
    return table | {name: _inert(name) for name in INERT} | dict.fromkeys(NAMED, not_called)


def _lazy(source: Source, values: Values) -> Lazy:
    """An array of a pickle as weights know it."""
    return Lazy(values.shape, dtype_name(values.dtype), values.load, where=source.path, stretch=values.stretch)


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
