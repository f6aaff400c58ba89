"""A probe that misbehaves on request, for the tests of the harness."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

from core.errors import UserError


def echo(**given: Any) -> dict[str, Any]:
    """Say what was asked."""
    return given


def double(x: np.ndarray) -> np.ndarray:
    """Twice x."""
    return 2 * x


def threads() -> str:
    """How many threads this process may use."""
    return os.environ["OMP_NUM_THREADS"]


def fail() -> None:
    """Raise."""
    raise ValueError("a plain mistake")


def refuse() -> None:
    """Tell the user what cannot be done."""
    raise UserError("no such precision here. Take float32.")


def crash(number: int) -> None:
    """Die by a signal, as native code does."""
    os.kill(os.getpid(), number)
    signal.pause()


def leave() -> None:
    """End the process without an answer."""
    os._exit(7)


def hang() -> None:
    """Never come back, and do not listen to polite requests."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def crash_on_one() -> None:
    """Rank 1 dies, the others wait for it."""
    if os.environ.get("RANK") == "1":
        crash(signal.SIGSEGV)
    hang()


def lack(module: str) -> None:
    """Need a module."""
    __import__(module)


def who() -> dict[str, str]:
    """What the launcher told this process."""
    names = ("RANK", "WORLD_SIZE", "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM")
    return {name: os.environ[name] for name in names if name in os.environ}
