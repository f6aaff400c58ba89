"""Paddle files (.pd .pdparams .pdopt) read and written without Paddle: one pickle, in one of two layouts.

Layout A, a state dict: names to ndarrays, and a table from names to the tensors' own names. Layout B, anything
nested: each tensor is a call of tuple((own name, ndarray)). bfloat16 is stored as uint16 in both, and every uint16
array is taken for bfloat16, as Paddle itself does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.errors import UserError
from triport.core.pickle.numpy_arrays import Array, Pending, checked_shape
from triport.core.pickle.reader import load
from triport.core.source import Damaged, Source
from triport.weights.arrays import DTYPES, File, Inert, Lazy, Tree, leaves, mapped, viewed
from triport.weights.pickle.constructors import common
from triport.weights.pickle.plain import plain
from triport.weights.pickle.writer import PickleWriter, ndarray, scalar
from triport.weights.writing import Digest, hashed, whole_stream

TABLE = "StructuredToParameterName@@"
CHUNKS = "UnpackBigParamInfor@@"  # spelt so by Paddle
CODES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2", "int64": "i8", "int32": "i4", "int16": "i2",
    "int8": "i1", "uint8": "u1", "bool": "b1", "complex64": "c8", "complex128": "c16",
}  # fmt: skip


class Named(Pending):
    """A tensor of layout B: its own name and its array."""

    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array = name, array

    def build(self, state: object) -> None:
        """A tuple has no state."""
        raise Damaged("sets the state of a tensor")

    def finish(self) -> Lazy | Inert:
        """The array under its name."""
        array = self.array.finish()
        return named(array, self.name) if isinstance(array, Lazy) else array


def named(array: Lazy, name: str) -> Lazy:
    """Return the array with the tensor's own name."""
    return replace(array, name=name)


def read(path: Path) -> File:
    """Read a file of either layout; Damaged where it is neither or broken."""
    source = Source(path)
    table = common(source)
    table["builtins.tuple"] = table["__builtin__.tuple"] = _tuple(table["builtins.tuple"])
    with source.scattered():  # between the arrays
        value, end = load(source, table)
    if end != source.size:
        raise Damaged(f"has {source.size - end} bytes after the end of its pickle")
    tree = plain(value, source)
    note = "Paddle, nested (layout B)"
    if isinstance(tree, dict) and isinstance(tree.get(TABLE), dict):
        note, names = "Paddle, state dict (layout A)", tree.pop(TABLE)
        if CHUNKS in tree:
            _join(tree, source)
        for key, own in names.items():
            if isinstance(tree.get(key), Lazy) and isinstance(own, str):
                tree[key] = named(tree[key], own)
    return File("paddle", source.path, mapped(tree, _bfloat16), note=note)


def _tuple(other: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """builtins.tuple: a named tensor where it is called on (text, array), a tuple otherwise."""

    def made(items: Any = ()) -> Any:
        if isinstance(items, tuple) and len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], Array):
            return Named(*items)
        return other(items)

    return made


def _bfloat16(array: Lazy) -> Lazy:
    """uint16 stands for bfloat16."""
    return viewed(array, "bfloat16") if array.dtype == "uint16" else array


def _join(tree: dict[Any, Any], source: Source) -> None:
    """Put arrays of more than 2**30 bytes together, which protocols 2 and 3 cut in pieces."""
    chunks = tree.pop(CHUNKS)
    if not isinstance(chunks, dict):
        raise Damaged("lists the pieces of its large arrays in an unknown form")
    for key, entry in chunks.items():
        names = entry.get("slices") if isinstance(entry, dict) else None
        if (
            not isinstance(names, (list, tuple))
            or not names
            or key in tree
            or not all(isinstance(n, str) for n in names)
        ):
            raise Damaged(f"lists the pieces of {str(key)[:80]!r} in an unknown form")
        pieces = [tree.pop(name, None) for name in names]
        if not all(isinstance(piece, Lazy) for piece in pieces) or len({piece.dtype for piece in pieces}) != 1:
            raise Damaged(f"lacks a piece of {str(key)[:80]!r}")
        tree[key] = _joined(pieces, entry.get("OriginShape"), source)


def _joined(pieces: list[Lazy], sizes: object, source: Source) -> Lazy:
    """Return the array of the pieces, read one after the other."""
    dtype = DTYPES[pieces[0].dtype]
    if sizes == []:
        sizes = ()
    joined = Lazy(checked_shape(sizes, dtype.itemsize), pieces[0].dtype, lambda: values(), where=source.path)
    if joined.size != sum(piece.size for piece in pieces):
        raise Damaged(f"has pieces that do not make an array of shape {joined.shape}")

    def values() -> np.ndarray:
        flat, begin = np.empty(joined.size, dtype), 0
        for piece in pieces:
            flat[begin : begin + piece.size] = piece.read().reshape(-1)
            begin += piece.size
        return flat.reshape(joined.shape)

    return joined


def write(path: Path, tree: Tree, force: bool = False, digest: Digest | None = None) -> None:
    """Write in the layout `paddle.save` would choose; one tensor is in memory at a time. digest: of what is written."""
    for array in leaves(tree):
        if array.dtype not in CODES:
            raise UserError(f"{path}: Paddle files hold no arrays of {array.dtype}; convert them with --dtype first")
    state_dict = isinstance(tree, dict) and all(
        isinstance(key, str) and (isinstance(value, Lazy) or (isinstance(value, dict) and not any(leaves(value))))
        for key, value in tree.items()
    )
    if state_dict:
        own = {key: value.name or key for key, value in tree.items() if isinstance(value, Lazy)}
        tree = {**tree, TABLE: own}
    count = 0

    def tensor(array: Lazy) -> None:
        nonlocal count
        count += 1
        if state_dict:
            ndarray(put, array.read(), CODES[array.dtype])
            return
        put(b"cbuiltins\ntuple\n" + scalar(array.name or f"tensor_{count}"))
        ndarray(put, array.read(), CODES[array.dtype])
        put(b"\x86\x85R")

    with whole_stream(path, force) as file, hashed(file.write, digest) as put:
        writer = PickleWriter(put, tensor, protocol=4)
        writer.value(tree)
        writer.stop()
