"""PyTorch's backend on a CUDA device: the numbers of a CPU, late reports, bytes, compiled steps, whole runs.

These need a GPU and are skipped without one; benchmarks/README.md says on which cards they passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from triport import environments
from triport.core.augment import pixels
from triport.core.backend.learner import settled
from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.questions import batch

torch = pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")
if torch:
    from triport.backends.torch import distributed, kernels, layers, learner
    from triport.core.backend.probe import recipe_around

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU", allow_module_level=True)

SGD = OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.01, decays="all", momentum=0.9)
ADAMW = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, decays="all", average=0.9, clip_norm=0.5)
LARS = replace(SGD, kind="lars")
STEPS = (Values(0.02, 0.9), Values(0.01, 0.95), Values(0.005, 0.99))
CASES = [("moco-vit", ADAMW), ("moco-conv", SGD), ("moco-resnet18", LARS), ("moco-resnet50", SGD), ("mae", ADAMW),
         ("probe-vit", SGD), ("probe-mae", SGD), ("finetune-token", ADAMW), ("finetune-mean", ADAMW)]  # fmt: skip


def made(name, optimizer, device="cuda", **more):
    spec = small.MODELS[name]
    return learner.Learner(recipe_around(spec, optimizer), small.arrays(spec), distributed.start(device), **more)


def data(name, n=6):
    return batch(small.inputs(small.MODELS[name], n=n))


def trained(built, given, steps=STEPS):
    """The losses of some steps, taken as a run takes them."""
    staged = built.ahead([[given]] * len(steps))
    return [settled(built.step(one, now)).loss for one, now in zip(staged, steps)]


def apart(first, second):
    """The largest difference, relative to each array's largest number or 1e-3."""
    assert first.keys() == second.keys()
    return max(
        float(np.max(np.abs(array.astype(np.float64) - second[name]), initial=0)
              / max(np.max(np.abs(second[name]), initial=0), 1e-3))
        for name, array in first.items()
    )  # fmt: skip


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_float64_is_that_of_a_cpu(name, optimizer):
    here, there = (made(name, optimizer, device, precision="float64") for device in ("cpu", "cuda"))
    assert trained(there, data(name)) == pytest.approx(trained(here, data(name)), rel=1e-9)
    assert apart(there.arrays(), here.arrays()) < 1e-7
    assert apart(there.optimizer_arrays(), here.optimizer_arrays()) < 1e-6


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_float32_is_float32(name, optimizer):
    exact, there = made(name, optimizer, "cpu", precision="float64"), made(name, optimizer)
    assert trained(there, data(name), STEPS[:1]) == pytest.approx(trained(exact, data(name), STEPS[:1]), rel=2e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["moco-vit", "moco-resnet18", "mae", "finetune-token"])
def test_half_precision_learns_the_same(name, precision):
    exact, there = made(name, SGD, "cpu"), made(name, SGD, precision=precision)
    assert trained(there, data(name), STEPS[:1]) == pytest.approx(trained(exact, data(name), STEPS[:1]), rel=5e-2)


def test_a_step_on_bytes_is_the_step_on_floats():
    built, other, given = made("mae", SGD), made("mae", SGD), data("mae")
    n, channels, height, width = given.images[0].shape
    raw = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    floats = replace(given, images=(pixels.normalise(raw, mean, std),))
    given = replace(given, images=(raw,), table=pixels.table(mean, std, 3).copy())
    assert trained(built, floats) == pytest.approx(trained(other, given), rel=1e-6)
    assert apart(built.arrays(), other.arrays()) < 1e-5


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, LARS])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named_a_step_later(optimizer):
    built, given = made("moco-resnet18", optimizer), data("moco-resnet18")
    trained(built, given, STEPS[:1])
    arrays, state = built.arrays(), built.optimizer_arrays()
    broken = replace(given, images=tuple(view * np.float32(np.nan) for view in given.images))
    pending = built.step([broken], Values(0.01, 0.0))
    values = built.arrays()
    moved = [n for n in built.trained if not np.array_equal(values[n], arrays[n])]
    after = {n: a for n, a in built.optimizer_arrays().items() if n in state and n != "step"}
    assert not moved and all(np.array_equal(a, state[n]) for n, a in after.items())
    assert settled(pending).bad == "loss"


