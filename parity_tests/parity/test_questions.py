"""Questions reach a real backend and come back unchanged; two processes learn what one learns."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.reference import objectives
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask_ranks
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


SAMPLES = {"moco-conv": 32, "finetune-token": 8}
VALUES = [Values(0.01, 0.9), Values(0.008, 0.95)]  # of two steps


def steps(name):
    """The inputs of two steps."""
    return [small.inputs(small.MODELS[name], n=SAMPLES[name], seed=seed) for seed in (0, 1)]


@cache
def of_two_processes(backend):
    """Of each model what two processes learn: rank r has the r-th half of each batch. One job answers for all."""
    questions = []
    for rank in (0, 1):
        halves = {name: [[batch(parts(step, 2)[rank])] for step in steps(name)] for name in SAMPLES}
        given = {n: training(small.MODELS[n], small.arrays(small.MODELS[n]), RULE, halves[n], VALUES) for n in SAMPLES}
        rest = {"backend": backend, "fault": ""}
        questions.append(
            [Question("train", {**rest, "given": given[n].given, "last": n == "finetune-token"}) for n in SAMPLES]
        )
    answers = ask_ranks(backend, questions, probe="triport.parity_tests.tool.ranks")
    return {name: (answers[0][at], answers[1][at]) for at, name in enumerate(SAMPLES)}


@pytest.mark.parametrize("name", SAMPLES)
def test_two_processes_learn_what_one_learns(probe, name):
    """Gradients, losses and weights of two steps; batch norms see all of a batch."""
    spec = small.MODELS[name]
    arrays = small.arrays(spec)
    first, second = of_two_processes(probe.__name__.split(".")[2])[name]
    one = probe.train(spec, arrays, RULE, [[batch(step)] for step in steps(name)], VALUES)
    for step in (0, 1):
        assert first[f"step{step}/loss"] == second[f"step{step}/loss"]
        hold("processes", distance(first[f"step{step}/loss"], one[f"step{step}/loss"]), f"{name} loss {step}")
        gradients = [key for key in one if key.startswith(f"step{step}/grad/")]
        error = length(first[key] - one[key] for key in gradients) / length(one[key] for key in gradients)
        hold("gradient", error, f"{name} two processes, step {step}")
    for key in arrays:
        assert np.array_equal(first[f"final/{key}"], second[f"final/{key}"]), key
        hold("processes", distance(first[f"final/{key}"], one[f"final/{key}"]), f"{name} {key}")


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
