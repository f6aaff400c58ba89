"""Processes that do not outlive their parents: dying with the parent, adopting orphans, ending everything below.

Linux offers all of it. Elsewhere the first two do nothing and only known processes are ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

SET_DEATH_SIGNAL, SET_REAPER = 1, 36  # of Linux's prctl(2)
PROC = Path("/proc")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the system to send this process `number` when its parent ends, however that ends."""
    _prctl(SET_DEATH_SIGNAL, number)
    if os.getppid() == 1:  # it has ended already
        os.kill(os.getpid(), number)


def end_with_parent() -> None:
    """As `die_with_parent`, politely: what a launcher is asked, so that it ends its own processes first."""
    die_with_parent(signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that `descendants` still finds them."""
    _prctl(SET_REAPER, 1)


def parents() -> dict[int, tuple[int, str]]:
    """Return process -> (parent, state letter) of all processes; nothing where there is no /proc."""
    table = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name in brackets may hold blanks and brackets itself, so read from the last one on.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                table[int(entry.name)] = (int(parent), state)
    return table


def descendants(root: int) -> list[int]:
    """Return the living processes below `root`, not `root` itself."""
    table = parents()
    found: list[int] = []
    wave = [root]
    while wave:
        wave = [process for process, (parent, _) in table.items() if parent in wave]
        found += wave
    return [process for process in found if table[process][1] != "Z"]


def is_alive(process: int) -> bool:
    """Say whether a process is there and not a zombie."""
    try:
        return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        if PROC.is_dir():
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def end_all(root: int, known: list[int], patience: float = 3.0) -> None:
    """End every process below `root` and the `known` ones: ask, wait `patience` seconds, then kill."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        left = living(root, known)
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process, number)
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = living(root, known)
        if not left:
            return


def living(root: int, known: list[int]) -> list[int]:
    """Return the living processes below `root` and those of `known` that live."""
    return sorted({*descendants(root), *(process for process in known if is_alive(process))})
