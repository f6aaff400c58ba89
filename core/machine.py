"""What this machine is, and what its system does for a process. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

SET_DEATH_SIGNAL, SET_REAPER = 1, 36  # of Linux's prctl(2)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
RETAINED = 1 << 30  # bytes


def amd_with_avx2() -> bool:
    """Say whether this is an AMD processor with AVX2, which some math libraries take for an old one."""
    return {"AuthenticAMD", "avx2"} <= processor_words()


def processor_words() -> set[str]:
    """Return the words with which Linux describes the processors; none elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text(errors="replace").split())
    except OSError:
        return set()


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Ask Linux to send this process `number` when its parent ends, however that ends.

    parent: the parent's process number where the caller knows it: a parent that has ended already sends nothing, so
        the signal is then sent at once.
    """
    _prctl(SET_DEATH_SIGNAL, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Ask Linux to make this process the parent of descendants whose own parent ends."""
    _prctl(SET_REAPER, 1)


def retain_freed_memory() -> bool:
    """Let glibc keep what a training step frees, up to 1 GiB at a time, for the next step. Says whether it does.

    Otherwise every large activation is mapped and unmapped, and each of its pages faulted in again, at every step.
    MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ in the environment are the user's own choice and stay.
    """
    if not sys.platform.startswith("linux") or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(MMAP_THRESHOLD, RETAINED)) and bool(mallopt(TRIM_THRESHOLD, RETAINED))


def nameless_memory(title: str) -> int:
    """Return the descriptor of a piece of memory, empty so far, that processes can share and no file system knows."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(title)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
