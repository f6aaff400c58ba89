"""What tests ask of OneFlow beside its probe: backends/oneflow/numerics.py as functions, refusals, the environment."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from backends.oneflow import distributed, learner, probe
from backends.oneflow.layers import BatchNorm
from backends.oneflow.numerics import LayerNorm, Rows, gelu, length
from backends.oneflow.quiet import flow
from core.batches import Batch
from core.errors import UserError
from core.schedule import Values
from core.spec import ModelSpec, OptimizerSpec

Answer = dict[str, NDArray]


def layer_norm(x: NDArray, weight: NDArray, bias: NDArray, grad: NDArray, eps: float) -> Answer:
    """LayerNorm's output and all gradients."""
    return _normed(LayerNorm(x.shape[-1], eps), x, weight, bias, grad)


def batch_norm(x: NDArray, weight: NDArray, bias: NDArray, grad: NDArray) -> Answer:
    """BatchNorm's output, all gradients and statistics, in training mode."""
    module = BatchNorm(x.shape[1])
    answer = _normed(module, x, weight, bias, grad)
    return {**answer, "mean": module.running_mean.numpy(), "var": module.running_var.numpy()}


def _normed(module, x: NDArray, weight: NDArray, bias: NDArray, grad: NDArray) -> Answer:
    given = flow.from_numpy(x).requires_grad_()
    with flow.no_grad():
        module.weight.copy_(flow.from_numpy(weight))
        module.bias.copy_(flow.from_numpy(bias))
    y = module(given)
    y.backward(flow.from_numpy(grad))
    parts = {"y": y.detach(), "x": given.grad, "weight": module.weight.grad, "bias": module.bias.grad}
    return {name: value.numpy() for name, value in parts.items()}


def rows(x: NDArray, factors: NDArray, grad: NDArray) -> Answer:
    """Each row times its factor, and the gradient."""
    given = flow.from_numpy(x).requires_grad_()
    y = Rows.apply(given, flow.from_numpy(factors))
    y.backward(flow.from_numpy(grad))
    return {"y": y.detach().numpy(), "x": given.grad.numpy()}


def gelus(x: NDArray) -> Answer:
    """GELU and its slope."""
    given = flow.from_numpy(x).requires_grad_()
    y = gelu(given)
    y.backward(flow.ones(*x.shape))
    return {"y": y.detach().numpy(), "slope": given.grad.numpy()}


def lengths(x: NDArray) -> Answer:
    """Our L2 norm and OneFlow's own."""
    tensor = flow.from_numpy(x)
    return {"ours": length(tensor).numpy(), "theirs": tensor.norm().numpy()}


def refusals(spec: ModelSpec, arrays: Answer, inputs: Answer) -> dict[str, str]:
    """What is said to what OneFlow cannot do, or does without a word."""
    recipe = probe._recipe(spec, OptimizerSpec(kind="sgd", lr=0.1, weight_decay=0.0, decays="all"))
    alone = distributed.start("cpu")
    n = len(inputs["images"])
    bad = Batch((inputs["images"],), np.full(n, 99), None, np.arange(n), None, None)
    tries = {
        "precision": lambda: learner.Learner(recipe, arrays, alone, precision="bfloat16"),
        "compile": lambda: learner.Learner(recipe, arrays, alone, compile=True),
        "label": lambda: learner.Learner(recipe, arrays, alone).step([bad], Values(0.1, 0.0)),
        "cuda": lambda: distributed.choose("cuda", 0),
        "device": lambda: distributed.choose("abacus", 0),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except UserError as error:
            said[name] = str(error)
    return said


def leftovers() -> list[str]:
    """The variables of a launcher that importing OneFlow alone has left in the environment."""
    return [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name in os.environ]
