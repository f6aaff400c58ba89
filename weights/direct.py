"""Large files written to the disk and read from it past the system's page cache, in aligned blocks.

To put a byte into a page of the cache and to take it out again costs three times the processor time of a direct write
and read. Where a file system has no direct access (Linux's O_DIRECT), the same blocks go through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from triport.core.source import Damaged, Stretch

DIRECT = getattr(os, "O_DIRECT", 0)
ALIGNED = 4096  # bytes; of file offsets, lengths and memory, for every disk in use
BLOCK = 1 << 21  # bytes of one write or read


def block() -> memoryview:
    """Aligned memory for one block; in one large page where the system has them, so that the disk is told of one."""
    memory = mmap.mmap(-1, BLOCK, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class Blocks:
    """A new file, written from begin to end in whole blocks; what is left goes out when the `with` block ends well.

    memory: of `block`, where the caller writes several files one after the other. OSError as the system says.
    """

    def __init__(self, path: Path, memory: memoryview | None = None) -> None:
        """Make the file; it must not exist."""
        self._memory, self._filled = block() if memory is None else memory, 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed in __exit__
        self.direct = _set_direct(self._file.fileno(), True)

    def fileno(self) -> int:
        """The system's number of the open file."""
        return self._file.fileno()

    def write(self, data: Any) -> int:
        """Take bytes of any length."""
        left = memoryview(data)
        size = len(left)
        while left:
            part = left[: BLOCK - self._filled]
            self._memory[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == BLOCK:
                self._flush()
        return size

    def _flush(self) -> None:
        """Write what has been taken. Only whole pages may go the direct way."""
        left = self._memory[: self._filled]
        while left:
            if self.direct and len(left) % ALIGNED:
                self.direct = not _set_direct(self.fileno(), False)
            try:
                left = left[self._file.write(left) :]
            except OSError as fault:
                # EINVAL: a disk with larger sectors
                if not self.direct or fault.errno != errno.EINVAL or not _set_direct(self.fileno(), False):
                    raise
                self.direct = False
        self._filled = 0

    def __enter__(self) -> Blocks:
        """The file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Write the rest and close."""
        with self._file:
            if kind is None:
                self._flush()


def pieces(stretch: Stretch, length: int, memory: memoryview) -> Iterator[memoryview]:
    """Give the bytes of a stretch in pieces, each in `memory` until the next is asked for.

    memory: of `block`. Damaged where the file ends too early.
    """
    end, at = stretch.offset + length, stretch.offset
    with open(stretch.path, "rb", buffering=0) as file:
        direct = _set_direct(file.fileno(), True)
        while at < end:
            begin = at - at % ALIGNED
            wanted = min(BLOCK, -(-(end - begin) // ALIGNED) * ALIGNED)
            file.seek(begin)
            try:
                got = begin + (file.readinto(memory[:wanted]) or 0)
            except OSError as fault:
                if not direct or fault.errno != errno.EINVAL or not _set_direct(file.fileno(), False):
                    raise
                direct = False
                continue
            if got <= at:
                raise Damaged(f"ends too early: it has {got} bytes, {end} are wanted")
            yield memory[at - begin : min(got, end) - begin]
            at = min(got, end)


def _set_direct(number: int, wanted: bool) -> bool:
    """Turn an open file's direct access on or off; whether that was done."""
    if not DIRECT:
        return not wanted
    import fcntl  # not on every system

    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    try:
        fcntl.fcntl(number, fcntl.F_SETFL, flags | DIRECT if wanted else flags & ~DIRECT)
    except OSError:  # tmpfs and others
        return False
    return True
