"""PyTorch's --shard: processes that share weights, gradients and optimizer state compute what one process computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask_ranks
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import batch, distance, parts

torch = pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")
if torch:
    from triport.backends.torch import distributed, sharding
    from triport.parity_tests.fixtures import sharded

SGD = OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.01, decays="all", momentum=0.9)
LARS = replace(SGD, kind="lars", trust=0.02)
# an eps that keeps Adam from making whole steps of the rounding of gradients that are 0 in truth
ADAMW = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, decays="all", eps=1e-3)
FULL = replace(ADAMW, clip_norm=0.5, average=0.9)
PACE = [Values(0.01, 0.9), Values(0.008, 0.95), Values(0.005, 0.99)]
SLOW = [values._replace(lr=values.lr / 10) for values in PACE]  # Adam's steps are as long as the learning rate
BOUNDS = {"float32": "processes", "float64": "float64"}

Case = tuple[str, OptimizerSpec, str, dict[str, Any]]  # model, update rule, precision, what is given besides
EXACT: dict[str, Case] = {
    f"{name} {rule.kind} {precision}": (name, rule, precision, {})
    for name, rule in (("mae", ADAMW), ("moco-vit", ADAMW), ("moco-vit", LARS))
    for precision in BOUNDS
}
SINGLE = [name for name in EXACT if name.endswith("32")]
EXACT |= {
    # in float32 the roundings of its batch norms grow to 1e-6 within three steps, with divided weights or whole ones
    "conv stem": ("moco-conv", SGD, "float64", {}),
    "clipped, averaged": ("mae", FULL, "float64", {}),
    "recomputed": ("moco-vit", FULL, "float64", {"checkpoint_activations": True}),
    "accumulated": ("finetune-mean", FULL, "float64", {"split": 2, "checkpoint_activations": True}),
    "late": ("mae", FULL, "float64", {"late": True}),
    "late moco": ("moco-vit", LARS, "float64", {"late": True}),
    "not finite": ("mae", ADAMW, "float64", {"broken": 1}),
    "not finite, late": ("mae", ADAMW, "float64", {"broken": 1, "late": True}),
}
LOW: dict[str, Case] = {
    "bfloat16": ("mae", SGD, "bfloat16", {"checkpoint_activations": True}),
    "bfloat16 moco": ("moco-vit", SGD, "bfloat16", {}),
    "float16": ("mae", SGD, "float16", {"scale": 1024.0}),
}
OVERFLOW: dict[str, Case] = {"overflow": ("mae", SGD, "float16", {"scale": 1e30})}
SPOILT: dict[str, Case] = {
    "spoilt": ("mae", ADAMW, "float32", {"spoil": "blocks.1.mlp.fc1.weight"}),
    "spoilt, late": ("mae", ADAMW, "float32", {"spoil": "blocks.1.mlp.fc1.weight", "late": True}),
}
CASES: dict[str, Case] = EXACT | LOW | OVERFLOW | SPOILT


def case(name, rank=0, world=1, **more):
    """What a process is asked of a case."""
    model, rule, precision, how = CASES[name]
    spec, how = small.MODELS[model], dict(how)
    split, broken = how.pop("split", 1), how.pop("broken", None)
    steps = []
    for step in range(len(PACE)):
        inputs = small.inputs(spec, n=16, seed=step)
        if step == broken:
            inputs = {**inputs, "images": inputs["images"].copy()}
            inputs["images"][-1] = np.nan  # of the last process alone
        # of several processes each has a part of every micro-batch
        micro = parts(inputs, split)
        steps.append([batch(parts(each, world)[rank]) for each in micro])
    arrays = small.arrays(spec)
    if precision == "float64":
        arrays = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    given = {"spec": spec, "arrays": arrays, "optimizer": rule, "batches": steps}
    given["values"] = SLOW if rule.kind == "adamw" else PACE
    return {**given, "precision": precision, "images": small.inputs(spec, n=3, seed=9)["images"], **how, **more}


@pytest.fixture(scope="module")
def found():
    """The answers of two processes: name -> (first, second); of SINGLE and LOW also with whole weights."""
    asked = []
    for rank in (0, 1):
        mine = {name: case(name, rank, 2, shard=True) for name in CASES}
        mine |= {f"{name}, whole": case(name, rank, 2) for name in (*SINGLE, *LOW)}
        asked.append([Question("trials", {"cases": mine})])
    first, second = (answer[0] for answer in ask_ranks("torch", asked, probe="triport.parity_tests.fixtures.sharded"))
    return {name: (first[name], second[name]) for name in first}


@cache
def alone(name):
    return sharded.trial(distributed.start("cpu"), **case(name))


def with_gradient(arrays, model):
    """Without what has no gradient in truth: key biases, and a bias before a linear layer and a batch norm."""
    rest = {}
    for name, array in arrays.items():
        if name.endswith("attn.qkv.bias"):
            q, _, v = np.split(array, 3)
            array = np.concatenate([q, v])
        if not (model.startswith("moco") and name.endswith("encoder.norm.bias")):
            rest[name] = array
    return rest


# ---------------------------------------------------------------- the same numbers
@pytest.mark.parametrize("name", EXACT)
def test_two_processes_that_share_weights_learn_what_one_learns(found, name):
    (first, second), one = found[name], alone(name)
    model, _, precision, how = CASES[name]
    bound = BOUNDS[precision]
    for step, (ours, other, theirs) in enumerate(zip(first["steps"], second["steps"], one["steps"], strict=True)):
        assert np.array_equal(ours["numbers"], other["numbers"], equal_nan=True)
        assert ours["bad"] == other["bad"] == theirs["bad"] == ("loss" if step == how.get("broken") else None)
        if ours["bad"] is None:
            hold(bound, distance(ours["numbers"][0], theirs["numbers"][0]), f"{name}: loss {step}")
            norms = "gradient" if precision == "float32" else bound
            hold(norms, distance(ours["numbers"][1:], theirs["numbers"][1:]), f"{name}: gradient norms {step}")
    for group in ("model", "state") if precision == "float64" else ("model",):
        ours, theirs = (each if group == "model" else with_gradient(each, model) for each in (first[group], one[group]))
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert ours[key].dtype == array.dtype
            hold(bound, distance(ours[key], array), f"{name}: {group} {key}")
    for group in ("features", "logits"):
        assert np.array_equal(first[group], second[group])
        hold(bound, distance(first[group], one[group]), f"{name}: {group}")


@pytest.mark.parametrize("name", [*SINGLE, *LOW])
def test_divided_weights_learn_what_whole_ones_learn_in_as_many_processes(found, name):
    """The same bits, but where LARS sums norms in parts."""
    divided, whole = found[name][0], found[f"{name}, whole"][0]
    for group in ("model", "state"):
        assert divided[group].keys() == whole[group].keys()
        for key, array in whole[group].items():
            if "lars" not in name:
                assert np.array_equal(divided[group][key], array), key
            elif group == "model":
                hold("processes", distance(divided[group][key], array), f"{name}: {key}")
    assert any(not np.array_equal(array, case(name)["arrays"][key]) for key, array in whole["model"].items())
    if name == "float16":
        assert [step["extras"]["skipped"] for step in divided["steps"]] == [0.0] * len(PACE)


@pytest.mark.parametrize("name", [*OVERFLOW, *SPOILT])
def test_processes_leave_out_a_step_together(found, name):
    before, how = case(name)["arrays"], CASES[name][3]
    for answer in found[name]:
        for step in answer["steps"]:
            assert step["bad"] == how.get("spoil")
            assert step["extras"].get("skipped", 1.0) == 1.0 and not np.isfinite(step["numbers"][1])
    first = found[name][0]
    for key, array in before.items():
        assert np.array_equal(first["model"][key], array), key
    if name in OVERFLOW:
        assert [s["extras"]["loss_scale"] for s in first["steps"]] == pytest.approx([1e30, 5e29, 2.5e29])


# ---------------------------------------------------------------- what each process has
@pytest.mark.parametrize("name", ["mae adamw float32", "moco-vit lars float64"])
def test_each_process_has_half_of_weights_and_state(found, name):
    whole = alone(name)["own"]
    counts = [answer["own"] for answer in found[name]]
    assert sum(counts) == whole and max(counts) < 0.55 * whole


@pytest.mark.parametrize("name", EXACT)
def test_the_first_process_has_whole_arrays_and_all_take_them_over(found, name):
    first, second = found[name]
    assert second["model"] == {} and set(second["state"]) <= {"step"}
    for group in ("model", "state"):
        assert first[group].keys() == first[f"loaded {group}"].keys()
        for key, array in first[group].items():
            assert np.array_equal(array, first[f"loaded {group}"][key]), key


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("model", "world", "compile", "text"),
    [
        ("moco-resnet18", 2, None, "--shard is for vision transformers: leave it out for a ResNet"),
        ("probe-vit", 2, None, "leave it out where the encoder is frozen"),
        ("mae", 2, True, "--compile does not go with --shard"),
        ("mae", 1, None, "--shard divides the weights among processes: add --processes N"),
    ],
)
def test_what_cannot_be_divided_is_refused(model, world, compile, text):
    with pytest.raises(UserError, match=text):
        sharding.check(small.MODELS[model], world, compile)


def test_arrays_of_another_shape_are_refused():
    spec = small.MODELS["mae"]
    model, arrays = torch.nn.Linear(3, 2), {"bias": np.zeros(3, np.float32)}
    tensors = sharding.Shards(spec, distributed.start("cpu"), "float32", model)
    with pytest.raises(UserError, match=r"'bias' has shape \(3,\), which does not fit the model"):
        tensors.fill({"bias": model.bias}, arrays)
