"""What a run shows: a progress line that renews itself on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any, TextIO

INTERVAL = 10.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """Return a time in the two largest units: "4m 10s", "3h 02m", "2d 05h"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def score(name: str, value: float) -> str:
    """Return a score as people read it: "knn 63.40 %", "effective rank 9.976"."""
    if name in ("knn", "probe", "top1", "top5", "mean_per_class"):
        return f"{name} {100 * value:.2f} %"
    return f"{name.replace('_', ' ')} {value:.4g}"


def is_lively(stream: TextIO) -> bool:
    """Say whether a line may renew itself: on a terminal, and not where colours or a log file are asked for."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


def tolerate_any_text() -> None:
    """Let standard output and error escape what their encoding lacks (backslashreplace) instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def forget_unwritten() -> None:
    """Give up what is printed and cannot be written (a full disk), so that the interpreter's end does not complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a line, on a terminal within its width.

    Where nobody reads it any more (`| head`, a closed terminal), what follows goes nowhere.
    """
    stream = stream or sys.stdout
    try:
        if stream.isatty():  # plain lines stay whole for programs that read them
            text = folded(text, shutil.get_terminal_size().columns)
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            coding = stream.encoding or "ascii"
            print(text.encode(coding, "backslashreplace").decode(coding), file=stream, flush=True)
    except (OSError, ValueError):  # a closed pipe, a closed file
        discard(stream)


def discard(stream: TextIO) -> None:
    """Point a stream whose reader is gone at nothing, or the interpreter would fail on it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, stream.fileno())
        finally:
            os.close(nothing)


def folded(text: str, width: int) -> str:
    """Return a line in lines of a width, broken between the facts that two blanks divide, else between words.

    A word that is longer than a line, as a path may be, stays whole.
    """
    lines = []
    for line in text.split("\n"):
        first, *facts = line.split("  ")
        lines.append(first)
        for fact in facts:
            if len(lines[-1]) + 2 + len(fact) <= width or not lines[-1].strip():
                lines[-1] += f"  {fact}"
            else:
                lines.append(f"    {fact}")
    return "\n".join(short for line in lines for short in _words(line, width))


def _words(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    return textwrap.wrap(
        line, max(width, 20), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    ) or [line]


def _bar(terminal: Any) -> Any:
    """A line of words, cut where the terminal ends, over a bar as wide as the terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Lines(Progress):
        def get_renderables(self) -> Any:
            for task in self.tasks:
                yield Text(task.description, no_wrap=True, overflow="ellipsis")
            yield self.make_tasks_table(self.tasks)

    bar, own = BarColumn(None, table_column=Column(ratio=1)), terminal.file is sys.stdout
    # standard output stays itself where the bar is elsewhere: it may be a file that wants the answer
    return Lines(bar, TaskProgressColumn(), console=terminal, transient=True, expand=True, redirect_stdout=own)


class Console:
    """Progress towards `total` steps; `quiet` shows nothing but errors, which are not its business."""

    def __init__(self, total: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._total, self._quiet = total, quiet
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None
        if not quiet and is_lively(self._stream):
            # Imported here: a run in a log file needs no terminal library.
            from rich.console import Console as Terminal

            class Patient(Terminal):
                def on_broken_pipe(self) -> None:  # rich would end the process
                    self.quiet = True
                    discard(self.file)  # type: ignore[arg-type]

            self._bar = _bar(Patient(file=self._stream, highlight=False))

    def say(self, text: str) -> None:
        """Show a line above the progress."""
        if self._quiet:
            return
        if self._bar is not None:
            with self._surviving():
                self._bar.console.print(folded(text, self._bar.console.width), markup=False, soft_wrap=True)
        else:
            show(text, self._stream)

    def progress(self, step: int, text: str) -> None:
        """Show where the run is; as a plain line only every few seconds."""
        if self._bar is not None:
            with self._surviving():
                if self._task is None:
                    self._bar.start()
                    self._task = self._bar.add_task("", total=self._total)
                self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._last >= INTERVAL:
            if self._last:  # the first interval begins at the first step
                self.say(text)
            self._last = time.monotonic()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None and self._task is not None:
            with self._surviving():
                self._bar.stop()
            self._task = None

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Within, a terminal that is gone ends what is shown, not the run."""
        try:
            yield
        except (OSError, ValueError):
            discard(self._stream)
            self._bar, self._quiet = None, True
