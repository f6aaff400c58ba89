"""Whole runs of each framework here: every task, kills and resuming, several processes, bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from triport.core.data.datasets import open_dataset
from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.run.subject import find_subject
from triport.core.spec import DataSpec
from triport.parity_tests.tool.ask import Question, ask, ask_ranks
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance

ROOT = Path(__file__).resolve().parents[2]
FEW = ("batch=16", "monitor.knn_every=1")
TASKS = {"moco": "tiny/test_moco_vit", "mae": "tiny/test_mae_vit"}


@pytest.fixture(scope="session")
def framework(probe):
    return probe.__name__.split(".")[2]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """48 training and 24 test images of three classes, as a folder tree of PNG files."""
    root = tmp_path_factory.mktemp("images")
    counts: dict[Literal["train", "test"], int] = {"train": 16, "test": 8}
    for split, count in counts.items():
        source = open_dataset(None, split, DataSpec(name="fashion-mnist"), 1)
        for label in range(3):
            folder = root / split / source.classes[label].replace("/", "-")
            folder.mkdir(parents=True)
            same = [i for i in range(400) if source.label(i) == label][:count]
            for i in same:
                Image.fromarray(np.asarray(source.image(i)).squeeze()).save(folder / f"{i}.png")
    return root


def words(recipe, out, images, *more):
    return [recipe, *FEW, "--data", str(images), "--out", str(out), "--workers", "0", *map(str, more)]


def run(framework, task, *given):
    """Run an entry point in this interpreter."""
    return import_module(f"triport.backends.{framework}.{task}").main(list(map(str, given)))


def begin(framework, task, *given, **environment):
    """Start an entry point in a process of its own."""
    command = [sys.executable, "-m", f"triport.backends.{framework}.{task}", *map(str, given)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return piped(command, settings)


def piped(command, environment):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "step"]


def losses(folder):
    return [line["loss"] for line in steps(folder)]


def weights(folder, part="model"):
    return checkpoint.load(checkpoint.latest(folder))[0][part]


@pytest.fixture(scope="session")
def pretrained(framework, images, tmp_path_factory):
    """A finished run of each method."""
    folders = {}
    for kind, recipe in TASKS.items():
        folders[kind] = tmp_path_factory.mktemp(kind) / "run"
        assert run(framework, "pretrain", *words(recipe, folders[kind], images, "schedule.epochs=8")) == 0
    return folders


# ---------------------------------------------------------------- tasks
@pytest.mark.parametrize("kind", TASKS)
def test_pretraining_learns_and_leaves_its_records(pretrained, kind):
    seen = losses(pretrained[kind])
    assert len(seen) == 8 * 3 and all(map(math.isfinite, seen))
    assert np.mean(seen[-6:]) < np.mean(seen[:6])
    assert all(line["gradient_norm"] > 0 and line["first_layer_gradient"] > 0 for line in steps(pretrained[kind]))
    present = {path.name for path in pretrained[kind].iterdir()}
    assert {"recipe.toml", "environment.json", "train.log", "metrics.jsonl", "encoder.safetensors"} <= present
    encoder = load_file(pretrained[kind] / "encoder.safetensors")
    assert "blocks.0.attn.qkv.weight" in encoder and not any(name.startswith(("head", "decoder")) for name in encoder)


def test_mae_learns_what_a_linear_probe_can_use(framework, tmp_path):
    """On the 8,000 shipped images, in a fifth of the time that tiny/mae_vit_tiny takes."""
    folder, recipe = tmp_path / "run", "tiny/test_mae_vit"
    settings = ("schedule.epochs=6", "optimizer.lr=4e-3", "monitor.knn_every=6")
    assert run(framework, "pretrain", recipe, *settings, "--out", folder) == 0
    seen = losses(folder)
    assert np.mean(seen[-10:]) < 0.5 * seen[0]
    scores = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"knn"' in line]
    assert scores[-1]["knn"] > scores[0]["knn"] + 0.02
    untrained = probed(framework, tmp_path, recipe, "--from-scratch")
    assert probed(framework, tmp_path, folder / "encoder.safetensors") > untrained + 0.005


def probed(framework, folder, *what):
    """Accuracy on the shipped test images of the linear classifier that fits the shipped training images best."""
    rows, labels = {}, {}
    for split in ("train", "test"):
        out = folder / f"{split}.npz"
        assert run(framework, "evaluate", *what, "--split", split, "--embed", out, "--overwrite") == 0
        found = np.load(out)
        rows[split], labels[split] = found["features"].astype(np.float64), found["labels"]
    mean, std = rows["train"].mean(axis=0), rows["train"].std(axis=0)
    train, test = (np.insert((rows[split] - mean) / std, 0, 1, axis=1) for split in ("train", "test"))
    head = np.linalg.lstsq(train, np.eye(10)[labels["train"]], rcond=None)[0]
    return ((test @ head).argmax(axis=1) == labels["test"]).mean()


@pytest.mark.parametrize("recipe", ["tiny/test_moco_resnet", "tiny/test_moco_vit_conv"])
def test_models_with_batch_norm_in_the_encoder(framework, images, tmp_path, recipe):
    # A ResNet at 16 images of this size is all batch norm: two steps show that everything moves.
    assert run(framework, "pretrain", *words(recipe, tmp_path / "run", images, "--stop-after-steps", 2)) == 0
    assert len(losses(tmp_path / "run")) == 2
    moved = weights(tmp_path / "run")
    counters = [value for name, value in moved.items() if name.endswith("num_batches_tracked")]
    assert counters and all(int(value) == 4 for value in counters)  # two views, two steps


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_probes_and_fine_tuning_take_the_encoder(framework, images, tmp_path, pretrained, kind, task):
    encoder = pretrained[kind] / "encoder.safetensors"
    more = ("schedule.epochs=2", "schedule.warmup_epochs=0", "--weights", encoder)
    assert run(framework, task, *words(f"tiny/test_{kind}_{task}", tmp_path / "run", images, *more)) == 0
    assert all(map(math.isfinite, losses(tmp_path / "run")))
    begun, ended = load_file(encoder), weights(tmp_path / "run")
    name = "blocks.1.mlp.fc1.weight"
    assert np.array_equal(begun[name], ended[name]) == (task == "linear")
    scores = tmp_path / "scores.json"
    given = (tmp_path / "run", "--data", images, "--out", scores, "--workers", "0")
    assert run(framework, "evaluate", *given) == 0
    assert 0 <= json.loads(scores.read_text())["top1"] <= 1


def test_a_probe_leaves_the_statistics_of_batch_norms_alone(framework, images, tmp_path):
    resnet = "model.encoder={kind='resnet', depth=18, zero_init_residual=false, image=16, channels=1}"
    more = (resnet, "model.objective.pooling=mean", "schedule.epochs=1", "schedule.warmup_epochs=0", "--from-scratch")
    assert run(framework, "linear", *words("tiny/test_moco_linear", tmp_path / "run", images, *more)) == 0
    saved = weights(tmp_path / "run")
    assert (
        saved["fc.bias"].any() and not saved["bn1.running_mean"].any() and not saved["layer4.1.bn2.running_mean"].any()
    )


def test_averaged_weights_are_what_is_scored(framework, images, tmp_path):
    folder, scores = tmp_path / "run", tmp_path / "scores.json"
    more = ("schedule.epochs=4", "schedule.warmup_epochs=0", "optimizer.lr=0.05", "optimizer.average=0.9")
    assert run(framework, "finetune", *words("tiny/test_moco_finetune", folder, images, *more, "--from-scratch")) == 0
    groups, state = checkpoint.load(folder / "checkpoints" / "best")
    scored = find_subject(str(folder)).arrays
    averages = {n.removeprefix("average/"): a for n, a in groups["optimizer"].items() if n.startswith("average/")}
    assert "head.weight" in averages and averages.keys() <= groups["model"].keys() == scored.keys()
    assert distance(groups["model"]["head.weight"], averages["head.weight"]) > 1e-3
    assert all(np.array_equal(scored[name], array) for name, array in averages.items())
    assert run(framework, "evaluate", folder, "--data", images, "--out", scores, "--workers", "0") == 0
    assert json.loads(scores.read_text())["top1"] == state["best"]


def test_features_are_written(framework, images, tmp_path, pretrained):
    out = tmp_path / "features.npz"
    given = (pretrained["moco"] / "encoder.safetensors", "--data", images, "--embed", out)
    assert run(framework, "evaluate", *given, "--workers", "0") == 0
    features = np.load(out)
    assert features["features"].shape == (24, 32) and sorted(set(features["labels"])) == [0, 1, 2]


def test_the_encoder_is_left_as_the_averages_that_were_scored(framework, images, tmp_path):
    given = words(TASKS["mae"], tmp_path / "run", images, "optimizer.average=0.5", "schedule.epochs=2")
    assert run(framework, "pretrain", *given) == 0
    encoder = load_file(tmp_path / "run" / "encoder.safetensors")
    means, last = weights(tmp_path / "run", "optimizer"), weights(tmp_path / "run")
    name = "blocks.0.attn.qkv.weight"
    assert np.array_equal(encoder[name], means[f"average/{name}"]) and not np.array_equal(encoder[name], last[name])


# ---------------------------------------------------------------- precision, compiling
def first_losses(framework, recipe, folder, images, *more):
    given = words(recipe, folder, images, "schedule.warmup_epochs=0", "--stop-after-steps", 3, *more)
    assert run(framework, "pretrain", *given) == 0
    return np.array(losses(folder))


@pytest.mark.parametrize("kind", TASKS)
def test_bfloat16_is_near_float32_or_refused(framework, images, tmp_path, capsys, kind):
    if framework != "torch":  # their CPU builds lack it
        assert run(framework, "pretrain", *words(TASKS[kind], tmp_path, images, "--precision", "bfloat16")) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "bfloat16" in error
        return
    one = first_losses(framework, TASKS[kind], tmp_path / "float32", images)
    two = first_losses(framework, TASKS[kind], tmp_path / "bfloat16", images, "--precision", "bfloat16")
    # bfloat16 has three digits, and batch norms over 16 rows make its roundings larger from step to step
    assert 0 < distance(two[:1], one[:1]) < 0.01 and distance(two, one) < 0.1
    saved = weights(tmp_path / "bfloat16").values()
    assert {array.dtype.name for array in saved} <= {"float32", "int64"}


@pytest.mark.parametrize("recipe", TASKS.values())
def test_a_compiled_step_is_the_plain_one(images, tmp_path, monkeypatch, recipe):
    torch = pytest.importorskip("torch", reason="--compile is PyTorch's")
    plain = first_losses("torch", recipe, tmp_path / "plain", images)
    # The graphs are captured and differentiated as ever, but not handed to a C++ compiler, which takes minutes.
    graphs = []

    def run_as_it_is(graph, _):
        graphs.append(graph)
        return graph.forward

    from triport.backends.torch import learner

    class Compiling(learner.Learner):
        def _wrapped(self, micro):
            return torch.compile(super()._wrapped(micro), backend=run_as_it_is)

    monkeypatch.setattr("triport.backends.torch.learner.make", Compiling.make)
    compiled = first_losses("torch", recipe, tmp_path / "compiled", images)
    assert graphs
    hold("training", distance(compiled, plain), f"{recipe} compiled")


# ---------------------------------------------------------------- kills
@pytest.fixture(scope="session")
def killed_and_resumed(framework, images, tmp_path_factory):
    """Of each method a run that nothing disturbs and one that is killed and goes on; the step at which it did.

    Each killed run is a process of its own; the whole runs are made by one process, and those that go on by another.
    """
    root = tmp_path_factory.mktemp("kills")
    settings = ("--accumulate", 2, "--save-steps", 2, "schedule.epochs=3", "schedule.warmup_epochs=1")
    given = {kind: words(recipe, root / f"{kind} killed", images, *settings) for kind, recipe in TASKS.items()}
    resumed_at = {}
    for kind, own in given.items():
        killed = root / f"{kind} killed"
        process = begin(framework, "pretrain", *own)
        while process.poll() is None and not (
            (killed / "metrics.jsonl").exists()
            and len(losses_so_far(killed)) >= 4
            and checkpoint.listed(killed / "checkpoints")
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed_at[kind] = checkpoint.read_state(checkpoint.latest(killed))["step"]
    in_one_process(framework, [words(recipe, root / kind, images, *settings) for kind, recipe in TASKS.items()])
    in_one_process(framework, [[*own, "--resume"] for own in given.values()])
    return root, resumed_at


def in_one_process(framework, runs):
    """Pretrain one run after another, in a process of their own."""
    asked = [Question("run", {"backend": framework, "task": "pretrain", "arguments": own}) for own in runs]
    ask(framework, asked, probe="triport.parity_tests.fixtures.run_probe")


@pytest.mark.parametrize("kind", TASKS)
def test_kill_9_in_the_middle_of_an_epoch_and_resume_to_the_same_bits(killed_and_resumed, kind):
    root, resumed_at = killed_and_resumed
    whole, killed = root / kind, root / f"{kind} killed"
    assert 0 < resumed_at[kind] < 9
    assert losses(killed) == losses(whole) and len(losses(whole)) == 9
    one, two = weights(whole), weights(killed)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_fine_tuning_in_parts_is_fine_tuning_in_one(framework, images, tmp_path):
    """With Mixup, CutMix, stochastic depth and averaged weights; stopped in the middle of an epoch."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("schedule.epochs=2", "schedule.warmup_epochs=0", "optimizer.lr=0.05", "optimizer.average=0.9")
    for folder, *rest in ((whole,), (parts, "--stop-after-steps", 4), (parts, "--resume")):
        given = words("tiny/test_moco_finetune", folder, images, *more, "--from-scratch", *rest)
        assert run(framework, "finetune", *given) == 0
    assert losses(parts) == losses(whole) and len(losses(whole)) == 6
    for part in ("model", "optimizer"):
        one, two = weights(whole, part), weights(parts, part)
        assert all(np.array_equal(one[name], two[name]) for name in one), part
    assert any(name.startswith("average/") for name in one)


