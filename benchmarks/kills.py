"""Kills training runs at random moments, resumes them, and checks that nothing is lost.

python benchmarks/kills.py [--kills N] [--minutes M] [--seed S] [--backend NAME]

Small runs of MAE in one process and of MoCo v3 in two, which save after every step, are ended by SIGKILL: the whole job
(its first process), one rank, or one worker of a loader; at any time from the start on, while it trains, or while a
checkpoint is being written. Each run is resumed until it finishes; its weights, optimiser state, losses and
encoder.safetensors must then equal those of an undisturbed run to the bit. A table of what was killed when is printed;
the exit code is 1 where anything was lost. Linux, where processes are found in /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triport import processes
from triport.core.data.datasets import open_dataset
from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.spec import DataSpec

RUNS = {1: ("tiny/test_mae_vit", ("job", "worker")), 2: ("tiny/test_moco_vit", ("job", "rank", "worker"))}
MOMENTS = ("any time", "training", "saving")
SETTINGS = ("batch=16", "schedule.epochs=6", "schedule.warmup_epochs=1", "monitor.knn_every=3", "--save-steps", "1")
IMAGES, HELD_OUT = 128, 32
TIMED = ("images_per_second", "data_seconds", "memory_gb")  # what the clock and the machine decide
PATIENCE = 300.0  # seconds after which a process that ought to end counts as left behind


@dataclass
class Tally:
    """What happened."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # (whom, when) -> kills
    in_writing: int = 0  # kills that left a checkpoint half written or half replaced
    unsaved: int = 0  # kills before the first checkpoint
    again: int = 0  # most steps that had to be done again
    finished: int = 0  # runs that were brought to their end and compared
    lost: list[str] = field(default_factory=list)  # what went wrong, a line each


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign and print its table; 1 where anything was lost."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200, metavar="N", help="kills (200)")
    p.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="begin no further run after these")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of the choice of victims and moments (0)")
    p.add_argument("--backend", default="torch", metavar="NAME", help="torch, paddle or oneflow (torch)")
    options = p.parse_args(argv)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="triport-kills-") as scratch:
        campaign = Campaign(Path(scratch), options.backend, random.Random(options.seed))
        with contextlib.suppress(KeyboardInterrupt):  # what was found until then is reported
            while campaign.tally.kills.total() < options.kills and not campaign.tally.lost:
                if time.monotonic() - begun > 60 * options.minutes:
                    break
                campaign.disturbed(1 + campaign.runs % 2, options.kills)
                minutes = (time.monotonic() - begun) / 60
                print(f"{campaign.tally.kills.total()} kills in {minutes:.0f} minutes", file=sys.stderr, flush=True)
    report(campaign.tally, time.monotonic() - begun)
    return 1 if campaign.tally.lost else 0


class Campaign:
    """Runs in a folder, each disturbed until it is finished."""

    def __init__(self, folder: Path, backend: str, draws: random.Random) -> None:
        self.folder, self.backend, self.draws = folder, backend, draws
        self.tally, self.runs = Tally(), 0
        self.data = write_images(folder / "data")
        self.whole: dict[int, Path] = {}  # processes -> an undisturbed run
        self.seconds: dict[int, float] = {}  # how long that took

    def start(self, world: int, run: Path, *more: str) -> subprocess.Popen[bytes]:
        """Start or resume a run."""
        words = [RUNS[world][0], *SETTINGS, "--data", str(self.data), "--out", str(run), "--workers", "1", "--quiet"]
        place = ["--backend", self.backend, "--processes", str(world)]
        with (self.folder / "said").open("wb") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", "triport", "pretrain", *words, *place, *more],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=printed,
                stderr=printed,
            )

    def undisturbed(self, world: int) -> Path:
        """Return a run that nothing disturbs, made once."""
        if world not in self.whole:
            begun, run = time.monotonic(), self.folder / f"whole-{world}"
            if self.start(world, run).wait() != 0:
                raise SystemExit(f"a run that nobody disturbs has failed: {self.printed()}")
            self.whole[world], self.seconds[world] = run, time.monotonic() - begun
        return self.whole[world]

    def printed(self) -> str:
        """The last line that the last run wrote."""
        lines = (self.folder / "said").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def disturbed(self, world: int, most: int) -> None:
        """Kill a run again and again until it has finished or `most` kills are done, then let it end and compare."""
        whole, run = self.undisturbed(world), self.folder / f"run-{self.runs}"
        self.runs += 1
        code: int | None = None
        while code != 0 and not self.tally.lost:
            process = self.start(world, run, *how_to_go_on(run))
            whom, known = self.kill(world, run, process) if self.tally.kills.total() < most else ("", [])
            code = ended(process, known, self.tally)
            if code != 0 and not self.explained(whom, code):
                self.tally.lost.append(f"{run.name}: exit code {code}: {self.printed()}")
            self.look(run)
        if not self.tally.lost:
            self.tally.finished += 1
            self.tally.lost += [f"{run.name}: {line}" for line in differences(whole, run)]
        shutil.rmtree(run, ignore_errors=True)

    def explained(self, whom: str, code: int | None) -> bool:
        """Say whether a run ended because of what was killed in it, and named that if it could."""
        if whom == "job":
            return code == -signal.SIGKILL
        return whom != "" and b"ended by SIGKILL" in (self.folder / "said").read_bytes()

    def kill(self, world: int, run: Path, process: subprocess.Popen[bytes]) -> tuple[str, list[int]]:
        """Kill one process of a run at a random moment, if it still runs; return whom, and the run's processes."""
        moment = self.draws.choice(MOMENTS)
        whom = self.draws.choice(RUNS[world][1])
        self.wait(moment, world, run, process)
        while process.poll() is None:
            known = [process.pid, *processes.descendants(process.pid)]
            victims = [pid for pid in known if role(pid, self.backend) == whom] if whom != "job" else [process.pid]
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.draws.choice(victims), signal.SIGKILL)
                    self.tally.kills[whom, moment] += 1
                    return whom, known
            time.sleep(0.002)  # it has not started yet
        return "", []

    def wait(self, moment: str, world: int, run: Path, process: subprocess.Popen[bytes]) -> None:
        """Wait for a random moment of this kind, or for the end of the run."""
        deadline = time.monotonic()
        if moment == "any time":
            deadline += self.draws.uniform(0, self.seconds[world])
        else:
            before = metrics_size(run)
            while process.poll() is None and metrics_size(run) == before:
                time.sleep(0.002)
            deadline = time.monotonic() + self.draws.uniform(0, 0.5)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        while moment == "saving" and process.poll() is None and not half_written(run):
            time.sleep(0.0002)

    def look(self, run: Path) -> None:
        """Check what a kill left: a whole checkpoint of the last step or the one before, once there is any."""
        if half_written(run):
            self.tally.in_writing += 1
        if not checkpoint.listed(run / "checkpoints"):
            self.tally.unsaved += 1
            return
        try:
            _, state = checkpoint.load(checkpoint.latest(run))
        except UserError as error:
            self.tally.lost.append(f"{run.name}: {error}")
            return
        again = max((line["step"] for line in lines(run, "step")), default=0) - state["step"]
        self.tally.again = max(self.tally.again, again)
        if again > 1:
            self.tally.lost.append(f"{run.name}: {again} steps lost, though every step is saved")


