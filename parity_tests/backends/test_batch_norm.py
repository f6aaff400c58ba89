"""Batch norms over several processes: one message forward, one backward, for both views; numbers of one process."""

from __future__ import annotations

import numpy as np
import pytest

from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import batch

torch = pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")
if torch:
    from triport.backends.torch import distributed, kernels, learner
    from triport.backends.torch.layers import BatchNorm
    from triport.core.backend.probe import recipe_around

SGD = OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.0, decays="all", momentum=0.9)


def step(name, messages=None, precision="float64"):
    """A step's result and its learner; with a list, as if there were other processes, alone in the group."""
    spec = small.MODELS[name]
    built = learner.Learner(recipe_around(spec, SGD), small.arrays(spec), distributed.start("cpu"), precision)
    if messages is not None:
        built.model.pair_views()
        for module in built.model.modules():
            if isinstance(module, BatchNorm):
                module.gather = lambda rows: messages.append(("forward", rows.shape)) or rows
                module.reduce = lambda sums: messages.append(("backward", sums.shape)) or sums
    message = built.step([batch(small.inputs(spec))], Values(0.1, 0.9))
    return message, built


@pytest.mark.parametrize("name", ["moco-vit", "moco-conv", "moco-resnet18", "moco-resnet50"])
def test_each_norm_sends_one_message_for_both_views_and_the_step_is_the_same(name):
    messages: list[tuple[str, tuple[int, ...]]] = []
    (message, one), (found, other) = step(name), step(name, messages)
    assert found.loss == pytest.approx(message.loss, rel=1e-12)
    assert found.gradient_norm == pytest.approx(message.gradient_norm, rel=1e-10)
    for array, theirs in zip(one.arrays().items(), other.arrays().items()):
        np.testing.assert_allclose(theirs[1], array[1], rtol=1e-9, atol=1e-10, err_msg=array[0])
    norms = [module for module in other.model.modules() if isinstance(module, BatchNorm)]
    slow = [module for module in other.model.momentum_encoder.modules() if isinstance(module, BatchNorm)]
    ways = [way for way, _ in messages]
    assert ways.count("forward") == len(norms) and ways.count("backward") == len(norms) - len(slow)
    if name == "moco-resnet50":
        assert len(messages) == 167  # 556 before: two forward and one backward for each view


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_passes_over_parts_are_those_of_the_whole(dtype, last):
    """Two processes' halves, merged, give what PyTorch's own batch norm gives of both."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    wide = torch.promote_types(kind, torch.float32)
    x = (torch.randn(8, 5, 4, 3, dtype=torch.float64) * 2 + 3).to(kind)
    grad = torch.randn(8, 5, 4, 3, dtype=torch.float64).to(kind)
    if last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    weight, bias = torch.rand(5, dtype=wide), torch.rand(5, dtype=wide)
    true = x.double().clone().requires_grad_(True)
    truth = torch.nn.functional.batch_norm(true, None, None, weight.double(), bias.double(), True)
    truth.backward(grad.double())
    rows = torch.full((1,), 48.0, dtype=wide)
    every = torch.stack([torch.cat([rows, *kernels.statistics(half, 1e-5)]) for half in x.chunk(2)])
    mean, var, count = kernels.merged(every, 1)
    out, inverse = torch.empty_like(x), torch.rsqrt(var[0] + 1e-5)
    kernels.normalise(out, x, weight, bias, mean[0], var[0], 1e-5)
    halves = [kernels.gradient_sums(g, h, mean[0], inverse, 1e-5) for g, h in zip(grad.chunk(2), x.chunk(2))]
    sums, products = (a + b for a, b in zip(*halves))
    inward = torch.empty_like(x)
    kernels.input_gradient(inward, grad, x, weight, mean[0], inverse, sums / count, products / count)
    assert out.dtype == inward.dtype == kind and mean.dtype == wide and float(count) == 96
    for found, wanted in ((out, truth.detach()), (inward, true.grad)):
        apart = float((found.double() - wanted).abs().max() / wanted.abs().max())
        hold({"float32": "forward", "bfloat16": "bfloat16-loss"}.get(dtype, dtype), apart, "a batch norm of two halves")


def test_a_large_mean_costs_no_digits():
    x = torch.randn(6, 3, dtype=torch.float64) + 1e6
    every = torch.stack([torch.cat([torch.full((1,), 3.0).double(), *kernels.statistics(h, 1e-5)]) for h in x.chunk(2)])
    _, var, _ = kernels.merged(every, 1)
    assert torch.allclose(var[0], x.var(0, correction=0), rtol=1e-9)
