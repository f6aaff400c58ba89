"""Killed and resumed: a run that gets SIGKILL goes on to the bits of one that nobody disturbed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.demo import runs
from triport.demo.runs import UNWATCHED

RECIPE = "tiny/test_moco_vit"  # seconds long
CHANGES = ("epochs=2", *UNWATCHED)
SAVES, KILLED_AFTER = 10, 35  # steps between checkpoints; the step after which the run is killed
PAUSE = 0.01  # seconds between looks at how far it is


@dataclass(frozen=True)
class Resumed:
    """The two runs: where one was killed and went on, and the digests of all that both left."""

    killed_at: int
    resumed_at: int
    undisturbed: str
    resumed: str

    @property
    def equal(self) -> bool:
        """Whether every weight, momentum weight and optimizer value has the same bits."""
        return self.undisturbed == self.resumed


def prove(folder: Path, backend: str, killed_after: int = KILLED_AFTER) -> Resumed:
    """Run twice, kill the second, resume it, compare. UserError where a run fails or cannot be caught alive."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole, killed = folder / "undisturbed", folder / "killed"
    words = ["pretrain", RECIPE, *CHANGES, "--backend", backend, "--quiet", "--save-steps", str(SAVES)]
    finish([*words, "--out", str(whole)])
    say(f"undisturbed: {runs.last_step(whole)} steps")
    at = kill([*words, "--out", str(killed)], killed, killed_after)
    say(f"the same again: SIGKILL after step {at}")
    start = int(checkpoint.read_state(checkpoint.latest(killed))["step"])
    finish([*words, "--resume", str(killed)])
    say(f"resumed from the checkpoint of step {start}, to step {runs.last_step(killed)}")
    found = Resumed(at, start, digest(whole), digest(killed))
    say(f"SHA-256 of weights and optimizer, undisturbed  {found.undisturbed[:16]}…")
    say(f"                          killed and resumed   {found.resumed[:16]}…")
    say("equal to the bit" if found.equal else "NOT EQUAL")
    return found


def say(line: str) -> None:
    """A line of this part."""
    print(f"  {line}", flush=True)


def finish(words: Sequence[str]) -> None:
    """Run to the end."""
    if code := runs.triport(words):
        raise UserError(f"a run of the demo ended with exit code {code}; see its messages above.")


def kill(words: Sequence[str], run: Path, after: int) -> int:
    """Start a run, end it by SIGKILL once it has recorded step `after`, and return the last step that it recorded."""
    started = subprocess.Popen(runs.command(words), start_new_session=True, **runs.surroundings())
    try:
        while runs.last_step(run) < after:
            if started.poll() is not None:
                raise UserError(f"a run of the demo ended with exit code {started.returncode} before it was killed.")
            time.sleep(PAUSE)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    if started.returncode != -signal.SIGKILL:
        raise UserError(f"a run of the demo was to be killed and ended with exit code {started.returncode}.")
    return runs.last_step(run)


def digest(run: Path) -> str:
    """SHA-256 of every array of a run's last checkpoint: names, types, shapes and bytes."""
    groups, _ = checkpoint.load(checkpoint.find(run / "checkpoints" / "last"))
    total = hashlib.sha256()
    for group, arrays in sorted(groups.items()):
        for name, array in sorted(arrays.items()):
            total.update(f"{group}/{name} {array.dtype} {array.shape}\n".encode())
            total.update(array.tobytes())
    return total.hexdigest()
