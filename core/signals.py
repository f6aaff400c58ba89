"""Ctrl-C, SIGTERM, a closed terminal: the run stops at the next safe place; a second Ctrl-C stops it at once.

SIGUSR1, and SIGTERM within a Slurm job, announce that a scheduler takes the machine away: not a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

CAUGHT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
PATIENCE = 1.0  # seconds; launchers hand a Ctrl-C on to processes that the terminal has told already


def preempts(number: int) -> bool:
    """Whether a signal says that the machine is wanted for something else, and the job shall go on another time."""
    scheduled = number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
    return scheduled or number == getattr(signal, "SIGUSR1", None)


class Interrupted(Exception):
    """The run was asked to stop; `code` is the exit code a shell expects: 130, 143, 129; 0 of a preempted run."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or signal.Signals(number).name)
        self.number, self.code = number, 0 if preempts(number) else 128 + number


class Signals:
    """A context in which signals only leave a note: `caught` is the signal's number, 0 before one came."""

    def __init__(self) -> None:
        self.caught = 0
        self._when = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread only; elsewhere the caller keeps its own.
        if threading.current_thread() is threading.main_thread():
            # nohup: who ignores the end of the terminal goes on doing so.
            caught = (n for n in CAUGHT if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN)
            self._before = {number: signal.signal(number, self._catch) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        impatient = self.caught == number == signal.SIGINT and now - self._when > PATIENCE
        if not self.caught:
            self.caught, self._when = number, now
        if self._at_once or impatient:
            raise Interrupted(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this a signal raises Interrupted where it arrives: for work that may be lost."""
        if self.caught:
            raise Interrupted(self.caught)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