def losses_so_far(folder):
    """Whole lines only: the last may be being written."""
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("}\n")]


# ---------------------------------------------------------------- processes
def launched(framework, *given, processes=2):
    command = [sys.executable, "-m", "triport", "pretrain", *map(str, given)]
    command += ["--backend", framework, "--processes", str(processes)]
    return piped(command, {**os.environ, "OMP_NUM_THREADS": "1"})


FOUR = ("--stop-after-steps", 4, "schedule.warmup_epochs=0")
PAIR = ("--stop-after-steps", 1, "schedule.warmup_epochs=0", "batch=2", "--precision")


@pytest.fixture(scope="session")
def of_two_processes(framework, images, tmp_path_factory):
    """Runs of two processes: one by `triport pretrain`, the others one after another in one job of that launcher."""
    root = tmp_path_factory.mktemp("two")
    process = launched(framework, *words(TASKS["moco"], root / "moco", images, *FOUR))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    rest = {"mae": words(TASKS["mae"], root / "mae", images, *FOUR)}
    rest |= {wide: words(TASKS["moco"], root / wide, images, *PAIR, wide) for wide in ("float32", "float64")}
    asked = [
        Question(
            "run_in_group", {"backend": framework, "task": "pretrain", "arguments": own, "last": name == "float64"}
        )
        for name, own in rest.items()
    ]
    ask_ranks(framework, [asked] * 2, probe="triport.parity_tests.fixtures.run_probe")
    return root


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_are_one_with_both_halves(framework, images, tmp_path, of_two_processes, kind):
    assert run(framework, "pretrain", *words(TASKS[kind], tmp_path / "one", images, *FOUR)) == 0
    (tmp_path / "two").symlink_to(of_two_processes / kind)
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "two"))["processes"] == 2
    for i, (one, two) in enumerate(zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True)):
        hold("training", abs(one - two) / abs(one), f"{kind} loss of step {i}")
    one, two = (steps(tmp_path / name)[0]["gradient_norm"] for name in ("one", "two"))
    hold("training", abs(one - two) / one, f"{kind} first gradient")


