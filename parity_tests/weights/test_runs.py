"""Runs, evaluations and models that begin from other projects' checkpoints, files and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import triport
from triport import api
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory
from triport.core.run import initial, subject
from triport.core.spec import Classifier, ModelSpec, Recipe, ViT
from triport.core.spec.recipe import load
from triport.parity_tests.tool import small
from triport.weights.commands.convert import convert
from triport.weights.files import files

Arrays = dict[str, np.ndarray]


def shrunk(name: str) -> Recipe:
    """A recipe of LiBai's and PASSL's users with a small encoder, so that its files are small."""
    recipe = load(name)
    assert isinstance(recipe.model.encoder, ViT)
    encoder = replace(recipe.model.encoder, width=32, depth=2, heads=8, patch=(8, 8), image=(16, 16))
    return replace(recipe, model=replace(recipe.model, encoder=encoder))


PROBE, TUNED = shrunk("transfer/moco_vit_small_linear"), shrunk("transfer/mae_vit_base_finetune")
TARGETS = {  # what is given to a run, and its layout
    "source.pth.tar": "moco-v3",
    "libai": "libai",
    "libai-old": "libai-0.1",
    "encoder": "libai-vit",
    "passl.pd": "passl",
    "base_encoder.pdparams": "passl-deit",
    "hf": "hf-vit",
}


def pretrained(folder: Path, model: ModelSpec) -> tuple[Path, Arrays]:
    """A file of moco-v3 or MAE whose encoder is the model's, and that encoder's arrays."""
    encoder = model.encoder
    assert isinstance(encoder, ViT)
    objective = small.MODELS["mae" if encoder.position == "mae" else "moco-vit"].objective
    arrays = small.arrays(ModelSpec(encoder=encoder, objective=objective))
    path = folder / "source.pth.tar"
    if objective.kind == "moco":
        files.write(path, {"arch": "x", "state_dict": {f"module.{name}": a for name, a in arrays.items()}}, "torch")
        own = {p.name: arrays[f"base_encoder.{p.name}"] for p in encoder_inventory(encoder)}
        return path, own
    files.write(path, {"model": arrays, "args": {"model": "mae_vit_small"}}, "torch")
    return path, arrays


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_begins_from_any_file_or_folder(tmp_path: Path, target: str) -> None:
    source, encoder = pretrained(tmp_path, PROBE.model)
    path = tmp_path / target
    if target == "hf":
        path.mkdir()
        convert(source, path / "model.safetensors", to="hf-vit")
        (path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 8}))
    elif path != source:
        convert(source, path, to=TARGETS[target], heads=8)
        path.with_name(f"{path.name}.json").unlink()  # so that the recipe alone knows the heads
    drawn = initial_values(PROBE.model, 0)
    arrays, printed = initial.load_encoder(PROBE, str(path), drawn)
    assert list(arrays) == list(drawn)
    for name, array in arrays.items():
        assert np.array_equal(array, drawn[name] if name.startswith("head.") else encoder[name]), name
    assert any("width 32, depth 2, 8 heads" in line for line in printed)


def test_the_folders_within_libais_are_taken_too(tmp_path: Path) -> None:
    source, encoder = pretrained(tmp_path, PROBE.model)
    convert(source, tmp_path / "run", heads=8)
    for path in (tmp_path / "run" / "model_0000000", tmp_path / "run" / "model_0000000" / "model"):
        arrays, _ = initial.load_encoder(PROBE, str(path), initial_values(PROBE.model, 0))
        assert np.array_equal(arrays["blocks.1.attn.qkv.bias"], encoder["blocks.1.attn.qkv.bias"])


def test_folders_without_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name, line in (("empty", "folder that holds no checkpoint of OneFlow"), ("run", r"no encoder\.safetensors")):
        with pytest.raises(UserError, match=line) as caught:
            initial.load_encoder(PROBE, str(tmp_path / name), initial_values(PROBE.model, 0))
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# ---------------------------------------------------------------- averaged patches: fc_norm in the place of norm
def test_pretraining_has_no_fc_norm_and_fine_tuning_draws_it(tmp_path: Path) -> None:
    source, encoder = pretrained(tmp_path, TUNED.model)
    drawn = initial_values(TUNED.model, 0)
    arrays, printed = initial.load_encoder(TUNED, str(source), drawn)
    assert "norm.weight" in encoder and "norm.weight" not in arrays
    assert np.array_equal(arrays["fc_norm.weight"], drawn["fc_norm.weight"])
    assert any("newly initialised: fc_norm.weight, fc_norm.bias" in line for line in printed)


@pytest.mark.parametrize("target", ["a.pth", "libai", "b.pdparams"])
def test_a_fine_tuned_fc_norm_is_preserved(tmp_path: Path, target: str) -> None:
    """Fine-tuning on from it, its features, its accuracy, and the framework's own module all have it."""
    wanted = small.arrays(TUNED.model)
    source = tmp_path / "a.pth"
    files.write(source, {"model": wanted}, "torch")
    if target != "a.pth":
        convert(source, tmp_path / target, heads=8)
        (tmp_path / f"{target}.json").unlink()
    path, drawn = tmp_path / target, initial_values(TUNED.model, 0)
    arrays, _ = initial.load_encoder(TUNED, str(path), drawn)
    for name, array in arrays.items():
        assert np.array_equal(array, (drawn if name.startswith("head.") else wanted)[name]), name
    found = subject._of_classifier(TUNED, str(path))
    assert found.has_head and all(np.array_equal(found.arrays[name], wanted[name]) for name in wanted)
    features = subject._of_encoder(TUNED, str(path))
    assert np.array_equal(features.arrays["fc_norm.bias"], wanted["fc_norm.bias"]) and not features.has_head
    loaded = api.load_arrays(TUNED.model, path, seed=3)
    assert list(loaded) == list(wanted) and all(np.array_equal(loaded[name], a) for name, a in wanted.items())


