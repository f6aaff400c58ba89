"""A run that is begun on one framework goes on in another, and back, as if nothing had happened."""

from __future__ import annotations

import itertools
import os
import subprocess
from functools import cache

import numpy as np
import pytest

from core import checkpoint
from parity_tests.bounds import hold
from parity_tests.questions import distance
from parity_tests.test_backend_runs import ROOT, losses
from triport import environments

SMALL = ("batch=16", "schedule.warmup_epochs=0", "monitor.knn_every=0", "--workers", "0")
PAIRS = [
    pytest.param(*pair, id="-".join(pair), marks=[pytest.mark.framework(name) for name in pair])
    for pair in itertools.combinations(environments.FRAMEWORKS, 2)
]
RUNS = {
    "moco": ("pretrain", "tiny/test_moco_vit"),
    "mae": ("pretrain", "tiny/test_mae_vit"),
    "finetune": ("finetune", "tiny/test_moco_finetune", "--from-scratch"),  # with averaged weights
}


def train(framework, kind, folder, until, *more):
    """Train to step `until` in the framework's own interpreter."""
    task, *words = RUNS[kind]
    command = [str(environments.require(framework)), "-m", f"backends.{framework}.{task}", *words, *SMALL, *more]
    command += ["--out", str(folder), "--stop-after-steps", str(until)]
    answer = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@cache
def whole(framework, kind, folder):
    train(framework, kind, folder, 10)
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_there_and_back_again(first, second, kind, tmp_path, runs):
    train(first, kind, tmp_path / "run", 4)
    said = train(second, kind, tmp_path / "run", 7, "--resume")
    assert f"with backend {first} -> {second}" in said
    train(first, kind, tmp_path / "run", 10, "--resume")
    one, two = whole(first, kind, runs / f"{first}-{kind}"), tmp_path / "run"
    for i, (a, b) in enumerate(zip(losses(one), losses(two), strict=True)):
        hold("training", abs(a - b) / abs(a), f"{kind} from {first} to {second} and back, loss of step {i}")
    groups, others = (checkpoint.load(checkpoint.latest(folder))[0] for folder in (one, two))
    for part in groups:
        assert set(groups[part]) == set(others[part])
        for name, array in groups[part].items():
            assert array.dtype == others[part][name].dtype and np.isfinite(others[part][name]).all(), name
            if name.endswith(("mlp.fc1.weight", "num_batches_tracked", "step")):
                assert distance(others[part][name], array) < 1e-3, (part, name)
