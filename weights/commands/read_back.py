"""Arrays read one ahead of who writes them, with the checksum of each, and what was written held against these.

So nothing is transposed twice: what comes back from the target is compared by shape, dtype and CRC-32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.weights.arrays import Lazy, Tree, leaves, mapped, raw

SMALL, LARGE = 1 << 16, 1 << 26  # bytes; smaller arrays are not worth a thread, of larger no two are in memory at once


class Ahead:
    """A tree whose arrays are read, transposed and checksummed in a thread while the one before them is being written.

    tree: the same tree, to be given to a writer; `compare` holds what reads back against it afterwards.
    """

    def __init__(self, tree: Tree) -> None:
        self._checksums: dict[Lazy, int] = {}  # by array of `tree`
        self._after: dict[Lazy, Lazy | None] = {}  # array of the given tree -> the one to read meanwhile
        self._waiting: tuple[Lazy, Future[np.ndarray]] | None = None
        order = [array for array in dict.fromkeys(leaves(tree)) if array.nbytes >= SMALL]
        for array, after in zip(order, [*order[1:], None], strict=False):
            self._after[array] = after if after and max(array.nbytes, after.nbytes) <= LARGE else None
        self.tree = mapped(tree, self._announced)

    def __enter__(self) -> Ahead:
        """Begin to read ahead."""
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is read ahead any more."""
        self._waiting = None
        self._thread.shutdown()

    def _announced(self, array: Lazy) -> Lazy:
        made = replace(array, load=lambda: self._values(made, array))
        return made

    def _values(self, made: Lazy, array: Lazy) -> np.ndarray:
        """The values; those of the next array are on their way then."""
        if array in self._after:
            expected, ready = self._waiting or (None, None)
            if ready is None or expected is not array:
                ready = self._thread.submit(array.read)
            after = self._after[array]
            self._waiting = (after, self._thread.submit(after.read)) if after else None
            values = ready.result()
        else:
            values = array.read()
        self._checksums[made] = array.crc or zlib.crc32(raw(values))
        return values

    def compare(self, found: Tree, where: Path) -> None:
        """UserError unless a tree read from the target has exactly the arrays that were written, unharmed."""
        theirs = dict(_named(found))
        pairs: list[tuple[str, Lazy, Lazy]] = []
        for name, array in _named(self.tree):
            other = theirs.pop(name, None)
            if other is None or (other.shape, other.dtype) != (array.shape, array.dtype):
                raise UserError(
                    f"{where} was written, but reads back without '{name}' as it should be: the disk may be at fault"
                )
            pairs.append((name, array, other))
        if theirs:
            raise UserError(f"{where} was written, but reads back with '{next(iter(theirs))}', which was not meant")
        share = 2 if all(array.nbytes <= LARGE for _, array, _ in pairs) else 1
        with ThreadPoolExecutor(share) as threads:
            for name in filter(None, threads.map(self._other, (pairs[k::share] for k in range(share)))):
                raise UserError(
                    f"{where} was written, but '{name}' reads back with other bits: the disk may be at fault"
                )

    def _other(self, pairs: list[tuple[str, Lazy, Lazy]]) -> str:
        """The name of the first array that is not as it was written, or ""."""
        for name, array, found in pairs:
            values = found.read()
            if (found.crc or zlib.crc32(raw(values))) != self._checksums.get(array):
                return name or "its array"
            del values  # before the next are read
        return ""


def _named(tree: Tree, path: str = "") -> Iterator[tuple[str, Lazy]]:
    if isinstance(tree, Lazy):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _named(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _named(value, f"{path}/{index}")
