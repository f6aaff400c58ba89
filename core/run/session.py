"""A run's context: backend, rank, journal, warnings, what to close at the end."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from triport.core.backend.learner import Learner, Processes
from triport.core.errors import UserError
from triport.core.record.console import show
from triport.core.record.journal import Journal


@dataclass(frozen=True)
class Backend:
    """What a framework offers: its name, how its processes find each other, how a learner is made.

    start(device) -> Processes; make(recipe, arrays, *, processes, device, precision, compile) -> Learner;
    on_checkpoint(folder), where there is one, is called with every checkpoint that a run keeps, on rank 0.
    """

    name: str
    start: Callable[[str], Processes]
    make: Callable[..., Learner]
    on_checkpoint: Callable[[Path], None] | None = None


@dataclass
class Session:
    """What is known when something goes wrong: which process says so, and where it is written down."""

    traceback: bool = False  # show where an error was raised
    rank: int = 0
    world: int = 1
    folder: Path | None = None
    journal: Journal | None = None
    closing: list[Callable[[], None]] = field(default_factory=list)

    def join(self, processes: Processes) -> Processes:
        """Take note of which process of how many this is."""
        self.rank, self.world = processes.rank, processes.world
        return processes

    def warn(self, text: str) -> None:
        """Tell the user of something that does not stop the run, from any rank."""
        if self.journal is not None and self.rank == 0:
            self.journal.say(text)
        else:
            show(f"triport: {self._who()}{text}", sys.stderr)

    def complain(self, text: str) -> None:
        """Show why the run ends, and note it in train.log."""
        if self.journal is not None:
            self.journal.console_off()
            with contextlib.suppress(UserError):  # the log may be on the full disk that is being reported
                self.journal.note(f"{self._who()}{text}")
        show(f"triport: {self._who()}{text}", sys.stderr)

    def _who(self) -> str:
        return f"rank {self.rank}: " if self.world > 1 else ""

    def write_traceback(self) -> str:
        """Write the traceback of the error at hand into train.log, or show it; say where it is."""
        text = traceback.format_exc()
        if self.traceback:
            show(text, sys.stderr)
            return "see the traceback above"
        if self.folder is not None:
            path = self.folder / "train.log"
            try:
                with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
                    log.write(f"rank {self.rank}\n{text}")
            except OSError:
                pass
            else:
                return f"the traceback is at the end of {path}"
        return "--traceback shows where"

    def close(self) -> None:
        """Close what was opened, the last first."""
        for close in reversed(self.closing):
            close()
