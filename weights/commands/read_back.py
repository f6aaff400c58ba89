"""Arrays read one ahead of who writes them, and what was written held against them.

What comes back from the target is compared by shape, dtype and bits. Arrays that stand in the source as they are
written are compared with the mapped source, byte by byte; others by the CRC-32 that they had when they were written, so
that nothing is transposed twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.core.source import reading
from triport.weights.arrays import Lazy, Tree, leaves, mapped, raw
from triport.weights.direct import block, pieces

SMALL, LARGE = 1 << 16, 1 << 26  # bytes; smaller arrays are not worth a thread, of larger no two are in memory at once
PIECE = 1 << 15  # items compared at once
SHARED = 1 << 23  # bytes; larger arrays are compared one by one, for source and target are both mapped then


class Ahead:
    """A tree whose arrays are read, transposed and checksummed in a thread while the one before them is being written.

    tree: the same tree, to be given to a writer; `compare` holds what reads back against it afterwards.
    """

    def __init__(self, tree: Tree, checksums: bool = False) -> None:
        """checksums: of every array, for `checksums_of`; else only of those that cannot be compared byte by byte."""
        self._all = checksums
        self._checksums: dict[Lazy, int] = {}  # by array of `tree`
        self._places: dict[tuple[int, int], int] = {}  # address and length of values -> their CRC-32
        self._mapped: dict[Lazy, Lazy] = {}  # arrays of `tree` whose values are views of a file -> those given
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
        if not values.flags.writeable:
            self._mapped[made] = array
        if self._all or made not in self._mapped:
            self._checksums[made] = self._places[_place(raw(values))] = array.crc or zlib.crc32(raw(values))
        return values

    def checksum_at(self, data: memoryview) -> int | None:
        """The CRC-32 of the values of an array that are being written, by where they lie; None where it is not known.

        An array is noted when it is read and others take its place only when it is gone.
        """
        return self._places.get(_place(data))

    def checksums_of(self, found: Tree) -> dict[Path, int]:
        """The CRC-32 of the arrays of a tree that was compared, by where they lie; only those with a file each."""
        theirs = dict(_named(found))
        return {
            Path(theirs[name].where): self._checksums[array]
            for name, array in _named(self.tree)
            if name in theirs and array in self._checksums
        }

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
        share = 2 if all(array.nbytes <= SHARED for _, array, _ in pairs) else 1
        with ThreadPoolExecutor(share) as threads:
            for name in filter(None, threads.map(self._other, (pairs[k::share] for k in range(share)))):
                raise UserError(
                    f"{where} was written, but '{name}' reads back with other bits: the disk may be at fault"
                )

    def _other(self, pairs: list[tuple[str, Lazy, Lazy]]) -> str:
        """The name of the first array that is not as it was written, or ""."""
        memory = block()
        for name, array, found in pairs:
            if not self._same(array, found, memory):
                return name or "its array"
        return ""

    def _same(self, array: Lazy, found: Lazy, memory: memoryview) -> bool:
        """Whether an array reads back as it was written; from the disk, where its bytes stand in a file as they are."""
        source = raw(self._mapped[array].read()) if array in self._mapped else None
        if found.stretch is None:
            values = raw(found.read())
            if source is None:
                return (found.crc or zlib.crc32(values)) == self._checksums.get(array)
            return same_bytes(source, values)
        checksum = at = 0
        with reading(found.stretch.path):
            for piece in pieces(found.stretch, found.nbytes, memory):
                if source is None:
                    checksum = zlib.crc32(piece, checksum)
                elif not same_bytes(source[at : at + len(piece)], piece):
                    return False
                at += len(piece)
        return source is not None or checksum == self._checksums.get(array)


def _place(data: memoryview) -> tuple[int, int]:
    """Address and length of a stretch of memory."""
    bytes_ = np.frombuffer(data, np.uint8)
    return int(bytes_.__array_interface__["data"][0]), len(bytes_)


def same_bytes(one: memoryview, other: memoryview) -> bool:
    """Whether two stretches of memory are equal, by pieces that stay in the processor's cache."""
    if len(one) != len(other):
        return False
    wide = np.uint64 if len(one) % 8 == 0 else np.uint8
    first, second = np.frombuffer(one, wide), np.frombuffer(other, wide)
    return all(np.array_equal(first[k : k + PIECE], second[k : k + PIECE]) for k in range(0, len(first), PIECE))


def _named(tree: Tree, path: str = "") -> Iterator[tuple[str, Lazy]]:
    if isinstance(tree, Lazy):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _named(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _named(value, f"{path}/{index}")
