"""LiBai's own classes and schedulers from a checkout that TRIPORT_LIBAI names; schedules against OneFlow's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from triport.core.model.schedule import at, compounded_at, lr_at
from triport.core.spec import MAE, Classifier, MoCo, ModelSpec, ViT, recipe
from triport.core.spec.foreign.libai_training import COSINES
from triport.core.spec.spec import ScheduleSpec
from triport.parity_tests.reference.objectives import forward, train_step
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.bounds import hold
from triport.weights.commands.convert import convert

pytestmark = pytest.mark.framework("oneflow")
TRIAL = "triport.parity_tests.fixtures.libai_trial"
CHECKOUT = "triport.parity_tests.fixtures.libai_checkout"
ENCODER = ViT(
    width=48, depth=2, heads=4, image=(32, 32), patch=(8, 8), position="mae", initial_values="mae", norm_eps=1e-5
)
SIZES = {"img_size": 32, "patch_size": 8, "in_chans": 3, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 4}
STEPS, WARMUP, LR, FACTOR, LEAST = 60, 12, 3e-3, 0.01, 2e-5


@pytest.fixture
def checkout() -> str:
    """The checkout that the environment names."""
    named = os.environ.get("TRIPORT_LIBAI", "")
    if not named:
        pytest.skip("no checkout of LiBai: clone Oneflow-Inc/libai and set TRIPORT_LIBAI to the folder")
    assert (Path(named) / "projects" / "MOCOV3").is_dir(), f"TRIPORT_LIBAI={named} is not a checkout of LiBai"
    return named


def written(folder: Path, spec: ModelSpec, layout: str) -> tuple[dict[str, NDArray], str]:
    """Values of a model, and the folder that `triport convert` writes of them for LiBai."""
    arrays = small.arrays(spec)
    save_file(arrays, str(folder / "a.safetensors"))
    decoder = spec.objective.decoder_heads if isinstance(spec.objective, MAE) else None
    convert(folder / "a.safetensors", folder / "run", to=layout, heads=4, norm_eps=1e-5, decoder_heads=decoder)
    return arrays, str(folder / "run" / "model_0000000" / "model")


def answer(function: str, checkout: str, **given: Any) -> Any:
    return ask("oneflow", [Question(function, {"checkout": checkout, **given})], probe=CHECKOUT)[0]


def far(got: NDArray, want: NDArray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


# ---------------------------------------------------------------- LiBai's classes
@pytest.mark.parametrize(
    ("project", "pooling", "layout"),
    [("MAE", "mean", "libai-mae-finetune"), ("MAE", "token", "libai-vit"), ("MOCOV3", "token", "libai-vit")],
)
def test_libais_own_vit_gives_the_outputs_of_a_folder_written_here(
    tmp_path: Path, checkout: str, project: str, pooling: Any, layout: str
) -> None:
    spec = ModelSpec(encoder=ENCODER, objective=Classifier(classes=7, pooling=pooling, head_std=0.01))
    arrays, folder = written(tmp_path, spec, layout)
    inputs = small.inputs(spec, n=4)
    sizes = {**SIZES, "num_classes": 7, "global_pool": pooling == "mean"}
    found = answer("classify", checkout, project=project, folder=folder, sizes=sizes, images=inputs["images"])
    assert found["left"] == []
    hold("forward", far(found["logits"], forward(spec, arrays, inputs)["logits"]), f"{project} {pooling}")


def test_libais_own_mae_gives_the_loss_and_the_prediction_of_a_folder_written_here(
    tmp_path: Path, checkout: str
) -> None:
    objective = MAE(normalised_pixels=True, decoder_width=48, decoder_depth=2, decoder_heads=4, mask_ratio=0.75)
    spec = ModelSpec(encoder=ENCODER, objective=objective)
    arrays, folder = written(tmp_path, spec, "libai-mae")
    inputs = small.inputs(spec, n=4)
    sizes = {**SIZES, "decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 4, "norm_pix_loss": True}
    noise = inputs["mask_noise"].astype(np.float32)
    found = answer("mask", checkout, folder=folder, sizes=sizes, images=inputs["images"], noise=noise)
    want = forward(spec, arrays, inputs)
    assert found["left"] == [] and np.array_equal(found["mask"], want["mask"])
    for name in ("loss", "prediction"):
        hold("forward", far(found[name], want[name]), f"MAE {name}")


def test_libais_own_moco_gives_the_projection_and_the_loss_of_a_folder_written_here(
    tmp_path: Path, checkout: str
) -> None:
    spec = ModelSpec(encoder=ENCODER, objective=MoCo(temperature=0.2, momentum=0.99, hidden=48, dim=16))
    arrays, folder = written(tmp_path, spec, "libai-moco")
    inputs = small.inputs(spec, n=16)
    views = [inputs["view1"], inputs["view2"]]
    more = {"dim": 16, "mlp_dim": 48, "T": 0.2, "m": 0.99}
    found = answer("contrast", checkout, folder=folder, sizes=SIZES, more=more, views=views)
    want = forward(spec, arrays, {**inputs, "images": views[0]})["projection"]
    assert found["left"] == [] and found["momentum"] == 0.99
    hold("forward", far(found["projection"], want), "MoCo projection")
    step = train_step(spec, arrays, inputs, momentum=0.99)
    hold("forward", abs(float(found["loss"]) / step.loss - 1), "MoCo loss")


# ---------------------------------------------------------------- schedules
def schedule(name: str) -> ScheduleSpec:
    cosine, end, _ = COSINES[name]
    return ScheduleSpec(
        epochs=STEPS, warmup_epochs=WARMUP, warmup_lr=LR * FACTOR, min_lr=LEAST, cosine=cosine, warmup_end=end
    )


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupCosineAnnealingLR", "warmup_cosine_lr_scheduler"])
def test_the_rates_of_libais_files_are_those_of_oneflows_schedulers(name: str) -> None:
    given = {"kind": name, "lr": LR, "steps": STEPS, "warmup": WARMUP, "factor": FACTOR, "least": LEAST}
    theirs = ask("oneflow", [Question("rates", given)], probe=TRIAL)[0]
    ours = [lr_at(schedule(name), LR, step) for step in range(STEPS)]
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert (ours[-1] > 1.5 * min(ours[WARMUP:])) == (name == "warmup_cosine_lr_scheduler")  # this one rises again


@pytest.mark.parametrize(
    ("module", "name", "more"),
    [
        ("libai.scheduler", "WarmupCosineLR", {"alpha": LEAST / LR}),
        ("libai.scheduler", "WarmupCosineAnnealingLR", {"eta_min": LEAST}),
        ("utils.scheduler", "warmup_cosine_lr_scheduler", {"min_lr": LEAST}),
        ("utils.scheduler", "warmup_layerscale_cosine_lr_scheduler", {"min_lr": LEAST}),
    ],
)
def test_the_rates_are_those_of_libais_own_schedulers(checkout: str, module: str, name: str, more: Any) -> None:
    factor = 0.0 if "layerscale" in name else FACTOR  # which that one does not use
    given = {"max_iter": STEPS, "warmup_iter": WARMUP, "warmup_factor": factor, **more}
    theirs = answer("rates", checkout, module=module, name=name, given=given, lr=LR, steps=STEPS)
    planned = replace(schedule(name), warmup_lr=LR * factor)
    assert [lr_at(planned, LR, step) for step in range(STEPS)] == pytest.approx(theirs, rel=1e-12)


def test_the_momentum_that_compounds_is_that_of_libais_trainer(checkout: str) -> None:
    theirs = answer("momenta", checkout, start=0.99, steps=90)
    assert [compounded_at(0.99, step, 90) for step in range(90)] == pytest.approx(theirs, rel=1e-14)
    one = recipe.load("tiny/test_moco_vit", ["model.objective.momentum_compounds=true", "schedule.epochs=9"])
    start = one.model.objective.momentum  # type: ignore[union-attr]
    assert at(one, 89, 10).momentum == pytest.approx(compounded_at(start, 89, 90))
