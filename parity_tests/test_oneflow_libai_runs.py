"""Whole runs with degrees: from an original's file, under both launchers, evaluated, killed, resumed elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from core import checkpoint
from parity_tests.bounds import hold
from parity_tests.questions import distance
from parity_tests.test_backend_runs import ROOT, alive, cmdline, descendants, losses, weights
from parity_tests.test_oneflow_launch import finished, gone, launcher, python, started, until

pytestmark = pytest.mark.framework("oneflow")
# Mixup mixes within what one process loads, so it would differ between numbers of processes.
SMALL = ("batch=32", "schedule.epochs=1", "schedule.warmup_epochs=0", "mix.mixup=0", "mix.cutmix=0", "--workers", "0")
TUNE = ("tiny/test_mae_finetune", *SMALL, "optimizer.lr=0.05")  # high, so that six steps lead somewhere
KINDS = {"pytorch": "mae.pth", "oneflow": "libai", "triport": "run"}


def plain(folder, *words):
    """A run in one process."""
    return finished(started([python(), "-m", *map(str, words)], folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pretraining run of MAE, and its weights as the original's file and as LiBai's folder."""
    folder = tmp_path_factory.mktemp("files")
    few = ("batch=64", "monitor.knn_every=0", "--workers", "0", "--stop-after-steps", "2")
    plain(folder, "backends.oneflow.pretrain", "tiny/test_mae_vit", *few, "--out", folder / "run")
    source = folder / "run" / "checkpoints" / "last" / "model.safetensors"
    for target, layout in (("mae.pth", "mae"), ("libai", "libai-0.1")):
        command = [sys.executable, "-m", "weights", "convert", source, folder / target, "--to", layout]
        command += ["--recipe", "tiny/test_mae_vit"]
        subprocess.run([str(word) for word in command], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tuned(files, tmp_path_factory):
    """Six steps of the plain backend, in one process."""
    folder = tmp_path_factory.mktemp("tuned")
    words = ("backends.oneflow.finetune", *TUNE, "--weights", files / "run", "--out", folder / "run")
    plain(folder, *words, "--stop-after-steps", 6)
    return folder / "run"


def in_parts(folder, *words, processes=2, module="libai_finetune", **how):
    command = launcher("-m", f"backends.oneflow.{module}", *words)
    command[command.index("--nproc_per_node") + 1] = str(processes)
    return started(command, folder, **how)


def close(one, two, what, steps=6):
    """Losses are held; single weights wander where Adam turns rounding into steps."""
    pairs = list(zip(losses(one), losses(two), strict=True))
    assert len(pairs) == steps
    for i, (a, b) in enumerate(pairs):
        hold("training", abs(a - b) / abs(a), f"{what}, loss of step {i}")


@pytest.mark.parametrize("style", KINDS)
def test_each_style_of_weights_goes_into_a_mesh_with_a_report(tmp_path, files, tuned, style):
    settings = ("finetune.enable=true", f"finetune.weight_style={style}", f"finetune.path={files / KINDS[style]}")
    words = (*TUNE, *settings, "--tensor-parallel", 2, "--out", tmp_path / "run", "--stop-after-steps", 6)
    said, _ = finished(in_parts(tmp_path, *words))
    assert "data 1 x tensor 2 x pipeline 1, eager" in said
    assert "28 arrays of layout" in said and "drawn anew: fc_norm.weight, fc_norm.bias" in said
    close(tuned, tmp_path / "run", style)


def test_the_roof_starts_a_mesh(tmp_path, files, tuned):
    command = [sys.executable, "-m", "triport", "finetune", *TUNE, "--weights", str(files / "run")]
    command += ["--backend", "oneflow", "--processes", "2", "--pipeline-parallel", "2", "--graph"]
    said, _ = finished(started([*command, "--out", str(tmp_path / "run"), "--stop-after-steps", "6"], ROOT))
    assert "pipeline 2, compiled" in said
    close(tuned, tmp_path / "run", "roof")


def test_a_run_begun_on_one_mesh_goes_on_on_another_and_in_one_piece(tmp_path, files, tuned):
    begun = (*TUNE, "--weights", files / "run", "--out", tmp_path / "run", "--stop-after-steps")
    finished(in_parts(tmp_path, *begun, 2, "--tensor-parallel", 2))
    finished(
        in_parts(tmp_path, "--resume", tmp_path / "run", "--workers", 0, "--stop-after-steps", 4, "--data-parallel", 2)
    )
    plain(tmp_path, "backends.oneflow.finetune", "--resume", tmp_path / "run", "--workers", 0, "--stop-after-steps", 6)
    close(tuned, tmp_path / "run", "handed on")
    name = "blocks.1.mlp.fc1.weight"
    assert distance(weights(tmp_path / "run")[name], weights(tuned)[name]) < 1e-3


def test_a_killed_mesh_goes_on_to_the_same_bits(tmp_path, files):
    words = (*TUNE, "--weights", files / "run", "--tensor-parallel", 2, "--save-steps", 1, "--stop-after-steps", 6)
    finished(in_parts(tmp_path, *words, "--out", tmp_path / "whole"))
    process = in_parts(tmp_path, *words, "--out", tmp_path / "killed")
    until(lambda: (tmp_path / "killed" / "metrics.jsonl").exists() and len(losses(tmp_path / "killed")) >= 2)
    ranks = [pid for pid in descendants(process.pid) if b"tiny/" in cmdline(pid) and b"launch" not in cmdline(pid)]
    os.kill(ranks[-1], signal.SIGKILL)
    process.communicate(timeout=180)
    gone(ranks)
    assert not any(alive(pid) for pid in ranks)
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "killed"))["step"] > 0
    more = ("--resume", tmp_path / "killed", "--workers", 0, "--tensor-parallel", 2, "--stop-after-steps", 6)
    finished(in_parts(tmp_path, *more))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_evaluation_alone_is_the_same_on_one_process_and_on_two(tmp_path, tuned):
    scores = {}
    for name, words, processes in (("one", ("--eval-only",), 1), ("two", ("--eval-only", "--tensor-parallel", 2), 2)):
        out = tmp_path / f"{name}.json"
        finished(in_parts(tmp_path, tuned, "--workers", 0, "--out", out, *words, processes=processes))
        scores[name] = json.loads(out.read_text())
    plain(tmp_path, "backends.oneflow.evaluate", tuned, "--workers", 0, "--out", tmp_path / "plain.json")
    want = json.loads((tmp_path / "plain.json").read_text())
    for name, found in scores.items():
        assert found["images"] == want["images"] == 2000, name
        assert abs(found["right"] - want["right"]) <= 2 and abs(found["top1"] - found["right"] / 2000) < 1e-12, name


