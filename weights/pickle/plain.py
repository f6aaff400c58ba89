"""What a pickle's machine left, made into the plain structure that everybody else sees, within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triport.core.pickle.machine import Global, Span, decode
from triport.core.pickle.numpy_arrays import Pending
from triport.core.source import Damaged, Source
from triport.weights.arrays import Inert, Lazy, Tree

MAX_DEPTH = 64
MAX_VALUES = 1_000_000  # counted as often as they are named, so that sharing cannot multiply them without end
MAX_TEXT = 1 << 24
MAX_ARRAYS = 16  # the arrays together may be this many times the file: tensors may share a storage, but not endlessly
SLACK = 1 << 26


def plain(value: object, source: Source, total: int | None = None) -> Tree:
    """Return the finished structure: dict, list, tuple, numbers, texts, None, Lazy and Inert.

    total: bytes of the file or folder the arrays come from. Damaged where the structure contains itself, is nested
    deeper than `MAX_DEPTH`, or stands for more values or bytes than the limits allow.
    """
    finish = _Finish(source)
    tree, _, nbytes = finish(value, 0)
    limit = MAX_ARRAYS * (source.size if total is None else total) + SLACK
    if nbytes > limit:
        raise Damaged(f"describes arrays of {nbytes} bytes together, far more than it holds")
    return tree


class _Finish:
    """One walk; each container is finished once however often it is named, and counted each time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.done: dict[int, tuple[Any, int, int]] = {}
        self.seen: list[object] = []  # so that no id is used twice during the walk

    def __call__(self, value: object, depth: int) -> tuple[Any, int, int]:
        """Return the finished value, how many values it stands for, and how many bytes of arrays."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value, 1, 0
        if id(value) in self.done:
            found = self.done[id(value)]
            if found[1] == 0:
                raise Damaged("holds a structure that contains itself")
            return found
        if depth > MAX_DEPTH:
            raise Damaged(f"holds a structure nested deeper than {MAX_DEPTH}")
        self.seen.append(value)
        self.done[id(value)] = (None, 0, 0)
        self.done[id(value)] = result = self.finish(value, depth)
        if result[1] > MAX_VALUES:
            raise Damaged(f"describes more than {MAX_VALUES} values")
        return result

    def finish(self, value: object, depth: int) -> tuple[Any, int, int]:
        """Finish a value of a kind that is not plain already."""
        if isinstance(value, dict):
            keys = list(value)
            return self.joined(list(value.values()), depth, lambda parts: dict(zip(keys, parts, strict=True)))
        if isinstance(value, (list, tuple)):
            return self.joined(value, depth, tuple if isinstance(value, tuple) else list)
        if isinstance(value, Pending):
            value = value.finish()
            if isinstance(value, str):  # the name of a numpy dtype
                return value, 1, 0
        if isinstance(value, Lazy):
            return value, 1, value.nbytes
        if isinstance(value, (Inert, bytes)):
            return value if isinstance(value, Inert) else Inert("bytes"), 1, 0
        if isinstance(value, Global):
            return value.name, 1, 0
        if isinstance(value, Span):
            return self.span(value)
        raise Damaged(f"holds a {type(value).__name__} where a value should be")

    def joined(
        self, values: list[Any] | tuple[Any, ...], depth: int, make: Callable[[list[Any]], Any]
    ) -> tuple[Any, int, int]:
        """Finish the parts and put them together again."""
        parts = [self(part, depth + 1) for part in values]
        return make([part[0] for part in parts]), 1 + sum(part[1] for part in parts), sum(part[2] for part in parts)

    def span(self, span: Span) -> tuple[Any, int, int]:
        """A long text becomes text; bytes are nobody's weights."""
        if span.kind == "text":
            return decode(self.source.bytes(span.offset, span.length, MAX_TEXT)), 1, 0
        return Inert("bytes"), 1, 0
