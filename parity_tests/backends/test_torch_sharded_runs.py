"""Runs with --shard: checkpoints hold whole tensors, so that a run goes on with divided weights or without."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from triport.core.record import checkpoint
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance

pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {"moco": "tiny/test_moco_vit", "mae": "tiny/test_mae_vit"}
GIVEN = ("batch=12", "schedule.warmup_epochs=0", "schedule.epochs=2", "monitor.knn_every=1", "--workers", "0")
STEPS = 6


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """36 training and 12 test images of three classes."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.normal(60 + 50 * label, 30, (20, 20)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def run(task, *given, processes=1, shard=False, code=0):
    """Run the command line and return what it printed as errors."""
    command = [sys.executable, "-m", "triport", task, *map(str, given), "--backend", "torch", "--device", "cpu"]
    command += ["--processes", str(processes)] if processes > 1 else []
    command += ["--shard"] if shard else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stderr


def groups(folder):
    found = checkpoint.load(checkpoint.latest(folder))[0]
    return {f"{stem}/{name}": array for stem, group in found.items() for name, array in group.items()}


def recorded(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in recorded(folder) if line["kind"] == "step"]


def scores(folder):
    return [line["knn"] for line in recorded(folder) if line["kind"] == "epoch" and "knn" in line]


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Of each method a run of one process, and one of two with divided weights; of MoCo's also the first steps."""
    root = tmp_path_factory.mktemp("runs")
    for kind, recipe in RECIPES.items():
        given = (recipe, *GIVEN, "--data", images)
        run("pretrain", *given, "--out", root / f"{kind} one")
        assert (
            run("pretrain", *given, "--out", root / f"{kind} two", processes=2, shard=True) == ""
        )  # a quiet framework
    first = (RECIPES["moco"], *GIVEN, "--data", images, "--stop-after-steps", 2)
    run("pretrain", *first, "--out", root / "begun whole")
    run("pretrain", *first, "--out", root / "begun", processes=2, shard=True)
    return root


def alike(folder, one, what):
    found, wanted = losses(folder), losses(one)
    assert len(found) == len(wanted) == STEPS
    for step, (ours, theirs) in enumerate(zip(found, wanted)):
        hold("training", abs(ours - theirs) / abs(theirs), f"{what}: loss {step}")


def shapes(arrays):
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_run_with_divided_weights_is_that_of_one_process(runs, kind):
    one, two = runs / f"{kind} one", runs / f"{kind} two"
    alike(two, one, f"{kind} sharded")
    assert shapes(load_file(one / "encoder.safetensors")) == shapes(load_file(two / "encoder.safetensors"))
    assert shapes(groups(one)) == shapes(groups(two))
    assert scores(two) == pytest.approx(scores(one), abs=0.2) and len(scores(two)) >= 2
    assert "divided among 2 processes" in (two / "train.log").read_text()


def test_a_divided_run_in_parts_is_the_same_bits(runs, images, tmp_path):
    shutil.copytree(runs / "begun", tmp_path / "run")
    run("pretrain", "--resume", tmp_path / "run", "--data", images, "--workers", 0, processes=2, shard=True)
    whole, parts = groups(runs / "moco two"), groups(tmp_path / "run")
    assert whole.keys() == parts.keys() and all(np.array_equal(array, parts[name]) for name, array in whole.items())
    assert losses(tmp_path / "run") == losses(runs / "moco two")


@pytest.mark.parametrize(
    ("begun", "processes", "shard"),
    [("begun", 1, False), ("begun", 3, True), ("begun whole", 2, True)],
)
def test_a_run_goes_on_with_divided_weights_or_without(runs, images, tmp_path, begun, processes, shard):
    shutil.copytree(runs / begun, tmp_path / "run")
    run("pretrain", "--resume", tmp_path / "run", "--data", images, "--workers", 0, processes=processes, shard=shard)
    alike(tmp_path / "run", runs / "moco one", f"{begun}, then {processes} processes{' sharded' if shard else ''}")


def test_fine_tuning_with_divided_weights_is_that_with_whole_ones(images, tmp_path):
    """But for the rounding of the clipped norm; with averaged weights and activations that are computed twice."""
    given: tuple[Any, ...] = ("tiny/test_mae_finetune", "--data", images, "--from-scratch", "batch=12", "--workers", 0)
    given = (*given, "optimizer.average=0.9", "schedule.epochs=2", "schedule.warmup_epochs=0")
    given = (*given, "--checkpoint-activations")  # micro-batches would be added in another order
    for name in ("whole", "divided"):
        run("finetune", *given, "--out", tmp_path / name, processes=2, shard=name == "divided")
    whole, divided = groups(tmp_path / "whole"), groups(tmp_path / "divided")
    assert whole.keys() == divided.keys() and any(name.startswith("optimizer/average/") for name in whole)
    for name, array in whole.items():
        if name.startswith(("model/", "optimizer/average/")):
            hold("processes", distance(divided[name], array), f"fine-tuned: {name}")
    alike(tmp_path / "divided", tmp_path / "whole", "fine-tuned")
    found = [[line["top1"] for line in recorded(tmp_path / name) if "top1" in line] for name in ("whole", "divided")]
    assert found[0] == found[1] and len(found[0]) >= 2


@pytest.mark.parametrize("task", [("pretrain", "tiny/test_mae_vit"), ("linear", "tiny/test_mae_linear")])
def test_shard_without_anything_to_divide_is_one_line(images, tmp_path, task):
    scratch = ("--from-scratch",) if task[0] == "linear" else ()
    error = run(*task, *scratch, "--data", images, "batch=12", "--out", tmp_path / "run", shard=True, code=2)
    assert error.count("\n") == 1 and "--shard" in error and "leave it out" in error
