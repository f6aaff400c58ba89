"""A file opened for reading without trust: mapped, bounds checked, its faults reported to the user in one line."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triport.core.errors import UserError

RELEASE = 1 << 12  # views at least this long give their pages back when they die
AROUND = 1 << 21  # and so many bytes before and after them: the system maps pages around the one that is wanted


class Damaged(Exception):
    """Something in a file is not as its format says. Becomes a UserError that also names the file."""


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn Damaged and the system's refusals inside the block into a UserError that begins with the path."""
    try:
        yield
    except Damaged as fault:
        raise UserError(f"{path}: {fault}" if path else str(fault)) from None
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror or fault}") from None


@contextmanager
def parsing(path: str | Path) -> Iterator[None]:
    """Like `reading`, for code that parses: what Python finds wrong with hostile input is a fault of the file."""
    with reading(path):
        try:
            yield
        except (
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            RecursionError,
            MemoryError,
            struct.error,
            zlib.error,
        ) as fault:
            raise Damaged(f"is damaged ({type(fault).__name__}: {str(fault)[:200]})") from fault


@dataclass(frozen=True)
class Stretch:
    """Where bytes begin in a file."""

    path: Path
    offset: int


class Source:
    """One regular file, mapped read-only. Never waits on a pipe or device, and every access is inside the file."""

    def __init__(self, path: str | Path) -> None:
        """Open and map `path`; OSError where that fails, Damaged where it is not a regular file."""
        self.path = Path(path)
        number = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            state = os.fstat(number)
            if not stat.S_ISREG(state.st_mode):
                raise Damaged("is not a regular file")
            self.size = state.st_size
            self.data: mmap.mmap | bytes = mmap.mmap(number, 0, access=mmap.ACCESS_READ) if self.size else b""
        finally:
            os.close(number)

    @classmethod
    def over(cls, data: bytes, path: str | Path) -> Source:
        """Wrap bytes that are in memory already, such as a file of an archive; `path` is for messages."""
        source = cls.__new__(cls)
        source.path, source.data, source.size = Path(path), data, len(data)
        return source

    def bytes(self, offset: int, length: int, limit: int = 1 << 24) -> bytes:
        """Return a copy of a small stretch."""
        self.check(offset, length)
        if length > limit:
            raise Damaged(f"a part that should be small takes {length} bytes")
        return self.data[offset : offset + length]

    def check(self, offset: int, length: int) -> None:
        """Damaged unless the stretch lies in the file."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Damaged(f"ends too early: bytes {offset} to {offset + length} are wanted, it has {self.size}")

    @contextmanager
    def scattered(self) -> Iterator[None]:
        """Inside the block small parts that lie far apart are read: nothing around them is fetched from the disk."""
        if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
            self.data.madvise(mmap.MADV_RANDOM)
            try:
                yield
            finally:
                self.data.madvise(mmap.MADV_NORMAL)
        else:
            yield

    def stretch(self, offset: int) -> Stretch | None:
        """Where bytes of this source begin in a file; None for those that are in memory."""
        return Stretch(self.path, offset) if isinstance(self.data, mmap.mmap) else None

    def array(self, offset: int, length: int) -> np.ndarray:
        """Return a stretch as a read-only uint8 array over the map; pages go back when the last view is gone."""
        self.check(offset, length)
        if length == 0:
            return np.empty(0, np.uint8)
        if isinstance(self.data, mmap.mmap) and self.data.size() < offset + length:
            raise Damaged("was cut short while it was read")  # touching the missing pages would kill the process
        array = np.frombuffer(self.data, np.uint8, length, offset)
        if length >= RELEASE and hasattr(mmap, "MADV_DONTNEED") and isinstance(self.data, mmap.mmap):
            start = max(offset - AROUND, 0)
            start -= start % mmap.PAGESIZE
            end = min(offset + length + AROUND, self.size)
            weakref.finalize(array, self.data.madvise, mmap.MADV_DONTNEED, start, end - start).atexit = False
        return array
