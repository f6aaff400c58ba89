"""Where OneFlow's own kernels would be slow or inexact, ours against float64; and what the backend refuses to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.questions import distance

pytestmark = pytest.mark.framework("oneflow")
DRAW = np.random.Generator(np.random.Philox(5))
SHAPES = {"layer_norm": (3, 17, 48), "batch_norm": (6, 5), "batch_norm on maps": (4, 5, 7, 3)}
SPEC = small.MODELS["finetune-token"]


def normal(*shape):
    return DRAW.standard_normal(shape, dtype=np.float32)


def given(kind, mean):
    x = normal(*SHAPES[kind]) + np.float32(mean)
    width = x.shape[-1 if kind == "layer_norm" else 1]
    more = {"eps": 1e-6} if kind == "layer_norm" else {}
    return {"x": x, "weight": normal(width), "bias": normal(width), "grad": normal(*x.shape), **more}


NORMS = {(kind, mean): given(kind, mean) for kind in SHAPES for mean in (0, 1, 30)}
ROWS = {"x": normal(4, 3, 6), "factors": np.array([0, 1.25, 1.25, 0], np.float32), "grad": normal(4, 3, 6)}
WIDE = np.concatenate([normal(20_000) * np.float32(s) for s in (1e-3, 1, 4)] + [[0, -0.0, 30, -30, 1e20]]).astype("f4")
MANY = normal(3_000_000) + np.float32(0.5)


@pytest.fixture(scope="module")
def answers():
    asked: dict[Any, Question] = {key: Question(key[0].split()[0], values) for key, values in NORMS.items()}
    model = {"spec": SPEC, "arrays": small.arrays(SPEC), "inputs": small.inputs(SPEC)}
    asked |= {
        "rows": Question("rows", ROWS),
        "gelus": Question("gelus", {"x": WIDE}),
        "lengths": Question("lengths", {"x": MANY}),
        "refusals": Question("refusals", model),
        "halves": Question("halves"),
        "leftovers": Question("leftovers"),
    }
    return dict(zip(asked, ask("oneflow", list(asked.values()), probe="triport.parity_tests.fixtures.oneflow_trial")))


def truth(kind, x, weight, bias, grad, eps=1e-5):
    """The formulas of a normalisation and its gradients, in float64."""
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    along = (-1,) if kind == "layer_norm" else (0, *range(2, x.ndim))
    other = tuple(range(x.ndim - 1)) if kind == "layer_norm" else along
    wide = (-1,) if kind == "layer_norm" else (1, -1, *[1] * (x.ndim - 2))
    mean, var = x.mean(along, keepdims=True), x.var(along, keepdims=True)
    y = (x - mean) / np.sqrt(var + eps)
    inner = grad * weight.reshape(wide)
    slope = inner - inner.mean(along, keepdims=True) - y * (inner * y).mean(along, keepdims=True)
    out = {"y": y * weight.reshape(wide) + bias.reshape(wide), "x": slope / np.sqrt(var + eps)}
    out |= {"weight": (grad * y).sum(other), "bias": grad.sum(other)}
    if kind != "layer_norm":
        count = x.size / x.shape[1]
        out |= {"mean": 0.1 * mean.ravel(), "var": 0.9 + 0.1 * var.ravel() * count / (count - 1)}
    return out


@pytest.mark.parametrize(("kind", "mean"), NORMS)
def test_norms_follow_their_formulas_wherever_the_mean_is(answers, kind, mean):
    want = truth(kind, **NORMS[kind, mean])
    ours = answers[kind, mean]
    assert set(ours) == set(want)
    for name, value in want.items():
        assert distance(ours[name], value) < 1e-6 * max(1, mean), name


def test_rows_times_factors(answers):
    assert np.array_equal(answers["rows"]["y"], ROWS["x"] * ROWS["factors"][:, None, None])
    assert np.array_equal(answers["rows"]["x"], ROWS["grad"] * ROWS["factors"][:, None, None])


def test_gelu_is_exact_also_in_its_tails(answers):
    x = WIDE.astype(np.float64)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    bell = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    y, slope = answers["gelus"]["y"], answers["gelus"]["slope"]
    assert np.abs(y - x * below).max(where=np.abs(x) < 50, initial=0) < 4e-7
    near = np.abs(x) < 5  # relative, where 1 + erf would have lost all digits
    assert (np.abs(y - x * below)[near] < 3e-6 * np.abs(x * below)[near] + 1e-12).all()
    assert np.abs(slope - (below + x * bell)).max() < 4e-7 and y[-1] == x[-1]


def test_lengths_of_many_numbers_are_exact_and_still_not_in_oneflow(answers):
    want = np.sqrt((MANY.astype(np.float64) ** 2).sum())
    assert abs(answers["lengths"]["ours"] - want) < 1e-6 * want
    assert abs(answers["lengths"]["theirs"] - want) > 1e-5 * want, "OneFlow adds up exactly now: use its norm"


def test_what_oneflow_cannot_do_is_refused_in_a_line(answers):
    printed = answers["refusals"]
    assert set(printed) == {"precision", "label", "cuda", "device"}
    assert "float32" in printed["precision"]
    assert "99" in printed["label"] and "7 classes" in printed["label"]
    assert "--device cpu" in printed["cuda"] and "abacus" in printed["device"]
    assert all("\n" not in text for text in printed.values())


def test_norms_of_half_precision_are_computed_in_float32(answers):
    types = answers["halves"]
    assert types["layer norm"] == types["batch norm"] == "oneflow.float32"
    assert types["autocast"] == "oneflow.float16" and types["plain"] == "nullcontext"


def test_importing_oneflow_leaves_no_rank_behind(answers):
    assert answers["leftovers"] == []
