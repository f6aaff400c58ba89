"""Whole runs with degrees: from an original's file, under both launchers, evaluated, killed, resumed elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triport.core.record import checkpoint
from triport.core.spec.recipe import load
from triport.parity_tests.backends.test_oneflow_launch import finished, gone, launcher, python, started, until
from triport.parity_tests.backends.test_runs import ROOT, alive, cmdline, descendants, losses, weights
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance

pytestmark = pytest.mark.framework("oneflow")
# Mixup mixes within what one process loads, so it would differ between numbers of processes.
SMALL = ("batch=32", "schedule.epochs=1", "schedule.warmup_epochs=0", "mix.mixup=0", "mix.cutmix=0", "--workers", "0")
DATA = ("--data", toy.sixteens())
FAST = (*SMALL, "optimizer.lr=0.05", *DATA)  # high, so that a few steps lead somewhere
TUNE = ("tiny/test_mae_finetune", *FAST)
KINDS = {"pytorch": "mae.pth", "oneflow": "libai", "triport": "mae.safetensors"}
STEPS = 4


def plain(folder, *words):
    """A run in one process."""
    return finished(started([python(), "-m", *map(str, words)], folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of both methods, drawn, as ours, as the originals' files and as LiBai's folder."""
    folder = tmp_path_factory.mktemp("files")
    for method in ("mae", "moco"):
        save_file(small.arrays(load(f"tiny/test_{method}_vit").model), folder / f"{method}.safetensors")
    for method, target, layout in (
        ("mae", "mae.pth", "mae"),
        ("mae", "libai", "libai-0.1"),
        ("moco", "moco.pth.tar", "moco-v3"),
    ):
        command = [sys.executable, "-m", "weights", "convert", folder / f"{method}.safetensors", folder / target]
        command += ["--to", layout, "--recipe", f"tiny/test_{method}_vit"]
        subprocess.run([str(word) for word in command], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tuned(files, tmp_path_factory):
    """Some steps of the plain backend, in one process, by method."""
    runs = {}
    for method in ("mae", "moco"):
        runs[method] = tmp_path_factory.mktemp(method) / "run"
        words = (f"tiny/test_{method}_finetune", *FAST, "--weights", files / f"{method}.safetensors")
        plain(
            runs[method].parent, "triport.backends.oneflow.finetune", *words, "--out", runs[method], *until_step(STEPS)
        )
    return runs


def until_step(count):
    return ("--stop-after-steps", str(count))


def in_parts(folder, *words, processes=2, module="libai.finetune", **how):
    command = launcher("-m", f"triport.backends.oneflow.{module}", *words)
    command[command.index("--nproc_per_node") + 1] = str(processes)
    return started(command, folder, **how)


def close(one, two, what, steps=STEPS):
    """Losses are held; single weights wander where Adam turns rounding into steps."""
    pairs = list(zip(losses(one), losses(two), strict=True))
    assert len(pairs) == steps
    for i, (a, b) in enumerate(pairs):
        hold("training", abs(a - b) / abs(a), f"{what}, loss of step {i}")


@pytest.mark.parametrize("style", KINDS)
def test_each_style_of_weights_goes_into_a_mesh_with_a_report(tmp_path, files, tuned, style):
    settings = ("finetune.enable=true", f"finetune.weight_style={style}", f"finetune.path={files / KINDS[style]}")
    words = (*TUNE, *settings, "--tensor-parallel", 2, "--out", tmp_path / "run", *until_step(STEPS))
    printed, _ = finished(in_parts(tmp_path, *words))
    assert "data 1 x tensor 2 x pipeline 1, eager" in printed
    assert "28 arrays of layout" in printed and "newly initialised: fc_norm.weight, fc_norm.bias" in printed
    close(tuned["mae"], tmp_path / "run", style)


def test_a_file_of_moco_v3_goes_into_a_pipeline(tmp_path, files, tuned):
    path = files / "moco.pth.tar"
    settings = ("finetune.enable=true", "finetune.weight_style=pytorch", f"finetune.path={path}")
    words = ("tiny/test_moco_finetune", *FAST, *settings, "--pipeline-parallel", 2, "--out", tmp_path / "run")
    printed, _ = finished(in_parts(tmp_path, *words, *until_step(STEPS)))
    assert f"encoder from {path}" in printed and "30 arrays of layout moco-v3" in printed
    close(tuned["moco"], tmp_path / "run", "moco")


CONFIG = """
from libai.config import LazyCall
from libai.models import VisionTransformer
finetune = dict(enable=True, weight_style="pytorch", path="{weights}")
recipe = dict(name="tiny/test_mae_finetune")
model = LazyCall(VisionTransformer)(img_size=16, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=2)
graph = dict(enabled=True)
optim = dict(lr=0.00625)  # 0.05 at batch 256
train = dict(
    output_dir="{out}", train_micro_batch_size=32, train_epoch=1, warmup_ratio=0, checkpointer=dict(period=2),
    dist=dict(tensor_parallel_size=1, pipeline_parallel_size=2),
)
"""


def test_the_launcher_starts_a_lazy_config_whose_run_libai_could_go_on_with(tmp_path, files, tuned):
    """A compiled pipeline; LiBai's folder holds the optimiser of OneFlow as it would stand, and LiBai's metrics."""
    config, out, libai = tmp_path / "config.py", tmp_path / "run", tmp_path / "libai"
    config.write_text(CONFIG.format(weights=files / "mae.pth", out=out))
    command = [
        sys.executable,
        "-m",
        "triport",
        "finetune",
        "--libai-config",
        config,
        "--backend",
        "oneflow",
        *TUNE[4:-3],
        *DATA,
    ]
    command += ["--processes", "2", "--libai-out", libai, *until_step(STEPS)]
    printed, errors = finished(started(list(map(str, command)), ROOT))
    assert "pipeline 2, compiled" in printed and "batch 32 = 2 processes" in printed and not errors
    close(tuned["mae"], out, "roof")
    lines = [json.loads(line) for line in (libai / "metrics.json").read_text().splitlines()]
    assert [line["total_loss"] for line in lines] == losses(out) and lines[-1]["iteration"] == STEPS - 1
    assert {path.name for path in libai.glob("model_*")} == {"model_0000001", "model_0000003", "model_final"}
    asked = Question("optimizer_in", {"path": str(libai / "model_final"), "recipe": "tiny/test_mae_finetune"})
    (found,) = ask("oneflow", [asked], probe="triport.parity_tests.fixtures.libai_trial")
    saved = weights(out, "optimizer")
    assert found["step"] == saved["step"] == STEPS
    for slot in ("exp_avg", "exp_avg_sq"):
        for name in ("patch_embed.proj.weight", "blocks.1.norm1.bias", "head.bias"):
            assert np.array_equal(found[f"{slot}/{name}"], saved[f"{slot}/{name}"])


def test_a_run_begun_on_one_mesh_goes_on_on_another_and_in_one_piece(tmp_path, files, tuned):
    begun = (*TUNE, "--weights", files / "mae.safetensors", "--out", tmp_path / "run", *until_step(1))
    finished(in_parts(tmp_path, *begun, "--tensor-parallel", 2))
    again = ("--resume", tmp_path / "run", "--workers", 0, *DATA)
    finished(in_parts(tmp_path, *again, *until_step(3), "--data-parallel", 2))
    plain(tmp_path, "triport.backends.oneflow.finetune", *again, *until_step(STEPS))
    close(tuned["mae"], tmp_path / "run", "handed on")
    name = "blocks.1.mlp.fc1.weight"
    assert distance(weights(tmp_path / "run")[name], weights(tuned["mae"])[name]) < 1e-3


def test_a_killed_mesh_goes_on_to_the_same_bits(tmp_path, files):
    words = (*TUNE, "--weights", files / "mae.safetensors", "--tensor-parallel", 2, "--save-steps", 1, *until_step(5))
    finished(in_parts(tmp_path, *words, "--out", tmp_path / "whole"))
    process = in_parts(tmp_path, *words, "--out", tmp_path / "killed")
    until(lambda: (tmp_path / "killed" / "metrics.jsonl").exists() and len(losses(tmp_path / "killed")) >= 2)
    ranks = [pid for pid in descendants(process.pid) if b"tiny/" in cmdline(pid) and b"launch" not in cmdline(pid)]
    os.kill(ranks[-1], signal.SIGKILL)
    process.communicate(timeout=180)
    gone(ranks)
    assert not any(alive(pid) for pid in ranks)
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "killed"))["step"] > 0
    more = ("--resume", tmp_path / "killed", "--workers", 0, *DATA, "--tensor-parallel", 2, *until_step(5))
    finished(in_parts(tmp_path, *more))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_evaluation_alone_is_the_same_on_one_process_and_on_two(tmp_path, files):
    """On the shipped images, of which some steps learn enough to give different answers."""
    run, scores = tmp_path / "run", {}
    words = ("tiny/test_mae_finetune", *SMALL, "optimizer.lr=0.05", "--weights", files / "mae.safetensors")
    plain(tmp_path, "triport.backends.oneflow.finetune", *words, "--out", run, *until_step(STEPS))
    for name, more, processes in (("one", (), 1), ("two", ("--tensor-parallel", 2), 2)):
        out = tmp_path / f"{name}.json"
        given = (run, "--eval-only", "--workers", 0, "--out", out, *more)
        finished(in_parts(tmp_path, *given, processes=processes))
        scores[name] = json.loads(out.read_text())
    plain(tmp_path, "triport.backends.oneflow.evaluate", run, "--workers", 0, "--out", tmp_path / "plain.json")
    scores["plain"] = json.loads((tmp_path / "plain.json").read_text())
    assert {found["images"] for found in scores.values()} == {2000}
    assert scores["one"]["right"] == scores["two"]["right"] == scores["plain"]["right"] > 200
    assert all(abs(found["top1"] - found["right"] / 2000) < 1e-12 for found in scores.values())


