"""What this machine is, and what its system does for a process. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

SET_DEATH_SIGNAL, SET_REAPER = 1, 36  # of Linux's prctl(2)


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


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
