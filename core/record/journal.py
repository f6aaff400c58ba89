"""The run folder: recipe.toml, environment.json, train.log, metrics.jsonl, TensorBoard events, checkpoints/."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.record import environment
from triport.core.record.console import Console
from triport.core.record.tensorboard import Events

OWN = ("recipe.toml", "environment.json", "metrics.jsonl", "evaluation.json", "encoder.safetensors")
DRAWN = ("baselines.json", "projection.json", "views.png")


def holds_run(folder: Path) -> bool:
    """Say whether a folder holds a run, finished or not. One that failed before it wrote anything is none."""
    begun = any((folder / name).exists() for name in ("recipe.toml", "metrics.jsonl"))
    return begun or any((folder / "checkpoints").glob("*"))


def next_folder(recipe: str, runs: Path) -> Path:
    """Return the first free runs/<recipe>-<n>."""
    stem, n = recipe.replace("/", "-"), 1
    while (runs / f"{stem}-{n}").exists():
        n += 1
    return runs / f"{stem}-{n}"


def newest_folder(recipe: str, runs: Path) -> Path | None:
    """Return the runs/<recipe>-<n> with the largest n, or None."""
    stem = recipe.replace("/", "-") + "-"
    found = [path for path in runs.glob(f"{stem}*") if path.name[len(stem) :].isdigit()]
    return max(found, key=lambda path: int(path.name[len(stem) :]), default=None)


def next_aside(folder: Path) -> Path:
    """Return the first free <folder>.old-<n>."""
    n = 1
    while folder.with_name(f"{folder.name}.old-{n}").exists():
        n += 1
    return folder.with_name(f"{folder.name}.old-{n}")


def claim(folder: Path, overwrite: bool) -> tuple[TextIO, Path | None]:
    """Make `folder` ready for a new run; an old one there is moved aside, never deleted.

    Returns the new run's locked train.log, and where the old run went or None. Raises UserError where a run is there
    and `overwrite` is False, or where another process is at work in it.
    """
    aside = None
    try:
        if holds_run(folder):
            if not overwrite:
                raise UserError(
                    f"{folder} already holds a run. Go on with --resume, move it aside with --overwrite, "
                    "or name another --out."
                )
            aside = next_aside(folder)
            with locked_log(folder):  # so that nobody goes on with the old run while it moves
                folder.replace(aside)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror}. Name another with --out.") from error
    return locked_log(folder), aside


def locked_log(folder: Path) -> TextIO:
    """Open train.log in a run folder and lock it for this process; closing it gives the lock back.

    Two runs in one folder would undo each other's checkpoints. UserError where another process has the lock, or has
    just moved the folder, or where the file cannot be written.
    """
    path = folder / "train.log"
    try:
        log = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}. Make the folder writable, or name another --out."
        ) from error
    mine = lock(log)
    try:
        mine = mine and os.path.samestat(os.fstat(log.fileno()), path.stat())
    except OSError:  # the folder has been moved
        mine = False
    if not mine:
        log.close()
        raise UserError(f"another process is writing to {folder}. Wait for it, or name another --out.")
    return log


def lock(file: TextIO) -> bool:
    """Lock a file for this process until it is closed; False where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        # A record lock: unlike flock's it is not handed on to data workers, which may outlive a killed run.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a disk without locks
    return True


class Journal:
    """Writes what happens in a run; on every rank but the first it does nothing."""

    def __init__(
        self, folder: Path, *, writes: bool, total: int = 0, quiet: bool = False, log: TextIO | None = None
    ) -> None:
        """log: train.log where it is locked already."""
        self.folder = folder
        self.writes = writes
        self._console = Console(total, quiet=quiet) if writes else None
        self._log: TextIO | None = None
        self._metrics: TextIO | None = None
        self._events: Events | None = None
        if writes:
            self._log = log or locked_log(folder)
            atomic.sweep(folder, *OWN, *DRAWN)

    def describe(self, recipe: str, start: Mapping[str, Any]) -> None:
        """Write recipe.toml, unless it is there, and add a start to environment.json."""
        if not self.writes:
            return
        path = self.folder / "recipe.toml"
        try:
            if not path.exists():
                atomic.write_text(path, recipe)
            if not environment.record(self.folder / "environment.json", start):
                self.say("environment.json was damaged: what it said of earlier starts is lost, the run is not")
        except OSError as error:
            raise self._unwritable(error) from error

    # ------------------------------------------------------------ words
    def say(self, text: str) -> None:
        """Show a line and keep it in train.log."""
        if self._console is not None:
            self._console.say(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Keep text in train.log without showing it."""
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            self._write(self._log, f"{stamp}  {text}\n")

    def console_off(self) -> None:
        """Leave the terminal to others, for an error's line."""
        if self._console is not None:
            self._console.close()
            self._console = None

    def progress(self, step: int, text: str) -> None:
        """Show where the run is."""
        if self._console is not None:
            self._console.progress(step, text)

    # ------------------------------------------------------------ numbers
    def begin(self, step: int, epochs: int) -> None:
        """Open the metrics at a step of which `epochs` epochs are closed; lines of undone steps are cut off."""
        if not self.writes:
            return
        self._close_metrics()
        path = self.folder / "metrics.jsonl"
        try:
            damaged = _cut(path, step, epochs) if path.exists() else 0
            self._metrics = path.open("a", encoding="utf-8")
            self._events = Events(self.folder, step)
        except OSError as error:
            raise self._unwritable(error) from error
        if damaged:
            self.say(f"{damaged} damaged lines of metrics.jsonl were left out")

    def scalars(self, step: int, epoch: float, values: Mapping[str, float], kind: str = "step") -> None:
        """Write numbers after `step` optimiser steps: a line of metrics.jsonl and points of TensorBoard curves.

        Every step writes one line of kind "step", every closed epoch one of kind "epoch"; what is not finite
        becomes null.
        """
        if self._metrics is None or self._events is None:
            return
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **shown}
        self._write(self._metrics, json.dumps(line) + "\n")
        try:
            self._events.scalars(step, {f"{kind}/{name}": value for name, value in values.items()})
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, file: TextIO, text: str) -> None:
        try:
            file.write(text)
            file.flush()  # what a killed process wrote is then with the system, not lost
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        again = (
            "go on with --resume"
            if any(self.folder.glob("checkpoints/*/state.json"))
            else "begin again with --overwrite"
        )
        return UserError(f"cannot write to {self.folder}: {error.strerror}. Free space, then {again}.")

    def sync(self) -> None:
        """Bring the numbers to the disk before a checkpoint that counts on them."""
        if self._metrics is not None and self._events is not None:
            try:
                self._events.flush()
                os.fsync(self._metrics.fileno())
            except OSError as error:
                raise self._unwritable(error) from error

    def _close_metrics(self) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk was reported where it was met
                    file.close()
        self._metrics = self._events = None

    def close(self) -> None:
        """Close the files and leave the terminal as it was."""
        self.console_off()
        self._close_metrics()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()
            self._log = None


def _cut(path: Path, step: int, epochs: int) -> int:
    """Leave the lines up to a step and an epoch; return how many were damaged, the half line of a kill apart."""
    lines, damaged, cut = [], 0, False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
            done = entry["epoch"] <= epochs if entry["kind"] == "epoch" else entry["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged, cut = damaged + 1, not line.endswith("\n")
            continue
        if done:
            lines.append(line.rstrip("\n") + "\n")
    atomic.write_text(path, "".join(lines))
    return damaged - int(cut)
