"""Writes something while the caller goes on: one piece of work at a time, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """A thread that is there from the first piece of work on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Wait for what was begun before, then begin this. Raises what went wrong before."""
        self.wait()
        self._pool = self._pool or ThreadPoolExecutor(1, "triport-writer")
        self._work = self._pool.submit(work)

    def wait(self) -> None:
        """Return when nothing is in the making. Raises what went wrong."""
        work, self._work = self._work, None
        if work is not None:
            work.result()
