"""Where OneFlow's CPU kernels are slow or inexact: the same sums, done another way. Every such place is here.

Measured on OneFlow 0.9.0: broadcasting along trailing axes takes fifty times as long as along leading ones, and with it
nn.LayerNorm; GELU takes as long as the matrix product before it; batch norm takes a variance as the difference of two
large numbers (5e-5 off where the mean is ten times the deviation); `norm` adds up in order (8e-3 off over ten million
numbers). Private names of OneFlow (`_C`) are used here alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from triport.backends.oneflow.runtime import F, Tensor, flow, nn
from triport.core.errors import UserError

HALVES = {"bfloat16": flow.bfloat16, "float16": flow.float16}
Gather = Callable[[Tensor], Tensor]  # rows of this process -> rows of all processes, in rank order
Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x (a, n, ...) times scale (n) plus shift (n), without gradient: a batch norm with known statistics."""
    if x.is_cuda or x.is_lazy:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * scale.reshape(shape) + (0.0 if shift is None else shift.reshape(shape))
    zero, one = flow.zeros_like(scale), flow.ones_like(scale)
    shift = zero if shift is None else shift
    return flow._C.normalization(x, zero, one, scale, shift, axis=1, epsilon=0.0, momentum=0.0, is_training=False)


def products(q: Tensor, k: Tensor, factor: float) -> Tensor:
    """q k^T times a factor, without a pass of its own for either; the public product has neither."""
    return flow._C.matmul(q, k, transpose_b=True, alpha=factor)


def length(x: Tensor) -> Tensor:
    """L2 norm of all numbers, a 0-d tensor."""
    return (x * x).sum().sqrt()


def sums(x: Tensor) -> Tensor:
    """x (a, n, ...) -> its sums (n) over the rest. Those of maps go line by line, as a product: twice as fast."""
    if not x.is_cuda and x.dim() == 4:
        x = flow.matmul(x.reshape(-1, x.shape[3]), flow.ones(x.shape[3], 1, dtype=x.dtype)).reshape(*x.shape[:3])
    return x.sum([0, *range(2, x.dim())])