# ---------------------------------------------------------------- models
def test_models_take_folders_whose_heads_nobody_noted(tmp_path: Path) -> None:
    source, encoder = pretrained(tmp_path, PROBE.model)
    convert(source, tmp_path / "libai", heads=8, only="encoder")
    (tmp_path / "libai.json").unlink()
    arrays, drawn = api.load_arrays(PROBE.model, tmp_path / "libai", seed=5), initial_values(PROBE.model, 5)
    for name, array in arrays.items():
        assert np.array_equal(array, drawn[name] if name.startswith("head.") else encoder[name]), name


def test_heads_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    files.write(tmp_path / "a.pth", {"model": small.arrays(PROBE.model)}, "torch")
    assert isinstance(PROBE.model.objective, Classifier)
    other = replace(PROBE.model, objective=replace(PROBE.model.objective, classes=3))
    with pytest.raises(UserError, match=r"'head.weight' has the shape \(1000, 32\), the model asks for \(3, 32\)"):
        api.load_arrays(other, tmp_path / "a.pth", seed=0)
    assert api.load_arrays(PROBE.model, tmp_path / "a.pth", seed=0)["head.weight"].shape == (1000, 32)


def test_the_package_has_the_commands_as_functions(tmp_path: Path) -> None:
    source, encoder = pretrained(tmp_path, PROBE.model)
    report = triport.convert(source, tmp_path / "b.pdparams")
    assert report.to_layout == "passl-deit" and len(report.carried) == len(encoder)
    found = triport.inspect(tmp_path / "b.pdparams")
    assert (found.layout, found.method) == ("passl-deit", "encoder")
    assert triport.diff(source, tmp_path / "b.pdparams").same()
    arrays = triport.load_weights(tmp_path / "b.pdparams")
    assert list(arrays) == list(encoder) and all(np.array_equal(arrays[name], a) for name, a in encoder.items())
