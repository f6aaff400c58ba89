"""Questions reach a real backend and come back unchanged; two processes learn what one learns."""

from __future__ import annotations

import numpy as np
import pytest

from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.reference import objectives
from triport.parity_tests.tool import small
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import Remote, batch, distance, parts, training

RULE = OptimizerSpec(kind="sgd", lr=0.05, weight_decay=0.01, decays="all")


def test_an_answer_from_another_process_is_that_of_this_one(probe):
    spec = small.MODELS["finetune-mean"]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    far = Remote(probe.__name__.split(".")[2]).forward(spec, arrays, inputs, layers=True, gradients=True)
    near = probe.forward(spec, arrays, inputs, layers=True, gradients=True)
    assert set(far) == set(near)
    for name, value in near.items():
        assert far[name].dtype == value.dtype, name
        hold("forward", distance(far[name], value), f"{name}, from another process")
    hold("forward", distance(far["logits"], objectives.forward(spec, arrays, inputs)["logits"]), "logits")


@pytest.mark.parametrize(("name", "samples"), [("moco-conv", 32), ("finetune-token", 8)])
def test_two_processes_learn_what_one_learns(probe, name, samples):
    """Gradients, losses and weights of two steps: rank r has the r-th half of each batch, batch norms see all of it."""
    spec = small.MODELS[name]
    arrays, values = small.arrays(spec), [Values(0.01, 0.9), Values(0.008, 0.95)]
    inputs = [small.inputs(spec, n=samples, seed=seed) for seed in (0, 1)]
    halves = [[parts(step, 2)[rank] for step in inputs] for rank in (0, 1)]
    questions = [training(spec, arrays, RULE, [[batch(half)] for half in mine], values) for mine in halves]
    first, second = Remote(probe.__name__.split(".")[2]).together(questions)
    one = probe.train(spec, arrays, RULE, [[batch(step)] for step in inputs], values)
    for step in (0, 1):
        assert first[f"step{step}/loss"] == second[f"step{step}/loss"]
        hold("training", distance(first[f"step{step}/loss"], one[f"step{step}/loss"]), f"{name} loss {step}")
        gradients = [key for key in one if key.startswith(f"step{step}/grad/")]
        error = length(first[key] - one[key] for key in gradients) / length(one[key] for key in gradients)
        hold("gradient", error, f"{name} two processes, step {step}")
    for key in arrays:
        assert np.array_equal(first[f"final/{key}"], second[f"final/{key}"]), key
        hold("training", distance(first[f"final/{key}"], one[f"final/{key}"]), f"{name} {key}")


def length(arrays) -> float:
    return float(np.sqrt(sum((np.asarray(array, np.float64) ** 2).sum() for array in arrays)))


def test_parts_are_contiguous_and_equal():
    first, second = parts({"x": np.arange(6), "y": np.ones((6, 2))}, 2)
    assert first["x"].tolist() == [0, 1, 2] and second["x"].tolist() == [3, 4, 5] and second["y"].shape == (3, 2)
    with pytest.raises(ValueError, match="equal division"):
        parts({"x": np.arange(5)}, 2)


def test_distance_is_relative_to_the_largest_and_wants_equal_shapes():
    assert distance([1.0, 10.0], [1.0, 8.0]) == 0.25
    assert np.isnan(distance([np.nan], [1.0])) and distance(np.zeros(0), np.zeros(0)) == 0.0
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2,\)"):
        distance([[1.0, 2.0]], [1.0, 2.0])