def test_a_linear_probe_in_parts_leaves_the_encoder_as_it_is(tmp_path, files):
    words = ("tiny/test_mae_linear", "batch=1000", "schedule.epochs=1", "schedule.warmup_epochs=0", "--workers", 0)
    more = ("--weights", files / "mae.pth", "--data-parallel", 2, "--out", tmp_path / "run")
    said, _ = finished(in_parts(tmp_path, *words, *more, module="linear"))
    assert "the frozen encoder is bit-equal" in said
    name = "blocks.0.attn.qkv.weight"
    assert np.array_equal(weights(tmp_path / "run")[name], weights(files / "run")[name])


def test_the_result_is_left_in_libais_form(tmp_path, files):
    words = (*TUNE, "--weights", files / "run", "--tensor-parallel", 1, "--stop-after-steps", 1)
    plain(tmp_path, "backends.oneflow.finetune", *words, "--out", tmp_path / "run", "--libai-out", tmp_path / "libai")
    assert (tmp_path / "libai" / "last_checkpoint").read_text() == "model_final"
    from weights import load_weights

    back = load_weights(tmp_path / "libai", from_="libai-mae-finetune-0.1", heads=2)
    want = weights(tmp_path / "run")
    assert set(back) == set(want) and all(np.array_equal(back[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--graph", "--pipeline-parallel", 2, "--accumulate", 2), "wrong numbers"),
        (("--tensor-parallel", 3), "make 3 processes, started were 1"),
        (("finetune.path=nowhere",), "is not there"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, files, words, said):
    given = (*TUNE, *map(str, words), *(() if said == "is not there" else ("--weights", str(files / "run"))))
    process = started([python(), "-m", "backends.oneflow.libai_finetune", *given], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("\n") == 1 and said in errors, errors
    assert not (tmp_path / "runs").exists()


def test_weights_that_match_nothing_are_an_error(tmp_path, files):
    words = (*TUNE, "model.encoder.width=64", f"finetune.path={files / 'mae.pth'}", "finetune.weight_style=pytorch")
    process = started([python(), "-m", "backends.oneflow.libai_finetune", *words], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("\n") == 1 and "mae.pth" in errors, errors
