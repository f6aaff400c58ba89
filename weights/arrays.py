"""Arrays that are described but not yet read, the dtypes they may have, and what a read file is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from triport.core.errors import UserError
from triport.core.pickle.machine import Inert
from triport.core.source import Damaged, Stretch, reading

# A nested plain structure: dict, list, tuple, str, int, float, bool, None, and Lazy and Inert leaves.
Tree = Any

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool", "complex64", "complex128",
    )
}  # fmt: skip
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
DTYPES["float8_e4m3fn"] = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES["float8_e5m2"] = np.dtype(ml_dtypes.float8_e5m2)


@dataclass(frozen=True, eq=False)
class Lazy:
    """One array of a file: what it is now, its values when `read` is called.

    shape: of the logical array; dtype: a key of `DTYPES`; load: gives the values; name: the framework's own name for
    the tensor where it has one (Paddle's `linear_0.w_0`); where: the file, for messages; crc: the CRC-32 of the values'
    bytes where the file says it and `load` checks it, else 0; stretch: where the values begin in a file that holds them
    byte by byte as `read` gives them, if it does.
    Two Lazy are equal only if they are the same object, so a tensor that a file names twice can be recognised.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray] = field(repr=False)
    name: str = ""
    where: str | Path = field(default="", repr=False)
    crc: int = field(default=0, repr=False)
    stretch: Stretch | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values once read."""
        return self.size * DTYPES[self.dtype].itemsize

    def read(self) -> np.ndarray:
        """Return the values, C order, native byte order, `shape` and `dtype` as announced.

        Values that stand in the file as they are needed are a read-only view of the mapped file: nothing is copied,
        and their pages are given back when the last view of them is gone. Copy before changing them.
        Raises UserError where the file is damaged or was cut short meanwhile.
        """
        with reading(self.where):
            array = self.load()
            if array.shape != self.shape or array.dtype != DTYPES[self.dtype]:
                raise Damaged(f"an array announced as {self.dtype}{self.shape} is {array.dtype.name}{array.shape}")
            if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
                raise Damaged("an array of bool holds bytes other than 0 and 1")
        return array


MODULE = re.compile(
    r"(torch|oneflow|paddle)\.nn\.|(timm|torchvision|transformers|libai|passl|mmpretrain|mmselfsup|mmcls)\.models?\."
)


def refusal(record: Inert) -> str:
    """Why nothing can be made of an inert record, where something should be."""
    fault = f"asks for {record.name}, which is not among the harmless constructors of weights; nothing of it was run"
    whole = "" if MODULE.match(record.name) else "if it is a whole model, "
    return f"{fault}; {whole}save the model's state_dict() instead"


@dataclass(frozen=True)
class File:
    """A file as read: its form, where it stood, the nested structure with Lazy leaves, text metadata, and a remark.

    form: "torch", "paddle", "oneflow", "safetensors" or "npz"; note: one line on the variant found.
    """

    form: str
    path: Path
    tree: Tree
    metadata: dict[str, str] = field(default_factory=dict)
    note: str = ""


def lazy(array: np.ndarray, name: str = "") -> Lazy:
    """Wrap an array in memory as a Lazy."""
    array = np.asarray(array, order="C")
    return Lazy(array.shape, dtype_name(array.dtype), lambda: array, name)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name in `DTYPES` of a numpy dtype of any byte order; Damaged if arrays of weights never have it."""
    if dtype.name not in DTYPES:
        raise Damaged(f"arrays of dtype {dtype} are not among those that can be read or written")
    return dtype.name


def leaves(tree: Tree) -> Iterator[Lazy]:
    """Yield every Lazy of a tree in order, as often as it is named."""
    if isinstance(tree, Lazy):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from leaves(value)


def inert(tree: Tree, where: str = "") -> Iterator[tuple[str, Inert]]:
    """Yield every Inert of a tree with the keys that lead to it; a list that holds some is named once per class."""
    if isinstance(tree, Inert):
        yield where or "the whole", tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from inert(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, (list, tuple)):
        found = {record: None for value in tree for _, record in inert(value)}
        for record in found:
            yield where or "the whole", record


def raw(array: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array without copying, whatever its dtype."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def mapped(tree: Tree, change: Callable[[Lazy], Lazy]) -> Tree:
    """Return the tree with every Lazy changed; one that occurs twice is changed once and still occurs twice."""
    done: dict[Lazy, Lazy] = {}

    def walk(value: Tree) -> Tree:
        if isinstance(value, Lazy):
            if value not in done:
                done[value] = change(value)
            return done[value]
        if isinstance(value, dict):
            return {key: walk(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(walk(part) for part in value)
        return value

    return walk(tree)


def viewed(array: Lazy, dtype: str) -> Lazy:
    """Return the same bits taken for another dtype of the same size (Paddle and numpy store bfloat16 so)."""
    load = lambda: array.read().view(DTYPES[dtype])  # noqa: E731
    return Lazy(array.shape, dtype, load, array.name, array.where, stretch=array.stretch)


def converted(array: Lazy, dtype: str) -> Lazy:
    """Return the same values in another dtype."""
    return Lazy(array.shape, dtype, lambda: array.read().astype(DTYPES[dtype]), array.name, array.where)


def arrays_only(tree: Tree, form: str) -> dict[str, Lazy]:
    """Return `tree` if it is a flat dict of names and arrays; UserError for forms that can hold nothing else."""
    if not isinstance(tree, dict):
        raise UserError(f"{form} holds named arrays; a {type(tree).__name__} cannot be written to it")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, Lazy):
            raise UserError(
                f"{form} holds named arrays and nothing else; {str(name)[:80]!r} is a {type(value).__name__}"
            )
    return tree