@pytest.mark.parametrize(("precision", "bound"), [("float32", "trace"), ("float64", "float64")])
def test_two_processes_with_one_image_each_are_one_with_two(
    framework, images, tmp_path, of_two_processes, precision, bound
):
    assert run(framework, "pretrain", *words(TASKS["moco"], tmp_path / "one", images, *PAIR, precision)) == 0
    (tmp_path / "two").symlink_to(of_two_processes / precision)
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "two"))["processes"] == 2
    one, two = losses(tmp_path / "one")[0], losses(tmp_path / "two")[0]
    assert one > 0
    hold(bound, abs(one - two) / one, f"{framework}: loss of two images")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    variances = [name for name in one if name.endswith("running_var")]
    assert {name.partition(".")[0] for name in variances} == {"base_encoder", "momentum_encoder", "predictor"}
    for name in variances:
        mean = name.replace("running_var", "running_mean")
        spread = np.sqrt(one[name].max())  # a mean of rows that cancel out is 0: it counts beside their deviation
        hold(bound, distance(two[name], one[name]), f"{framework}: {name}")
        hold(bound, np.abs(two[mean] - one[mean]).max() / spread, f"{framework}: {mean}")
        assert np.abs(two[name] - 0.9).max() > 0.01, name  # 0.9 is what a variance of 0 would leave


