"""The command line of a run: what it leaves, what it says, and what it takes from other runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from triport.core.backend.learner import Alone
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory
from triport.core.options import parse
from triport.core.record import checkpoint
from triport.core.run.initial import initial_arrays
from triport.core.spec import ModelSpec, schema
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import bicubic, numpy_learner, toy
from triport.parity_tests.fixtures.toy import TOTAL, failed, go, learner_that, metrics, whole


# ---------------------------------------------------------------- what a run leaves
def test_the_run_folder(tmp_path):
    folder = whole("moco")
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {
        "recipe.toml",
        "environment.json",
        "train.log",
        "metrics.jsonl",
        "checkpoints",
        "encoder.safetensors",
        "report.html",
        "baselines.json",
        "projection.json",
        "views.png",
    }
    assert recipes.load(str(folder / "recipe.toml")) == recipes.load(toy.RECIPES["moco"][1], toy.RECIPES["moco"][2:])
    (start,) = json.loads((folder / "environment.json").read_text())["starts"]
    assert start["backend"] == "numpy" and start["processes"] == 1


@pytest.mark.parametrize("kind", ["moco", "mae"])
def test_the_encoder_is_left_for_others(kind):
    folder = whole(kind)
    recipe = recipes.load(str(folder / "recipe.toml"))
    encoder = load_file(folder / "encoder.safetensors")
    model = checkpoint.load(folder / "checkpoints" / "last")[0]["model"]
    prefix = "base_encoder." if kind == "moco" else ""
    assert set(encoder) == {p.name for p in encoder_inventory(recipe.model.encoder)}
    for name, array in encoder.items():
        assert array.tobytes() == model[prefix + name].tobytes(), name
    with safe_open(folder / "encoder.safetensors", framework="np") as file:
        words = file.metadata()
    assert schema.read(ModelSpec, json.loads(words["model"])) == recipe.model
    assert (words["method"], words["recipe"]) == (kind, recipe.name) and words["triport"]


def test_the_opening_lines(tmp_path, capsys):
    assert go("moco", tmp_path / "run", "--stop-after-steps", "1") == 0
    printed = capsys.readouterr().out
    for line in (
        "MoCo v3 with a ViT of width 32 (tiny/test_moco_vit)",
        "images 96 to train (train), 40 held out",
        "batch 16 = 1 processes x 1 micro-batches x 16 images; peak learning rate 0.5",
        "the loss begins near 2.218 = 4 T ln(16)",
    ):
        assert line in printed.splitlines()
    assert re.search(r"parameters 0\.0\d M trained, 0\.0\d M in all; float32", printed)
    assert (
        f"stopped at step 1 of {TOTAL} by --stop-after-steps; to resume: the same command with --resume {tmp_path}/run"
        in printed
    )


def test_quiet_is_quiet(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert "images 96 to train" in (tmp_path / "run" / "train.log").read_text()


def test_seed_and_epochs_are_overrides(tmp_path):
    assert go("mae", tmp_path / "run", "--seed", "5", "--epochs", "2", "--stop-after-steps", "1") == 0
    recipe = recipes.load(str(tmp_path / "run" / "recipe.toml"))
    assert (recipe.seed, recipe.schedule.epochs) == (5, 2)
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(whole("mae"))[0]["loss"]


def test_options_and_overrides_may_be_mixed():
    options = parse("pretrain", ["tiny/a", "batch=4", "--out", "x=y", "lr=1", "--device", "cpu", "epochs=2"])
    assert (options.recipe, options.overrides) == ("tiny/a", ("batch=4", "lr=1", "epochs=2"))
    assert (options.out, options.device, options.resume) == ("x=y", "cpu", None)
    assert parse("pretrain", ["batch=4", "--resume"]).recipe is None
    assert parse("pretrain", ["a=b/c.toml", "--resume", "d"]).overrides == ("a=b/c.toml",)
    assert parse("pretrain", ["./a=b/c.toml"]).recipe == "./a=b/c.toml"


# ---------------------------------------------------------------- weights of one run for another
def test_a_linear_probe_learns_only_its_head(tmp_path, capsys):
    assert go("linear", tmp_path / "probe", "--weights", str(whole("moco"))) == 0
    printed = capsys.readouterr().out
    assert "encoder from" in printed and "the frozen encoder is bit-equal to the one the probe began with" in printed
    model = checkpoint.load(checkpoint.latest(tmp_path / "probe"))[0]["model"]
    encoder = load_file(whole("moco") / "encoder.safetensors")
    assert set(model) == {*encoder, "head.weight", "head.bias"}
    assert all(model[name].tobytes() == array.tobytes() for name, array in encoder.items())
    losses = [line["loss"] for line in metrics(tmp_path / "probe")]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_a_resumed_probe_is_exact_and_is_checked_where_the_weights_are_given(tmp_path, capsys):
    more = ["--weights", str(whole("moco") / "encoder.safetensors")]
    assert go("linear", tmp_path / "whole", *more) == 0
    for again in ([], more):
        folder = tmp_path / f"parts{len(again)}"
        assert go("linear", folder, *more, "--stop-after-steps", "8") == 0
        capsys.readouterr()
        assert go("linear", folder, *again, "--resume") == 0
        assert ("bit-equal" in capsys.readouterr().out) == bool(again)
        toy.assert_same_run(tmp_path / "whole", folder)


def test_a_probe_that_changes_its_encoder_is_a_fault(tmp_path, capsys):
    def step(self, batches, values):
        self.values["norm.weight"] = self.values["norm.weight"] + np.float32(1e-7)
        return numpy_learner.Learner.step(self, batches, values)

    code = go("linear", tmp_path / "run", "--weights", str(whole("moco")), backend=learner_that(step=step))
    assert "the frozen encoder has changed: norm.weight" in failed(capsys, code, 1)


def test_fine_tuning_takes_the_encoder_and_draws_the_rest(tmp_path):
    """Mean pooling: `norm` stays behind, `fc_norm` and the head are new; the position table fits the new image size."""
    source = whole("mae")
    assert go("finetune", tmp_path / "run", "image=16", "--weights", str(source), "--stop-after-steps", "1") == 0
    recipe = recipes.load(str(tmp_path / "run" / "recipe.toml"))
    arrays, _ = initial_arrays(recipe, str(source))
    drawn, encoder = initial_values(recipe.model, recipe.seed), load_file(source / "encoder.safetensors")
    assert list(arrays) == list(drawn) and "norm.weight" not in arrays
    for name, array in arrays.items():
        if name.startswith(("head.", "fc_norm.")):
            np.testing.assert_array_equal(array, drawn[name])
        elif name == "pos_embed":
            np.testing.assert_allclose(array, bicubic.resampled(encoder[name], (2, 2), (4, 4)), atol=1e-6)
            assert array.shape == (1, 17, 32)
        else:
            assert array.tobytes() == encoder[name].tobytes(), name


def test_the_head_follows_the_data(tmp_path, capsys):
    data = toy.make_data(tmp_path / "data", classes=7)
    assert go("finetune", tmp_path / "run", data=data) == 0
    assert "train has 7 classes, the recipe was written for 10: the head gets 7." in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best")[0]["model"]["head.weight"].shape[0] == 7
    assert go("finetune", tmp_path / "run", "--resume", data=data) == 0


def test_alone_gathers_nothing():
    rows = np.arange(6).reshape(3, 2)
    assert Alone().gather(rows) is rows
