"""The demo's runs: each is what a user would type, in a process of its own, and goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from triport import environments
from triport.core.errors import UserError
from triport.core.machine import die_with_parent
from triport.core.spec import recipe

ENCODER = "encoder.safetensors"  # which a run writes last
# Of short runs that nobody looks at: their time is for steps.
UNWATCHED = ("monitor.knn_every=0", "monitor.probe=false", "monitor.baselines=false", "monitor.pictures=false")


def pretrain(run: Path, name: str, backend: str, overrides: Sequence[str]) -> bool:
    """Pretrain into the folder and return True; what is finished is taken as it is, what was interrupted goes on."""
    if (run / ENCODER).exists():
        if recipe.load(str(run / "recipe.toml")) != recipe.load(name, overrides):
            raise UserError(f"{run} holds a run with other settings: name another --out, or remove it.")
        print(f"(finished already, in {run})", flush=True)
        return False
    words = ["pretrain", name, *overrides, "--backend", backend]
    if (run / "checkpoints").is_dir():
        print(f"(going on with the run in {run})", flush=True)
        if triport([*words, "--resume", str(run)]) == 0:
            return True
        print("(it cannot go on: beginning again)", flush=True)
    clear(run)
    if code := triport([*words, "--out", str(run)]):
        raise UserError(f"the pretraining ended with exit code {code}; see its messages above.")
    return True


def beside(run: Path, name: str, backend: str, overrides: Sequence[str], steps: int) -> None:
    """Run the first steps of the same pretraining on another framework."""
    if last_step(run) >= steps:
        print(f"(finished already, in {run})", flush=True)
        return
    clear(run)
    words = ["--out", str(run), "--stop-after-steps", str(steps)]
    if code := triport(["pretrain", name, *overrides, "--backend", backend, *words]):
        raise UserError(f"the run on {backend} ended with exit code {code}; see its messages above.")


def clear(run: Path) -> None:
    """Remove what an interrupted demo left of a run."""
    if (run / "recipe.toml").exists():
        shutil.rmtree(run)


def command(words: Sequence[str]) -> list[str]:
    """What is started for `triport …`."""
    return [sys.executable, "-m", "triport", *words]


def triport(words: Sequence[str]) -> int:
    """Run `triport …` as a user would and return its exit code."""
    return subprocess.run(command(words), **surroundings()).returncode


def surroundings() -> dict[str, Any]:
    """How the demo starts a process: with the project on its path, and to end when the demo ends, however that does."""
    ended = partial(die_with_parent, signal.SIGTERM, os.getpid())
    return {"env": environments.with_project(os.environ), "preexec_fn": ended}


def records(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl; none where it has not begun."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line]


def curve(run: Path) -> dict[float, float]:
    """Return epoch -> kNN accuracy."""
    return {record["epoch"]: record["knn"] for record in records(run) if "knn" in record}


def losses(run: Path) -> dict[int, float]:
    """Return step -> loss."""
    return {int(record["step"]): record["loss"] for record in records(run) if record["kind"] == "step"}


def last_step(run: Path) -> int:
    """Return the last step that is recorded, 0 where there is none."""
    return max(losses(run), default=0)