@pytest.mark.parametrize(("method", "file", "degree"), [("mae", "mae.pth", "data"), ("moco", "moco.pth.tar", "tensor")])
def test_a_linear_probe_in_parts_leaves_the_encoder_as_it_is(tmp_path, files, method, file, degree):
    """And gives the losses of the plain backend."""
    words = (
        f"tiny/test_{method}_linear",
        "batch=40",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "--workers",
        0,
        *DATA,
    )
    given = (*words, "--weights", files / file)
    printed, _ = finished(
        in_parts(tmp_path, *given, f"--{degree}-parallel", 2, "--out", tmp_path / "run", module="linear")
    )
    assert "the frozen encoder is bit-equal" in printed
    plain(tmp_path, "triport.backends.oneflow.linear", *given, "--out", tmp_path / "plain")
    close(tmp_path / "plain", tmp_path / "run", method, steps=8)
    begun = load_file(files / f"{method}.safetensors")
    name = "blocks.0.attn.qkv.weight"
    assert np.array_equal(weights(tmp_path / "run")[name], begun[name if method == "mae" else f"base_encoder.{name}"])


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("--graph", "--pipeline-parallel", 2, "--accumulate", 2), "wrong numbers"),
        (("--tensor-parallel", 3), "make 3 processes, started were 1"),
        (("finetune.enable=true", "finetune.path=nowhere"), "is not there"),
        (("finetune.path={mae}", "finetune.weight_style=pytorch", "model.encoder.width=64"), "mae.pth"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, files, words, printed):
    """Among it: weights that fit nothing in the model."""
    given = [str(word).format(mae=files / "mae.pth") for word in words]
    more = () if "finetune." in given[0] else ("--weights", str(files / "mae.safetensors"))
    process = started([python(), "-m", "triport.backends.oneflow.finetune", *map(str, TUNE), *given, *more], tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("\n") == 1 and printed in errors, errors
    assert not (tmp_path / "runs").exists()
