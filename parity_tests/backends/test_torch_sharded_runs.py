"""Runs with --shard: checkpoints hold whole tensors, so that a run goes on with divided weights or without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triport.core.record import checkpoint
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance

pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {"moco": "tiny/test_moco_vit", "mae": "tiny/test_mae_vit"}
GIVEN = ("batch=12", "schedule.warmup_epochs=0", "schedule.epochs=1", "monitor.knn_every=1", "--workers", "0")


def run(task, *given, processes=1, shard=False, code=0):
    command = [sys.executable, "-m", "triport", task, *map(str, given), "--backend", "torch", "--device", "cpu"]
    command += ["--processes", str(processes)] if processes > 1 else []
    command += ["--shard"] if shard else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stderr


def arrays(folder):
    return checkpoint.load(checkpoint.latest(folder))[0]


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]
