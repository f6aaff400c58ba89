"""Toy runs for the tests of the loop: 96 images of 8 x 8, batches of 16, so 6 steps to an epoch and 3 epochs."""

from __future__ import annotations

import json
import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import checkpoint, run
from core.dice import generator
from parity_tests.numpy_learner import BACKEND, Learner, start

PER_EPOCH, EPOCHS = 6, 3
TOTAL = PER_EPOCH * EPOCHS

HOME = tempfile.TemporaryDirectory(prefix="toy-")  # of what is made once and used by many tests
SIZE = ["image=8", "batch=16", f"epochs={EPOCHS}", "warmup=1", "monitor.knn_neighbours=5", "optimizer.lr_batch=16"]
RECIPES = {
    "moco": ["pretrain", "tiny/test_moco_vit", "model.encoder.frozen_patch=false", "lr=0.5", *SIZE],
    "mae": ["pretrain", "tiny/test_mae_vit", "lr=0.2", *SIZE],
    "finetune": [
        "finetune",
        "tiny/test_mae_finetune",
        "--from-scratch",
        "lr=0.5",
        "model.objective.head_std=0.1",
        *SIZE,
    ],
    "linear": ["linear", "tiny/test_moco_linear", "lr=0.5", *SIZE],
}
TASKS = {"pretrain": run.pretrain, "linear": run.linear, "finetune": run.finetune, "evaluate": run.evaluate}


def make_data(folder: Path, train: int = 96, test: int = 40, classes: int = 10, size: int = 8) -> Path:
    """Write train.npz and test.npz of classes that differ in brightness and in stripes; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        dice = generator(0, split)
        labels = dice.permutation(np.arange(count) % classes)
        images = dice.integers(0, 20, (count, size, size, 1)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image += np.uint8(20 * (label % 5))
            image[:: 2 if label < 5 else 1, :: 1 if label < 5 else 2] += 100
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return folder


@lru_cache
def shared_data() -> Path:
    """The data of most tests."""
    return make_data(Path(HOME.name) / "data")


def command(kind: str, out: Path | None, *more: str, data: Path | None = None) -> list[str]:
    """A toy run's command line."""
    place = [] if out is None else ["--out", str(out)]
    start = ["--from-scratch"] if kind == "finetune" and "--weights" not in more else []
    return [*RECIPES[kind], *start, "--data", str(data or shared_data()), *place, "--workers", "0", *more]


def go(kind: str, out: Path | None, *more: str, backend: run.Backend = BACKEND, data: Path | None = None) -> int:
    """Do a toy run here and return its exit code."""
    task, *rest = command(kind, out, *more, data=data)
    return TASKS[task](rest, backend=backend)


@lru_cache
def whole(kind: str, *more: str) -> Path:
    """The folder of an uninterrupted run; look, but do not touch."""
    folder = Path(tempfile.mkdtemp(dir=HOME.name)) / "run"
    assert go(kind, folder, *more) == 0
    return folder


def metrics(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "data_seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in found if line["kind"] == kind]


def last(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A run's last arrays as bytes, and its state."""
    groups, state = checkpoint.load(checkpoint.latest(folder))
    return {f"{stem}/{name}": a.tobytes() for stem, group in groups.items() for name, a in group.items()}, state


def assert_same_run(one: Path, other: Path) -> None:
    """Every number of two runs is equal, bit for bit."""
    assert metrics(one) == metrics(other)
    assert metrics(one, "epoch") == metrics(other, "epoch")
    (arrays, state), (arrays2, state2) = last(one), last(other)
    assert arrays == arrays2
    for key in ("step", "closed", "epoch", "best", "losses", "metrics", "rollbacks"):
        assert state[key] == state2[key], key


def failed(capsys: pytest.CaptureFixture[str], code: int, wanted: int = 2) -> str:
    """Check that a run ended with one line for the user, and return it."""
    said = capsys.readouterr()
    assert code == wanted, said
    assert re.fullmatch(r"triport: error: .+\n", said.err), said.err
    return said.err


def learner_that(**methods: Any) -> run.Backend:
    """A backend whose learner has other methods."""
    kind = type("Other", (Learner,), methods)
    return run.Backend("numpy", start, lambda r, a, *, processes, **_: kind(r, a, processes))


def evaluate(*words: str, backend: run.Backend = BACKEND) -> int:
    """Evaluate on the shared data and return the exit code."""
    return run.evaluate([*words, "--data", str(shared_data()), "--workers", "0"], backend=backend)
