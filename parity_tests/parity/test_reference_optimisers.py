"""The reference's update rules, groups, schedules and slopes against the originals' numbers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from triport.core.spec import OptimizerSpec
from triport.parity_tests.reference import layers
from triport.parity_tests.reference import optimizers as optimisers


# ---------------------------------------------------------------- update rules and groups
def test_lars_makes_the_originals_steps():
    p, mu = np.array([[3.0, 4.0]]), np.zeros((1, 2))
    v, nu = np.array([2.0, -1.0]), np.zeros(2)
    for want_p, want_v in (([[2.9712, 3.9616]], [1.04, -2.92]), ([[2.9167564, 3.8890088]], [-0.784, -6.568])):
        p, mu = optimisers.lars(p, np.array([[0.6, 0.8]]), mu, 9.6, 1e-6, 0.9, 0.001)
        v, nu = optimisers.lars(v, np.array([0.1, 0.2]), nu, 9.6, 1e-6, 0.9, 0.001)
        assert p == pytest.approx(np.array(want_p), abs=5e-7) and v == pytest.approx(np.array(want_v), abs=1e-12)


def test_lars_with_an_empty_tensor_or_gradient_trusts_fully():
    zero, one = np.zeros((1, 2)), np.ones((1, 2))
    assert optimisers.lars(zero, one, zero, 1.0, 0.1, 0.9, 0.001)[0].tolist() == [[-1, -1]]
    assert optimisers.lars(one, zero, zero, 1.0, 0.0, 0.9, 0.001)[0].tolist() == [[1, 1]]


def test_adamw_with_a_constant_gradient_walks_by_the_learning_rate():
    p, m, v, g = np.array([1.0, 1.0]), np.zeros(2), np.zeros(2), np.array([0.5, -2.0])
    for t in range(1, 6):
        p, m, v = optimisers.adamw(p, g, m, v, t, 0.01, 0.0, (0.9, 0.95), 1e-3)
        assert p == pytest.approx(1 - t * 0.01 * g / (np.abs(g) + 1e-3), rel=1e-12)  # eps stands outside the root
    zero = np.zeros(1)
    still, _, _ = optimisers.adamw(np.array([2.0]), zero, zero, zero, 1, 0.1, 0.05, (0.9, 0.999), 1e-8)
    assert still == pytest.approx([2 * (1 - 0.1 * 0.05)])  # decay is decoupled and scaled by the learning rate


def test_sgd_with_a_constant_gradient_is_a_geometric_sum():
    p, mu = np.array([0.0]), np.zeros(1)
    for _ in range(3):
        p, mu = optimisers.sgd(p, np.array([1.0]), mu, 0.1, 0.0, 0.9)
    assert p == pytest.approx([-0.1 * (1 + 1.9 + 2.71)])


def test_a_step_clips_scales_decays_and_averages():
    spec = OptimizerSpec(
        kind="sgd", lr=1.0, weight_decay=0.5, decays="matrices", momentum=0.0, clip_norm=1.0, average=0.75
    )
    rules = {"w": optimisers.Rule(0.5, 0.5), "b": optimisers.Rule(1.0, 0.0)}
    arrays = {"w": np.array([[2.0]]), "b": np.array([1.0]), "still": np.ones(1)}
    gradients = {"w": np.array([[3.0]]), "b": np.array([4.0])}
    new, state = optimisers.optimizer_step(spec, arrays, gradients, {}, 0.1, rules)
    assert new["w"] == pytest.approx(np.array([[2 - 0.1 * 0.5 * (0.6 + 0.5 * 2)]]), rel=1e-6)
    assert new["b"] == pytest.approx(np.array([1 - 0.1 * 0.8]), rel=1e-6) and new["still"] == 1
    assert state["average/w"] == pytest.approx(0.75 * 2 + 0.25 * new["w"]) and state["step"] == 1
    _, state = optimisers.optimizer_step(spec, new, gradients, state, 0.1, rules)
    assert state["step"] == 2


def test_rules_of_pretraining_and_finetuning():
    def decay(decays: Literal["all", "matrices", "matrices_but_tokens"]) -> list[float]:
        spec = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.05, decays=decays)
        names = {"cls_token": 3, "norm.weight": 1, "head.weight": 2, "head.bias": 1}
        return [optimisers.rule(name, d, spec, 12).decay for name, d in names.items()]

    assert decay("all") == [0.05] * 4
    assert decay("matrices") == [0.05, 0, 0.05, 0]
    assert decay("matrices_but_tokens") == [0, 0, 0.05, 0]


# ---------------------------------------------------------------- schedules
def test_schedules_are_the_originals():
    lr = optimisers.pretraining_lr
    moco = [lr(e, 2.4e-3, 40, 300) for e in (1 / 312, 20, 40, 100, 170, 299)]
    assert moco == pytest.approx([1.923e-7, 0.0012, 0.0024, 0.0020982, 0.0012, 8.76e-8], rel=3e-4)
    assert [lr(e, 9.6, 10, 100) for e in (5, 55, 99)] == pytest.approx([4.8, 4.8, 0.002924], rel=2e-4)
    assert lr(420, 2.4e-3, 40, 800) == pytest.approx(0.0012)
    finetuning = [lr(e, 2e-3, 5, 100, 1e-6) for e in (2.5, 52.5, 99)]
    assert finetuning == pytest.approx([0.001, 0.0010005, 1.5465e-6], rel=1e-4)
    momentum = [optimisers.encoder_momentum(e, 0.99, 300) for e in (0, 75, 150, 225, 299, 300)]
    assert momentum == pytest.approx([0.99, 0.991464, 0.995, 0.998536, 0.99999973, 1.0], abs=5e-7)
    assert [optimisers.probe_lr(e, 12, 90) for e in (0, 45, 89)] == pytest.approx([12, 6, 0.003655], rel=2e-4)
    deit = [optimisers.deit_lr(e, 1e-3, 150) for e in (0, 1, 2, 3, 4, 5, 6, 149)]
    assert deit == pytest.approx([1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.972883e-4, 1.043e-5], rel=1e-3)
    assert optimisers.scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_real_parts_stay_where_a_relu_bends_at_a_weight_of_0():
    arrays, along = (
        {"x": np.array([2.0, -3.0]), "w": np.zeros(2)},
        {"x": np.array([1.0, 1.0]), "w": np.array([1.0, -1.0])},
    )
    assert optimisers.slope(lambda a: layers.relu(a["x"] * a["w"]).sum().item(), arrays, along) == 0.0


def test_a_slope_has_all_its_digits_and_none_at_the_bend_of_a_relu():
    arrays = {"x": np.array([-0.5, 0.0, 2.0]), "y": np.array([3.0])}
    along = {"x": np.ones(3), "y": np.array([2.0])}
    slope = optimisers.slope(lambda a: (layers.relu(a["x"]).sum() * layers.gelu(a["y"])[0]).item(), arrays, along)
    normal, density = 0.5 * (1 + math.erf(3 / math.sqrt(2))), math.exp(-4.5) / math.sqrt(2 * math.pi)
    assert slope == pytest.approx(3 * normal + 2 * 2 * (normal + 3 * density), rel=1e-15)
