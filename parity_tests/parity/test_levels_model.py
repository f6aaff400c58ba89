"""Forward passes, gradients and optimiser steps of each installed backend against the numpy float64 reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from triport.core.data.loader import Batch
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.spec import MoCo, OptimizerSpec, ViT
from triport.parity_tests.reference import objectives
from triport.parity_tests.reference import optimizers as optimisers
from triport.parity_tests.tool import small
from triport.parity_tests.tool.bounds import hold

PLAIN = OptimizerSpec(kind="sgd", lr=0.1, weight_decay=0.0, decays="all", momentum=0.0)
STATISTICS = ("running_mean", "running_var")
MODELS = {**small.MODELS, "moco-resnet10": small.NARROW}


def batch(inputs):
    views = [inputs[name] for name in ("view1", "view2") if name in inputs] or [inputs["images"]]
    n = len(views[0])
    return Batch(
        images=tuple(views),
        labels=inputs.get("labels", np.zeros(n, np.int64)),
        targets=inputs.get("targets"),
        indices=np.arange(n),
        mask_noise=inputs.get("mask_noise"),
        drop_path=inputs.get("drop_path"),
    )


def distance(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


@cache
def truth(name):
    spec = MODELS[name]
    return objectives.train_step(spec, small.arrays(spec), small.inputs(spec), momentum=0.9)


@cache
def one_step(probe, name, precision="float32"):
    spec = MODELS[name]
    micro = [[batch(small.inputs(spec))]]
    arrays = small.arrays(spec)
    if precision == "float64":
        arrays = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in arrays.items()}
    return probe.train(spec, arrays, PLAIN, micro, [Values(0.1, 0.9)], record=("gradients",), precision=precision)


def evaluation_bound(name):
    return "forward-full" if "resnet50" in name else "forward"


@pytest.mark.parametrize("name", MODELS)
def test_every_output_in_evaluation_mode(probe, name):
    spec = MODELS[name]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    ours, theirs = probe.forward(spec, arrays, inputs), objectives.forward(spec, arrays, inputs)
    assert set(ours) == set(theirs)
    for key in theirs:
        hold(evaluation_bound(name), distance(ours[key], theirs[key]), key)


@pytest.mark.parametrize("name", ["moco-vit", "moco-conv", "moco-resnet50", "mae", "finetune-mean"])
def test_every_layer_in_evaluation_mode(probe, name):
    spec = MODELS[name]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    ours = probe.forward(spec, arrays, inputs, layers=True)
    theirs = objectives.forward(spec, arrays, inputs, layers=True)
    shared = [key for key in theirs if key in ours and ours[key].shape == theirs[key].shape]
    assert len(shared) > 0.6 * len(theirs)
    for key in shared:
        hold(evaluation_bound(name), distance(ours[key], theirs[key]), key)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_statistics_of_a_training_step(probe, name):
    """In float64 where batch norms of few rows make rounding large."""
    spec, theirs = MODELS[name], truth(name)
    normed = any(p.role == "statistic" for p in inventory(spec))
    ours = one_step(probe, name, "float64" if normed else "float32")
    bound = "float64" if normed else "forward"
    hold(bound, distance(ours["step0/loss"], theirs.loss), "loss")
    for key in ("q1", "q2", "k1", "k2", "prediction", "logits"):
        if key in theirs.outputs:
            hold(
                "float64-deep" if name == "moco-resnet50" else bound,
                distance(ours[f"step0/{key}"], theirs.outputs[key]),
                key,
            )
    for key, value in theirs.moved.items():
        if not (name.startswith("moco") and key.startswith(("base_encoder.", "predictor.")) and not _statistic(key)):
            hold(bound, distance(ours[f"final/{key}"], value), key)


def _statistic(key):
    return key.endswith((*STATISTICS, "num_batches_tracked"))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_slopes_of_the_loss(probe, name):
    spec, ours, theirs = MODELS[name], one_step(probe, name), truth(name)
    arrays = {key: np.asarray(value, np.float64) for key, value in small.arrays(spec).items()}
    gradients = {p.name: ours[f"step0/grad/{p.name}"] for p in inventory(spec) if p.trainable}
    length = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradients.values()))
    for seed in range(3):
        direction = optimisers.random_direction(arrays, gradients, seed)
        slope = optimisers.slope(theirs.again, arrays, direction)
        along = sum((np.asarray(gradients[key], np.float64) * d).sum() for key, d in direction.items())
        hold("gradient", abs(along - slope) / length, f"direction {seed}")


@pytest.mark.parametrize("name", ["mae", "finetune-mean"])
def test_softmax_does_not_feel_the_key_bias(probe, name):
    spec, ours = MODELS[name], one_step(probe, name, "float64")
    assert isinstance(spec.encoder, ViT)
    width = spec.encoder.width
    bias = ours["step0/grad/blocks.1.attn.qkv.bias"]
    assert np.abs(bias[:width]).max() > 1e-5
    hold("float64", float(np.abs(bias[width : 2 * width]).max() / np.abs(bias).max()), name)


RULES = {
    "adamw-all": OptimizerSpec(kind="adamw", lr=1e-2, weight_decay=0.1, decays="all"),
    "adamw-matrices": OptimizerSpec(kind="adamw", lr=1e-2, weight_decay=0.05, decays="matrices", betas=(0.9, 0.95)),
    "adamw-layers": OptimizerSpec(
        kind="adamw", lr=1e-2, weight_decay=0.05, decays="matrices_but_tokens", layer_decay=0.65, clip_norm=0.5
    ),
    "adamw-average": OptimizerSpec(kind="adamw", lr=1e-2, weight_decay=0.05, decays="matrices", average=0.9),
    "lars": OptimizerSpec(kind="lars", lr=2.0, weight_decay=1e-2, decays="all"),
    "sgd": OptimizerSpec(kind="sgd", lr=0.5, weight_decay=1e-2, decays="matrices"),
}


@pytest.mark.parametrize("rule", RULES)
def test_optimiser_steps_follow_their_formulas(probe, rule):
    """Three steps; each formula is fed the gradients that the backend had, so that errors do not mix."""
    spec, optimizer = MODELS["finetune-token"], RULES[rule]
    start, micro = small.arrays(spec), [batch(small.inputs(spec))]
    values = [Values(lr, 0.0) for lr in (1e-2, 2e-2, 5e-3)]
    ours = probe.train(spec, start, optimizer, [micro] * 3, values, record=("gradients", "weights", "state"))
    rules = {
        p.name: optimisers.rule(p.name, len(p.shape), optimizer, spec.encoder.depth)
        for p in inventory(spec)
        if p.trainable
    }
    arrays = {k: np.asarray(v, np.float64) for k, v in start.items()}
    state: dict[str, np.ndarray] = {}
    unclipped = replace(optimizer, clip_norm=None)  # recorded gradients are what the update saw
    for i, now in enumerate(values):
        gradients = {name: ours[f"step{i}/grad/{name}"] for name in rules}
        arrays, state = optimisers.optimizer_step(unclipped, arrays, gradients, state, now.lr, rules)
        for name in rules:
            hold("optimizer", distance(ours[f"step{i}/{name}"], arrays[name]), f"step {i} {name}")
    for key, value in state.items():
        hold("optimizer", distance(ours[f"state/{key}"], value), key)
    if optimizer.clip_norm is not None:
        length = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradients.values()))
        assert abs(length - optimizer.clip_norm) < 1e-4 * optimizer.clip_norm


def test_groups_are_the_references(probe):
    spec = MODELS["finetune-token"]
    for optimizer in RULES.values():
        for name, group in groups(inventory(spec), optimizer).items():
            size = len(next(p.shape for p in inventory(spec) if p.name == name))
            assert group == pytest.approx(optimisers.rule(name, size, optimizer, spec.encoder.depth))


@pytest.mark.parametrize("name", ["mae", "finetune-mean"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(probe, name):
    spec = MODELS[name]
    inputs = small.inputs(spec)
    halves = [batch({key: value[part] for key, value in inputs.items()}) for part in (slice(0, 3), slice(3, 6))]
    ours = probe.train(spec, small.arrays(spec), PLAIN, [halves], [Values(0.1, 0.0)])
    whole = one_step(probe, name)
    for key, value in whole.items():
        if key.startswith("step0/grad/") and np.abs(value).max() > 1e-6:
            hold("gradient", distance(ours[key], value), key)


def test_the_momentum_encoder_moves_before_the_keys(probe):
    spec = MODELS["moco-vit"]
    assert isinstance(spec.objective, MoCo)
    inputs, arrays = small.inputs(spec), small.arrays(spec)
    still = probe.train(spec, arrays, PLAIN, [[batch(inputs)]], [Values(0.1, 1.0)])
    moved = one_step(probe, "moco-vit")
    assert distance(still["step0/k1"], moved["step0/k1"]) > 1e-3
    name = "momentum_encoder.blocks.0.mlp.fc1.weight"
    base = arrays[name.replace("momentum", "base")]
    hold("optimizer", distance(moved[f"final/{name}"], 0.9 * arrays[name] + 0.1 * base), name)
    assert np.array_equal(still[f"final/{name}"], arrays[name])
