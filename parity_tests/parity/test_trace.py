"""`triport parity record`: what a trace holds, in which order, and that it survives its file; trials."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from triport import environments
from triport.core.data.datasets import open_dataset
from triport.core.data.loader import Loader
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.inventory import inventory
from triport.core.model.schedule import at, peak_lr
from triport.core.spec import recipe as recipes
from triport.parity_tests.reference.objectives import train_step
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import trace, trial
from triport.parity_tests.tool.ask import Crashed, near

MOCO, MAE, TUNED = "tiny/test_moco_vit", "tiny/test_mae_vit", "tiny/test_mae_finetune"


@cache
def subject(name, steps=2, precision="float32"):
    return trial.assemble(recipes.load(name), steps=steps, batch=16, precision=precision)


@pytest.fixture(scope="module")
def recorded(probe):
    """A trace of each kind of model from the framework of this interpreter."""
    backend = probe.__name__.split(".")[2]
    return {name: trace.record(subject(name), backend, ask=near) for name in (MOCO, MAE, TUNED)}


# ---------------------------------------------------------------- trials
def test_a_trial_is_what_a_run_begins_with():
    what, recipe = subject(MOCO), recipes.load(MOCO)
    arrays = initial_values(recipe.model, recipe.seed)
    assert set(arrays) == set(what.arrays) and all(np.array_equal(arrays[n], what.arrays[n]) for n in arrays)
    dataset = open_dataset(None, "train", recipe.data, 1)
    with Loader(dataset, recipe.train, batch=16, seed=recipe.seed, workers=0, train=True, model=recipe.model) as loader:
        for step, batches in zip(range(what.steps), loader.epoch(0)):
            for ours, theirs in zip(what.batches[step][0].images, batches[0].images):
                assert np.array_equal(ours, theirs)
    # the end of the warm-up, where nothing hides behind a rate of 0
    assert 0.99 < what.values[0].lr / peak_lr(recipe) <= 1
    per_epoch = len(dataset) // recipe.batch
    assert what.values[1] == at(recipe, round(recipe.schedule.warmup_epochs * per_epoch) + 1, per_epoch)
    begun = trial.assemble(recipe, steps=1, batch=4, epoch=0.0)
    assert begun.values[0].lr == 0.0 and begun.batch == 4


def test_the_shipped_images_stand_in_for_others():
    what = trial.assemble(recipes.load(MOCO, ["data.name=imagenet"]), steps=1, data="fashion-mnist")
    assert what.batch == 32 and what.images.startswith("fashion-mnist")
    with pytest.raises(UserError, match="--weights is for"):
        trial.assemble(recipes.load(MOCO), steps=1, weights="nowhere")
    with pytest.raises(UserError, match="fewer than one batch"):
        trial.assemble(recipes.load(MOCO), steps=1, batch=100000)


def test_a_trial_in_float64_has_the_very_values_that_were_drawn():
    what, wide = subject(MOCO), subject(MOCO, precision="float64")
    for name, array in what.arrays.items():
        assert np.array_equal(array, wide.arrays[name])
        assert wide.arrays[name].dtype == (np.float64 if array.dtype == np.float32 else array.dtype)
    assert trace.question(wide).given["precision"] == "float64"


# ---------------------------------------------------------------- what a trace holds
@pytest.mark.parametrize("name", [MOCO, MAE, TUNED])
def test_a_trace_holds_every_stage(recorded, name):
    made, what = recorded[name], subject(name)
    parameters = inventory(what.recipe.model)
    assert set(made.part("first/")) == {p.name for p in parameters}
    for step in range(what.steps):
        assert np.isfinite(made.arrays[f"step{step}/loss"])
        assert set(made.part(f"step{step}/grad/")) == {p.name for p in parameters if p.trainable}
        assert all(f"step{step}/{p.name}" in made.arrays for p in parameters)
        assert int(made.arrays[f"step{step}/state/step"]) == step + 1
        assert all(np.array_equal(made.arrays[f"inputs/{step}/{n}"], a) for n, a in what.inputs(step).items())
    layers = list(made.part("layers/"))
    prefix = "base_encoder." if name == MOCO else ""
    wanted = [f"{prefix}blocks.0.{n}" for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    assert [n for n in layers if n in wanted] == wanted
    assert f"{prefix}blocks.0.mlp.fc2/input" in layers and f"{prefix}blocks.0.mlp.fc1/input" not in layers
    frozen = ("momentum_encoder", "base_encoder.patch_embed")
    assert set(made.part("backward/")) == {n for n in layers if not n.startswith(frozen)}
    for key, array in made.part("backward/").items():
        assert array.shape == made.arrays[f"layers/{key}"].shape and np.isfinite(array).all()


def test_both_views_are_rows_of_one_array(recorded):
    made = recorded[MOCO]
    assert made.arrays["layers/base_encoder.head.1"].shape == (32, 64)
    assert made.arrays["layers/momentum_encoder.blocks.0.norm1"].shape[0] == 32
    q1, q2 = made.arrays["step0/q1"], made.arrays["step0/q2"]
    assert np.array_equal(made.arrays["layers/predictor"], np.concatenate([q1, q2]))


def test_a_trace_survives_its_file(recorded, tmp_path):
    made = recorded[MAE]
    trace.write(tmp_path / "deep" / "mae.safetensors", made)
    back = trace.read(tmp_path / "deep" / "mae.safetensors")
    assert list(back.arrays) == list(made.arrays) and back.about == made.about
    assert all(np.array_equal(back.arrays[n], a) and back.arrays[n].dtype == a.dtype for n, a in made.arrays.items())
    assert back.recipe == subject(MAE).recipe and back.steps == 2
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mae.safetensors"]


def test_the_reference_can_take_a_backends_place():
    made, what = trace.record(subject(MOCO), trace.REFERENCE), subject(MOCO)
    step = train_step(what.recipe.model, what.arrays, what.inputs(), what.values[0].momentum)
    assert float(made.arrays["step0/loss"]) == step.loss and made.steps == 1
    layers = made.part("layers/")
    assert np.array_equal(layers["predictor"], np.concatenate([step.outputs["q1"], step.outputs["q2"]]))
    assert np.array_equal(layers["momentum_encoder.head"], np.concatenate([step.outputs["k1"], step.outputs["k2"]]))


# ---------------------------------------------------------------- the command
def parity(*words):
    command = [sys.executable, "-m", "triport.parity_tests.tool", *map(str, words)]
    return subprocess.run(command, cwd=environments.ROOT, capture_output=True, text=True, check=False)


def test_the_command_records_a_trace(probe, tmp_path):
    backend, path = probe.__name__.split(".")[2], tmp_path / "trace.safetensors"
    words = ["--backend", backend, "-o", path, "--steps", 1, "--batch", 8, "model.encoder.depth=1"]
    printed = parity("record", MAE, *words)
    assert printed.returncode == 0, printed.stderr
    made = trace.read(path)
    assert made.precision == "float64" and made.arrays["step0/grad/norm.weight"].dtype == np.float64
    assert made.about["backend"] == backend and made.about["batch"] == 8 and made.recipe.model.encoder.depth == 1
    assert made.about["version"][0].isdigit() and made.about["version"] in printed.stdout
    json.dumps(dict(made.about))


def test_a_mistake_ends_the_command():
    printed = parity("record", MAE, "--backend", "torhc", "-o", "x.safetensors")
    assert printed.returncode == 2 and "Did you mean 'torch'" in printed.stderr and "Traceback" not in printed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([MAE, "--backend", "torhc", "-o", "x.safetensors"], "Did you mean 'torch'"),
        (["tiny/test_mae", "--backend", "torch", "-o", "x.safetensors"], "No recipe"),
        ([MAE, "--backend", "torch"], "-o"),
        ([MAE, "--backend", "torch", "-o", "parity_tests"], "is a folder"),
        ([MAE, "--backend", "torch", "-o", "pyproject.toml"], "is there and is not a trace: move it aside first"),
        ([MAE, "--backend", "torch", "-o", "/proc/none/x.safetensors"], "cannot write"),
    ],
)
def test_mistakes_are_reported_in_a_line(words, message, monkeypatch, capsys):
    monkeypatch.chdir(environments.ROOT)
    assert program.main(["record", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_crash_is_reported(monkeypatch):
    def crashed(backend, questions):
        raise Crashed("torch was ended by SIGSEGV and left no answer.")

    with pytest.raises(Crashed, match="SIGSEGV"):
        trace.record(subject(MAE), "torch", ask=crashed)
