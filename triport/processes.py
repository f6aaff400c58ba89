"""The processes below one: found, and ended. Where there is no /proc, only known processes are."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")


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