def merged(every: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each process its rows, then mean and mean square about it of each view, (processes, 1 + 2 views width) ->
    the mean and variance of all rows, (views, width) each, and how many rows there are (Chan, Golub, LeVeque 1979)."""
    rows, both = every[:, :1].reshape(-1, 1, 1), every[:, 1:].reshape(len(every), views, 2, -1)
    means, squares, count = both[:, :, 0], both[:, :, 1], rows.sum().reshape(1)
    mean = (means * rows).sum(0) / count
    return mean, ((squares + (means - mean).square()) * rows).sum(0) / count, count


@cache
def norm(
    eps: float, views: int = 1, gather: Gather | None = None, reduce: Reduce | None = None
) -> type[flow.autograd.Function]:
    """Return a function of x, weight, bias: (x - mean) / sqrt(var + eps) weight + bias by axis 1, over the rest of x.

    It gives mean, var (views, width) and count too. `gather` and `reduce` collect rows and sums from the processes;
    `views` batches stand one after another in x, each with statistics of its own. OneFlow's functions take tensors
    alone: what else they need is around.
    """
    common: Gather = gather or (lambda tensor: tensor)
    total: Reduce = reduce or (lambda tensor: tensor)

    class Norm(flow.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor):  # type: ignore[no-untyped-def]
            parts, rows = x.chunk(views), x.numel() / x.shape[1] / views
            own = [sums(part) / rows for part in parts]
            # two passes: exact where the mean is large
            centred = [scaled(part, flow.ones_like(mean), -mean) for part, mean in zip(parts, own)]
            local = [flow.full((1,), rows, dtype=x.dtype, device=x.device)]
            for mean, part in zip(own, centred):
                local += [mean, sums(part * part) / rows]
            mean, var, count = merged(common(flow.cat(local).unsqueeze(0)), views)
            inverse, offset = flow.rsqrt(var + eps), flow.stack(own) - mean  # 0 where there is one process
            y = [scaled(c, inverse[i] * weight, bias + offset[i] * inverse[i] * weight) for i, c in enumerate(centred)]
            ctx.save_for_backward(*centred, inverse, offset, count, weight)
            ctx.mark_non_differentiable(mean, var, count)
            return _joined(y), mean, var, count

        @staticmethod
        def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
            *centred, inverse, offset, count, weight = ctx.saved_tensors
            gradients, local = grad.chunk(views), []
            for i, (g, c) in enumerate(zip(gradients, centred)):
                added = sums(g)
                local.append(flow.stack([added, (sums(g * c) + offset[i] * added) * inverse[i]]))
            both = flow.stack(local)
            # those of weight and bias are this process's own, as all parameters' are until they are averaged
            of_bias, of_weight = both[:, 0].sum(0), both[:, 1].sum(0)
            factor = inverse * weight
            means = total(both.clone()) * factor.unsqueeze(1) / count
            inward = []
            for i, (g, c) in enumerate(zip(gradients, centred)):
                slope = means[i, 1] * inverse[i]
                inward.append(scaled(g, factor[i], -means[i, 0] - slope * offset[i]) - scaled(c, slope))
            return _joined(inward), of_weight, of_bias

    return Norm


def _joined(parts: list[Tensor]) -> Tensor:
    """One after another, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else flow.cat(parts)


def rows(x: Tensor, eps: float) -> Tensor:
    """x (..., width) less its mean over its deviation, row by row."""
    flat = x.reshape(1, -1, x.shape[-1])
    ones = flow.ones(flat.shape[1], dtype=x.dtype, device=x.device)
    return norm(eps).apply(flat, ones, flow.zeros_like(ones))[0].reshape(*x.shape)


class LayerNorm(nn.Module):
    """nn.LayerNorm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(flow.ones(width))
        self.bias = nn.Parameter(flow.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same, at least float32."""
        if x.is_lazy:  # no functions of ours in a graph
            x = x.float() if x.dtype in HALVES.values() else x
            return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
        return rows(x.float() if x.dtype in HALVES.values() else x, self.eps) * self.weight + self.bias


class Rows(flow.autograd.Function):
    """x (n, ...), factors (n) -> each row of x times its factor, which has no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, factors: Tensor):  # type: ignore[no-untyped-def]
        """As above."""
        ctx.save_for_backward(factors)
        return scaled(x.reshape(1, len(x), -1), factors).reshape(*x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        """Gradient of x."""
        (factors,) = ctx.saved_tensors
        return scaled(grad.reshape(1, len(grad), -1), factors).reshape(*grad.shape), None


def gelu(x: Tensor) -> Tensor:
    """x P(x), P the normal distribution: the exact GELU. The fit is good enough for float32 alone."""
    return F.gelu(x) if x.is_cuda or x.is_lazy or x.dtype == flow.float64 else _Gelu.apply(x)


# With t = 1 / (1 + SLOPE u), t (c0 + t (c1 + ...)) is P(-u) exp(u^2 / 2) for u >= 0 but for 2e-8 of it: our own fit.
SLOPE = 0.345
MILLS = (
    0.13761923, 0.13802227, 0.11722691, 0.11185035, -0.03773659, 0.18741614, -0.27138704, 0.14539665, -0.0284079,
)  # fmt: skip


class _Gelu(flow.autograd.Function):
    """GELU and, at the same time, its slope."""

    @staticmethod
    def forward(ctx, x: Tensor):  # type: ignore[no-untyped-def]
        u = x.abs()
        t = flow.reciprocal((u * SLOPE).add_(1.0))
        tail = t * MILLS[-1]
        for coefficient in MILLS[-2::-1]:
            tail.add_(coefficient).mul_(t)
        bell = flow.exp((x * x).mul_(-0.5))
        tail.mul_(bell)  # P(-u)
        below = flow.sign(x).mul_(0.5 - tail).add_(0.5)  # P(x)
        ctx.save_for_backward(below.add_(bell.mul_(x), alpha=1 / math.sqrt(2 * math.pi)))
        return F.relu(x).sub_(u.mul_(tail))  # x P(x), without a difference of numbers near 1

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return grad * slope


def half(precision: str) -> AbstractContextManager[Any]:
    """The context of forward passes in a lower precision, which OneFlow 0.9.0 has on GPUs alone.

    A graph that is being traced has a setting of its own.
    """
    if precision not in HALVES or flow._oneflow_internal.lazy_mode.is_enabled():
        return nullcontext()
    return flow.amp.autocast("cuda", HALVES[precision])


def refuse(precision: str, device: flow.device) -> None:
    """Raise UserError for a precision that OneFlow 0.9.0 does not have, or replaces without a word."""
    if precision in HALVES and device.type != "cuda":
        raise UserError(
            f"OneFlow 0.9.0 has no {precision} on CPUs: take --precision float32 or float64, or --backend torch."
        )