@pytest.mark.parametrize("given", [("batch=4", "--accumulate", 4), ("batch=4", "--micro-batch", 1)])
def test_one_process_with_one_image_is_refused(framework, images, tmp_path, capsys, given):
    assert run(framework, "pretrain", *words(TASKS["moco"], tmp_path / "run", images, *given)) == 2
    assert "with one image in a micro-batch MoCo has nothing to normalise or compare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dead_rank_ends_the_job_with_its_message_and_the_run_goes_on(framework, images, tmp_path):
    more = ("schedule.epochs=400", "schedule.warmup_epochs=0", "monitor.knn_every=0", "--save-steps", 1)
    folder = tmp_path / "run"
    process = launched(framework, *words(TASKS["mae"], folder, images, *more))
    while process.poll() is None and not checkpoint.listed(folder / "checkpoints"):
        time.sleep(0.05)
    ranks = [pid for pid in descendants(process.pid) if b"backends" in cmdline(pid) and b"RANK=1\0" in environ(pid)]
    assert ranks, "no process of rank 1 was found"
    os.kill(ranks[-1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode not in (0, None)
    assert "rank 1" in errors, errors
    assert not [pid for pid in ranks if alive(pid)]
    step = checkpoint.read_state(checkpoint.latest(folder))["step"]
    assert run(framework, "pretrain", "--resume", folder, "--data", images, "--stop-after-steps", step + 1) == 0


def descendants(pid):
    found = [int(p) for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]
    return found + [deeper for child in found for deeper in descendants(child)]


def cmdline(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def environ(pid):
    content = Path(f"/proc/{pid}/environ").read_bytes()
    return content.replace(b"PADDLE_TRAINER_ID=", b"RANK=")


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# ---------------------------------------------------------------- bad input
def test_a_wrong_device_or_precision_is_one_line(framework, images, tmp_path, capsys):
    given = words(TASKS["mae"], tmp_path / "run", images)
    assert run(framework, "pretrain", *given, "--device", "abacus") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "abacus" in error and "Traceback" not in error
    assert run(framework, "pretrain", *given, "--precision", "float3") == 2


def test_several_processes_do_not_share_mps(monkeypatch):
    torch = pytest.importorskip("torch", reason="MPS is PyTorch's")
    distributed = import_module("triport.backends.torch.distributed")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.start("auto").device.type == "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **_: backend)
    monkeypatch.setattr(distributed.local_peers, "connect", lambda *_: None)
    assert distributed.start("auto").device.type == "cpu"
    with pytest.raises(UserError, match="cannot share 'mps'"):
        distributed.start("mps")


def test_compiling_on_a_cpu_is_refused_or_changes_nothing(framework, images, tmp_path, capsys):
    more = ("--compile", "--device", "cpu", "--stop-after-steps", 2)
    code = run(framework, "pretrain", *words(TASKS["mae"], tmp_path / "run", images, *more))
    error = capsys.readouterr().err
    if code == 2:
        assert error.count("\n") == 1 and "--compile" in error
    else:
        plain = ("--device", "cpu", "--stop-after-steps", 2)
        assert code == 0 and run(framework, "pretrain", *words(TASKS["mae"], tmp_path / "plain", images, *plain)) == 0
        assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_weights_of_another_model_are_one_line(framework, images, tmp_path, pretrained, capsys):
    more = ("model.encoder.width=64", "--weights", pretrained["mae"] / "encoder.safetensors")
    assert run(framework, "finetune", *words("tiny/test_mae_finetune", tmp_path / "run", images, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "encoder.safetensors" in error[0]
    assert not (tmp_path / "run").exists()


def test_outputs_of_runs_are_close_to_another_seed_but_not_equal(framework, images, tmp_path, pretrained):
    more = ("schedule.epochs=8", "--stop-after-steps", 3, "--seed", 5)
    assert run(framework, "pretrain", *words(TASKS["mae"], tmp_path / "run", images, *more)) == 0
    name = "blocks.0.mlp.fc1.weight"
    assert distance(weights(tmp_path / "run")[name], weights(pretrained["mae"])[name]) > 1e-3