# ---------------------------------------------------------------- what lies on the disk
def write_images(folder: Path) -> Path:
    """Write some of the images that come with the project as train.npz and test.npz; return the folder."""
    folder.mkdir()
    for split, count in (("train", IMAGES), ("test", HELD_OUT)):
        source = open_dataset(None, "train" if split == "train" else "val", DataSpec(name="fashion-mnist"), 1)
        images = np.stack([np.asarray(source.image(index)) for index in range(count)])
        np.savez(folder / f"{split}.npz", images=images, labels=[source.label(index) for index in range(count)])
    return folder


def how_to_go_on(run: Path) -> list[str]:
    """Return the options that a user would give: none, --resume, or --overwrite where nothing was saved yet."""
    if checkpoint.listed(run / "checkpoints"):
        return ["--resume"]
    return ["--overwrite"] if run.exists() else []


def metrics_size(run: Path) -> int:
    """Return the bytes of a run's metrics."""
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def half_written(run: Path) -> list[str]:
    """Return the names of checkpoints that are being written or replaced."""
    found = (run / "checkpoints").glob("*.*")
    return [path.name for path in found if path.suffix in (".part", ".new", ".old")]


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl of a kind, without what the clock decides; the last may be cut off."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            found.append({name: value for name, value in values.items() if name not in TIMED})
    return [line for line in found if line["kind"] == kind]


def differences(whole: Path, run: Path) -> list[str]:
    """Return in what a finished run is not the undisturbed one, bit for bit; and what lies about."""
    found = []
    (one, known), (two, state) = (checkpoint.load(checkpoint.latest(folder)) for folder in (whole, run))
    for group in one:
        found += [
            f"{group}/{name} differs"
            for name in one[group]
            if name not in two[group] or one[group][name].tobytes() != two[group][name].tobytes()
        ]
    found += [f"{name} differs" for name in ("step", "closed", "best", "classes", "data") if known[name] != state[name]]
    found += [
        f"the {kind} lines of metrics.jsonl differ"
        for kind in ("step", "epoch")
        if lines(whole, kind) != lines(run, kind)
    ]
    if (whole / "encoder.safetensors").read_bytes() != (run / "encoder.safetensors").read_bytes():
        found.append("encoder.safetensors differs")
    return found + [f"{name} was left" for name in half_written(run)]


# ---------------------------------------------------------------- processes
def role(process: int, backend: str) -> str:
    """Return "rank", "worker" or "" for other processes of a run."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        if "core.data.worker" in command:
            return "worker"
        words = [word for word in command.split("\0")[1:] if word != "-u"]
        if words[:2] == ["-m", f"triport.backends.{backend}.pretrain"]:
            return "rank"
    return ""


def ended(process: subprocess.Popen[bytes], known: list[int], tally: Tally) -> int | None:
    """Wait for the end of a run and of all its processes, and return its exit code."""
    deadline = time.monotonic() + PATIENCE
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tally.lost.append("a run whose process was killed did not end")
        processes.end_all(process.pid, known)
        process.kill()
        return process.wait()
    while (left := [pid for pid in known if processes.is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    if left:
        tally.lost.append(f"{len(left)} processes were left behind")
        processes.end_all(os.getpid(), left)
    return code


def report(tally: Tally, seconds: float) -> None:
    """Print the table."""
    print(f"{'killed':<8}" + "".join(f"{moment:>10}" for moment in MOMENTS))
    for whom in ("job", "rank", "worker"):
        print(f"{whom:<8}" + "".join(f"{tally.kills[whom, moment]:>10}" for moment in MOMENTS))
    print(f"{tally.kills.total()} kills in {seconds / 60:.1f} minutes, {tally.unsaved} before the first checkpoint, "
          f"{tally.in_writing} while a checkpoint was written; most steps done again: {tally.again}")  # fmt: skip
    print(f"{tally.finished} runs finished, all equal to the undisturbed one to the bit, nothing lost"
          if not tally.lost else "\n".join(["LOST:", *tally.lost]))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