@pytest.mark.parametrize("name", ["moco-vit", "moco-conv", "moco-resnet18", "mae", "finetune-mean"])
def test_a_compiled_step_is_chosen_and_learns_the_same(name, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes of the compiler's stay behind
    plain, compiled = made(name, SGD), made(name, SGD, compile=True)
    assert trained(compiled, data(name)) == pytest.approx(trained(plain, data(name)), rel=1e-3)
    assert compiled.run.chosen is not compiled.run.plain
    assert apart(compiled.arrays(), plain.arrays()) < 1e-2


@pytest.mark.parametrize("name", ["moco-vit", "mae"])
def test_computing_activations_twice_learns_the_same(name):
    plain, saving = made(name, SGD), made(name, SGD, checkpoint_activations=True)
    assert trained(saving, data(name)) == pytest.approx(trained(plain, data(name)), rel=1e-6)
    assert apart(saving.arrays(), plain.arrays()) < 1e-5


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(24, 8), (12, 8, 5, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_the_norm_of_several_processes_is_the_fused_one(dtype, shape, last):
    """Two processes that hold the same rows: the statistics are those of one of them."""
    if last and len(shape) == 2:
        pytest.skip("there are no maps to lay out")
    kind, draw = getattr(torch, dtype), torch.Generator("cuda").manual_seed(0)
    x = (torch.randn(shape, generator=draw, device="cuda", dtype=torch.float64) * 2 + 1).to(kind)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight, bias = (torch.randn(8, generator=draw, device="cuda", dtype=torch.float64) for _ in range(2))
    answers = []
    for shared in (False, True):
        norm = layers.BatchNorm(8).to("cuda", torch.float64 if dtype == "float64" else torch.float32)
        with torch.no_grad():
            norm.weight.copy_(weight), norm.bias.copy_(bias)
        if shared:
            norm.gather, norm.reduce = lambda rows: torch.cat([rows, rows]), lambda sums: sums.mul_(2)
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = norm(given)
        (out.double() * torch.arange(out.numel(), device="cuda").view(out.shape)).mean().backward()
        answers.append([out, given.grad, norm.weight.grad, norm.bias.grad, norm.running_mean])
    limit = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2e-2}[dtype]
    for plain, shared in zip(*answers):
        assert float((plain.double() - shared.double()).abs().max() / plain.double().abs().max()) < limit


def test_the_statistics_of_a_norm_are_those_of_its_rows():
    x = torch.randn(50, 3, device="cuda", dtype=torch.float64) * 1e-2
    mean, var = kernels.statistics(x, 1e-5)
    assert torch.allclose(mean, x.mean(0)) and torch.allclose(var, x.var(0, correction=0), rtol=1e-6)


# ---------------------------------------------------------------- whole runs
def triport(*words):
    """Run a command and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "triport", *words], cwd=environments.ROOT, capture_output=True, text=True, check=False,
        env=environments.with_project({**os.environ, "COLUMNS": "120"}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(("recipe", "more"), [("tiny/test_moco_vit", ()), ("tiny/test_mae_vit", ("--no-compile",))])
def test_a_run_goes_on_and_is_measured(recipe, more, tmp_path):
    short = [recipe, "batch=64", "schedule.warmup_epochs=0", "monitor.knn_every=1", *more]
    short += ["--workers", "2", "--device", "cuda"]
    out = str(tmp_path / "run")
    first = triport("pretrain", *short, "--epochs", "1", "--out", out)
    assert "bfloat16" in first
    triport("pretrain", *short, "--epochs", "2", "--out", out, "--resume")
    assert "knn" in triport("evaluate", out, "--device", "cuda", "--knn").lower()


def test_a_run_in_float64_repeats_its_bits(tmp_path):
    words = ("tiny/test_mae_vit", "batch=64", "schedule.epochs=1", "schedule.warmup_epochs=0", "monitor.knn_every=0",
             "--workers", "0", "--device", "cuda", "--precision", "float64", "--no-compile")  # fmt: skip
    for name in ("a", "b"):
        triport("pretrain", *words, "--out", str(tmp_path / name))
    a, b = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
