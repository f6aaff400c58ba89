"""The reference against what the original PyTorch code computed (goldens/), at full size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from triport.core.errors import UserError
from triport.core.model.inventory import inventory
from triport.core.spec import OptimizerSpec
from triport.parity_tests.reference import objectives
from triport.parity_tests.reference import optimizers as optimisers
from triport.parity_tests.tool import cases
from triport.parity_tests.tool.bounds import hold


def golden(name: str) -> cases.Case:
    """A shipped case."""
    return cases.read(cases.GOLDENS / f"{name}.safetensors")


def error(got: NDArray | float, want: NDArray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


NAMES = [
    "moco-vit_small-f64",
    "mae-mae_vit_base_patch16-f64",
    "moco-vit_small",
    "mae-mae_vit_base_patch16",
    "finetune-vit_base_patch16",
    "lincls-vit_small",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_case_has_the_inventorys_names_and_shapes(name):
    case = golden(name)
    recorded = {key: tuple(shape) for key, shape in case.meta["keys"].items()}
    assert recorded == {p.name: p.shape for p in inventory(case.spec)}


def test_moco():
    case = golden("moco-vit_small-f64")
    arrays, inputs, record = case.arrays(), case.inputs(), case.record
    assert case.steps == 5 and case.optimizer is not None and case.optimizer.decays == "all"
    out = objectives.forward(case.spec, arrays, {"images": inputs["images"][:2]})  # evaluation sees rows one by one
    for name in ("projection", "prediction"):
        hold("golden64-output", error(out[name], record[f"eval/{name}"][:2]), f"reference, {name}")
    step = objectives.train_step(case.spec, arrays, inputs, case.momentum)
    hold("golden64-output", error(step.loss, record["step0/loss"]), f"reference, {case.name}")
    for name in ("q1", "q2", "k1", "k2"):
        hold("golden64-output", error(step.outputs[name], record[f"step0/{name}"]), f"reference, {name}")


def test_mae():
    case = golden("mae-mae_vit_base_patch16-f64")
    arrays, inputs, record = case.arrays(), case.inputs(), case.record
    assert case.optimizer is not None and case.optimizer.decays == "matrices"
    step = objectives.train_step(case.spec, arrays, inputs)
    prediction = step.outputs["prediction"]
    assert np.array_equal(step.outputs["mask"], record["step0/mask"])
    hold("golden64-output", error(step.loss, record["step0/loss"]), f"reference, {case.name}")
    hold("golden64-output", error(prediction[:, :4, :32], record["step0/pred_head"]), "reference, prediction")
    hold("golden64-output", error(np.sqrt((prediction**2).sum()), record["step0/pred_norm"]), "reference, its length")
    # the slope along the original's gradient of one array is that gradient's length; here along eight of its values
    direction, want, scale = {}, 0.0, 0.0
    for name in ("decoder_pred.bias", "mask_token", "blocks.3.attn.qkv.weight"):
        head = record[f"step0/grad_head/{name}"].astype(np.float64)
        part = np.zeros(arrays[name].size)
        part[:8] = head / np.linalg.norm(head)
        direction[name] = part.reshape(arrays[name].shape)
        want, scale = want + np.linalg.norm(head), max(scale, record[f"step0/grad_norm/{name}"][0])
    hold("gradient", abs(optimisers.slope(step.again, arrays, direction) - want) / scale, "reference, MAE")


@pytest.mark.parametrize("name", ["finetune-vit_base_patch16", "lincls-vit_small"])
def test_classifiers(name):
    case = golden(name)
    inputs = case.inputs()
    out = objectives.forward(case.spec, case.arrays(), inputs)
    hold("forward-full", error(out["logits"], case.record["eval/logits"]), f"reference, {name}")
    assert ("labels" in inputs) == ("eval/loss" in case.record) == name.startswith("finetune")
    if "labels" in inputs:
        hold("forward-full", error(out["loss"], case.record["eval/loss"]), f"reference, {name}")


@pytest.mark.parametrize("layer_decay", [0.65, 0.75])
def test_layer_decay(layer_decay):
    case = golden("finetune-vit_base_patch16")
    spec = OptimizerSpec(
        kind="adamw", lr=1e-3, weight_decay=0.05, decays="matrices_but_tokens", layer_decay=layer_decay
    )
    for name, shape in case.meta["keys"].items():
        want = case.record[f"lrd{layer_decay}/{name}"]
        assert optimisers.rule(name, len(shape), spec, 12) == pytest.approx(tuple(want), rel=1e-6)


# ---------------------------------------------------------------- other cases of the same form
@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("moco-vit_conv_small", {"temperature": 0.2, "momentum": 0.99, "stop_grad_conv1": True}),
        ("moco-resnet50", {"temperature": 1.0, "momentum": 0.99, "optimizer": "lars", "lr": 0.3, "weight_decay": 1e-6}),
        ("mae-mae_vit_large_patch16", {"norm_pix_loss": False, "mask_ratio": 0.5}),
        ("mae-mae_vit_huge_patch14", {"norm_pix_loss": True, "mask_ratio": 0.75}),
        ("finetune-vit_large_patch16-cls", {"global_pool": False}),
        ("lincls-resnet50", {}),
    ],
)
def test_another_case_is_understood(tmp_path, name, meta):
    kind, _, arch = name.partition("-")
    everything = {**meta, "case": name, "arch": arch.removesuffix("-cls"), "batch": 4, "keys": {}}
    path = tmp_path / "any.safetensors"
    save_file({"step0/loss": np.zeros(1)}, path, {"meta": json.dumps(everything)})
    case = cases.read(path)
    assert (case.name, case.kind, case.steps) == (name, kind, 1)
    names = {p.name for p in inventory(case.spec)}
    if name == "moco-resnet50":
        assert case.optimizer is not None and case.optimizer.kind == "lars" and "base_encoder.fc.4.running_var" in names
    if name.endswith("-cls"):
        assert "norm.weight" in names and "fc_norm.weight" not in names
    if name == "mae-mae_vit_huge_patch14":
        assert case.inputs()["mask_noise"].shape == (4, 256)
    if name == "moco-vit_conv_small":
        assert "base_encoder.patch_embed.proj.12.bias" in names and "base_encoder.blocks.11.norm1.weight" not in names


def test_what_is_not_a_case_is_reported(tmp_path):
    with pytest.raises(UserError, match="moco-vit_small"):
        cases.read(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="augment"):
        cases.read(cases.GOLDENS / "augment.safetensors")
    with pytest.raises(UserError, match="Did you mean 'vit_small'"):
        cases.moco_encoder("vit_smal", frozen_patch=True)


def test_summaries_are_as_recorded():
    case = golden("mae-mae_vit_base_patch16")
    array = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    assert cases.summary("final/param", {"w": array})["final/param_norm/w"] == pytest.approx([np.sqrt(506)])
    assert cases.summary("final/param", {"w": array})["final/param_head/w"].tolist() == list(range(8))
    # a learning rate of 1e-4 moved the weights by 3e-4 at most: the records are of these very names
    arrays = {key: a for key, a in case.arrays().items() if f"final/param_head/{key}" in case.record}
    before = cases.summary("final/param", arrays)
    for key, value in before.items():
        if "_head/" in key:
            assert np.abs(value - case.record[key]).max() < 4e-4
