"""Weights for a model: encoders and whole models out of any checkpoint, and files that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.inventory import encoder_inventory, inventory
from triport.core.record import checkpoint
from triport.core.record.export import write_encoder
from triport.core.spec import ModelSpec, ViT
from triport.core.spec.recipe import load, to_toml
from triport.parity_tests.fixtures.bicubic import resampled
from triport.parity_tests.tool import small
from triport.weights.commands.convert import convert
from triport.weights.commands.load import load_encoder, load_model, load_weights
from triport.weights.files import files

MOCO, PIXELS = small.MODELS["moco-vit"], small.MODELS["mae"]
PROBE = replace(small.MODELS["probe-vit"], encoder=small.VIT)
ENCODER = [p.name for p in encoder_inventory(small.VIT)]


def save(path: Path, spec: ModelSpec, arch: str = "other") -> Path:
    key = "state_dict" if spec.objective.kind == "moco" else "model"
    files.write(path, {key: small.arrays(spec), "arch": arch}, "torch")
    return path


@pytest.mark.parametrize("target", ["a.pth", "b.pd", "c.safetensors", "d", "e.pdparams"])
def test_encoders_out_of_any_form(tmp_path: Path, target: str) -> None:
    save(tmp_path / "a.pth", MOCO)
    if target != "a.pth":
        convert(tmp_path / "a.pth", tmp_path / target, heads=8)
    found, report = load_encoder(tmp_path / target, PROBE)
    wanted = small.arrays(MOCO)
    assert list(found) == ENCODER and not report.missing and not report.unknown
    for name, array in found.items():
        assert np.array_equal(array, wanted[f"base_encoder.{name}"])
        assert array.dtype == np.float32 and array.flags.writeable and array.flags.c_contiguous
    assert "arrays of layout" in report.summary()


def test_the_momentum_encoder_on_request(tmp_path: Path) -> None:
    found, _ = load_encoder(save(tmp_path / "a.pth", MOCO), small.VIT, only="momentum")
    assert np.array_equal(found["norm.bias"], small.arrays(MOCO)["momentum_encoder.norm.bias"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", PIXELS), tmp_path / "b.safetensors", dtype="bfloat16")
    found, _ = load_encoder(tmp_path / "b.safetensors", PIXELS)
    assert all(a.dtype == np.float32 for a in found.values())
    assert np.abs(found["norm.bias"] - small.arrays(PIXELS)["norm.bias"]).max() < 1e-2


def test_position_tables_fit_the_models_image(tmp_path: Path) -> None:
    spec = replace(PIXELS, encoder=replace(small.MAE_VIT, image=(24, 12)))  # 3 x 3 patches
    path = save(tmp_path / "a.pth", spec)
    found, report = load_encoder(path, replace(small.MAE_VIT, image=(32, 8)))
    assert np.abs(found["pos_embed"] - resampled(small.arrays(spec)["pos_embed"], (3, 3), (4, 2))).max() < 1e-7
    assert report.names("resampled") == ["pos_embed"] and "resampled from 3 x 3 to 4 x 2" in report.summary()
    found, report = load_encoder(path, replace(small.MAE_VIT, image=(24, 12)))
    assert not report.names("resampled")
    save(tmp_path / "b.pth", PIXELS)  # 2 x 3 patches
    found, _ = load_encoder(tmp_path / "b.pth", replace(small.MAE_VIT, image=(32, 24)))
    assert np.abs(found["pos_embed"] - resampled(small.arrays(PIXELS)["pos_embed"], (2, 3), (4, 6))).max() < 1e-7
    with pytest.raises(UserError, match="not a square grid"):
        load_encoder(tmp_path / "b.pth", replace(small.MAE_VIT, image=(32, 16)))


def test_a_mean_pooled_classifier_leaves_norm_out_and_takes_fc_norm_if_it_is_there(tmp_path: Path) -> None:
    spec = small.MODELS["finetune-mean"]
    found, report = load_encoder(save(tmp_path / "a.pth", PIXELS), spec)
    assert not {"norm.weight", "fc_norm.weight"} & set(found) and not report.missing and not report.unknown
    assert "fc_norm.weight, fc_norm.bias" in report.summary()
    found, report = load_encoder(save(tmp_path / "b.pth", spec), spec)
    assert np.array_equal(found["fc_norm.weight"], small.arrays(spec)["fc_norm.weight"])


def test_missing_and_strange_arrays_are_reported(tmp_path: Path) -> None:
    arrays = small.arrays(PIXELS)
    del arrays["blocks.1.norm2.weight"]
    arrays["adapter"] = np.zeros(3, np.float32)
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    found, report = load_encoder(tmp_path / "a.pth", PIXELS)
    assert report.missing == ["blocks.1.norm2.weight"] and report.unknown == ["adapter"]
    assert "blocks.1.norm2.weight" not in found and "blocks.1.norm2.bias" in found


OTHERS = [
    (replace(small.VIT, width=64), r"cls_token' has the shape \(1, 1, 32\), not \(1, 1, 64\)"),
    (replace(small.VIT, depth=4), r"only one of them has 'blocks\.3"),
    (replace(small.VIT, depth=2), r"only one of them has 'blocks\.2"),
    (replace(small.VIT, patch=(4, 4)), r"patch_embed.proj.weight"),
    (replace(small.VIT, channels=1), r"patch_embed.proj.weight"),
    (small.CONV, "with convolutional stem"),
    (small.RESNET18, "the model is a ResNet-18"),
]


@pytest.mark.parametrize(("encoder", "line"), OTHERS)
def test_other_architectures_are_refused_in_one_line(tmp_path: Path, encoder: object, line: str) -> None:
    path = save(tmp_path / "a.pth", MOCO)
    with pytest.raises(UserError, match=line) as caught:
        load_encoder(path, encoder)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and "width 32, depth 3" in str(caught.value)


def test_other_mlp_ratios_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blocks.0.mlp.fc1.weight' has the shape \(128, 32\)"):
        load_encoder(save(tmp_path / "a.pth", MOCO), replace(small.VIT, mlp_ratio=2.0))


def test_other_heads_are_refused_where_the_file_says_its_own(tmp_path: Path) -> None:
    wide = replace(MOCO, encoder=replace(small.VIT, width=48, heads=12))
    path = save(tmp_path / "a.pth", wide, "vit_small")
    load_encoder(path, wide)
    with pytest.raises(UserError, match=r"trained with 12 heads, the model has 6.*model.encoder.heads=12"):
        load_encoder(path, replace(small.VIT, width=48, heads=6))
    load_encoder(save(tmp_path / "b.pth", wide, "vit_other"), replace(small.VIT, width=48, heads=6))


def test_files_of_nothing_known_are_refused(tmp_path: Path) -> None:
    files.write(tmp_path / "a.pth", {"model": {"a.weight": np.zeros((2, 2)), "b": np.ones(3)}}, "torch")
    with pytest.raises(UserError, match=r"a\.pth has no layout that is known here"):
        load_encoder(tmp_path / "a.pth", small.VIT)
    with pytest.raises(UserError, match="no file or folder"):
        load_encoder(tmp_path / "missing", small.VIT)
    only = {n: a for n, a in small.arrays(MOCO).items() if n.startswith("predictor.")}
    files.write(tmp_path / "b.pth", {"state_dict": only}, "torch")
    with pytest.raises(UserError, match="it holds no encoder, only predictor"):
        load_encoder(tmp_path / "b.pth", small.VIT)


@pytest.mark.parametrize("kind", ["finetune-token", "finetune-mean"])
def test_the_model_says_which_norm_a_libai_classifier_has(tmp_path: Path, kind: str) -> None:
    spec = small.MODELS[kind]
    convert(save(tmp_path / "a.pth", spec), tmp_path / "b", heads=8)
    for found, report in (load_model(tmp_path / "b", spec), load_encoder(tmp_path / "b", spec)):
        assert all(np.array_equal(found[n], a) for n, a in small.arrays(spec).items() if n in found)
        assert ("fc_norm.bias" in found) == (kind == "finetune-mean") != ("norm.bias" in found) and not report.missing


@pytest.mark.parametrize("kind", ["moco-vit", "mae", "probe-mae", "finetune-mean", "probe-resnet18"])
def test_whole_models(tmp_path: Path, kind: str) -> None:
    spec = small.MODELS[kind]
    found, report = load_model(save(tmp_path / "a.pth", spec), spec)
    assert list(found) == [p.name for p in inventory(spec)] and not report.missing
    assert all(np.array_equal(found[n], a) for n, a in small.arrays(spec).items())
    if kind.startswith("moco"):
        with pytest.raises(UserError, match="holds MoCo v3, the model is MAE: load its encoder instead"):
            load_model(tmp_path / "a.pth", PIXELS)


def test_heads_of_by_head_layouts_come_from_the_spec(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", PIXELS), tmp_path / "b", heads=8, decoder_heads=4)
    (tmp_path / "b.json").unlink()  # so that nothing but the spec knows
    found, _ = load_model(tmp_path / "b", PIXELS)
    assert all(np.array_equal(found[n], a) for n, a in small.arrays(PIXELS).items())
    found, _ = load_encoder(tmp_path / "b", small.MAE_VIT)
    assert np.array_equal(found["blocks.0.attn.qkv.weight"], small.arrays(PIXELS)["blocks.0.attn.qkv.weight"])
    with pytest.raises(UserError, match="--heads"):
        load_weights(tmp_path / "b")
    assert list(load_weights(tmp_path / "b", heads=8, decoder_heads=4)) == list(small.arrays(PIXELS))


def test_this_projects_own_checkpoints_and_encoders(tmp_path: Path) -> None:
    recipe = load("tiny/test_moco_vit")
    encoder, arrays = recipe.model.encoder, small.arrays(recipe.model)
    assert isinstance(encoder, ViT)
    state = {"format": 1, "epoch": 3, "step": 30, "recipe": to_toml(recipe)}
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last", {"model": arrays, "optimizer": {}}, state)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last"):
        found, report = load_model(path, recipe.model)
        assert all(np.array_equal(found[n], a) for n, a in arrays.items())
        assert report.from_layout == "triport" and report.heads == encoder.heads
        with pytest.raises(UserError, match=f"trained with {encoder.heads} heads"):
            load_encoder(path, replace(encoder, heads=1))
    write_encoder(tmp_path / "encoder.safetensors", recipe, arrays)
    found, report = load_encoder(tmp_path / "encoder.safetensors", encoder)
    assert len(found) == len(encoder_inventory(encoder)) and report.from_layout == "triport"
    with pytest.raises(UserError, match=f"trained with {encoder.heads} heads"):
        load_encoder(tmp_path / "encoder.safetensors", replace(encoder, heads=1))
    report = convert(tmp_path / "run", tmp_path / "out")
    assert report.to_layout == "libai-moco" and report.heads == encoder.heads


def lying(encoder: ViT, image: tuple[int, int]) -> ModelSpec:
    return replace(PIXELS, encoder=replace(encoder, image=image))


def run_file(folder: Path, spec: ModelSpec) -> Path:
    """An encoder as a run leaves it, with the recipe in its metadata."""
    assert isinstance(spec.encoder, ViT)
    sides = f"image={list(spec.encoder.image)}", f"model.encoder.patch={list(spec.encoder.patch)}"
    colours = [f"{part}.{word}=[0.5,0.5,0.5]" for part in ("train", "evaluate") for word in ("mean", "std")]
    recipe = replace(load("tiny/mae_vit_tiny", [*sides, "model.encoder.channels=3", *colours]), model=spec)
    write_encoder(folder / "encoder.safetensors", recipe, small.arrays(spec))
    return folder / "encoder.safetensors"


def test_a_table_that_is_not_square_is_resampled_on_its_own_grid(tmp_path: Path) -> None:
    spec = lying(small.MAE_VIT, (16, 24))  # 2 x 6 patches of 8 x 4
    expected = resampled(small.arrays(spec)["pos_embed"], (2, 6), (4, 3))  # as many, and otherwise
    transposed = replace(small.MAE_VIT, image=(32, 12))
    path = run_file(tmp_path, spec)
    found, report = load_encoder(path, transposed)
    assert np.allclose(found["pos_embed"], expected, atol=1e-6) and "from 2 x 6 to 4 x 3" in report.summary()
    convert(path, tmp_path / "b.npz")  # the grid travels with it
    found, _ = load_encoder(tmp_path / "b.npz", transposed)
    assert np.allclose(found["pos_embed"], expected, atol=1e-6)
    convert(tmp_path / "b.npz", tmp_path / "c.npz", image=(32, 12))
    found, _ = load_encoder(tmp_path / "c.npz", replace(small.MAE_VIT, image=(16, 24)))
    assert np.allclose(found["pos_embed"], resampled(expected, (4, 3), (2, 6)), atol=1e-6)


def test_a_square_number_of_patches_that_do_not_lie_square_is_taken_as_they_lie(tmp_path: Path) -> None:
    spec = lying(small.MAE_VIT, (16, 32))  # 2 x 8 patches: 16, as 4 x 4
    found, report = load_encoder(run_file(tmp_path, spec), replace(small.MAE_VIT, image=(32, 16)))
    assert np.allclose(found["pos_embed"], resampled(small.arrays(spec)["pos_embed"], (2, 8), (4, 4)), atol=1e-6)
    found, report = load_encoder(run_file(tmp_path, spec), replace(small.MAE_VIT, image=(16, 32)))
    assert not report.names("resampled")


def test_a_file_that_does_not_tell_its_grid_is_taken_as_the_models_with_a_note(tmp_path: Path) -> None:
    _, report = load_encoder(save(tmp_path / "a.pth", PIXELS), PIXELS)
    assert "does not say how its" in report.summary() and not report.names("resampled")
