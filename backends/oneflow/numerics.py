"""Where OneFlow's CPU kernels are slow or inexact: the same sums, done another way. Every such place is here.

Measured on OneFlow 0.9.0: broadcasting along trailing axes takes fifty times as long as along leading ones, and with it
nn.LayerNorm; GELU takes as long as the matrix product before it; batch norm takes a variance as the difference of two
large numbers (5e-5 off where the mean is ten times the deviation); `norm` adds up in order (8e-3 off over ten million
numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from backends.oneflow.quiet import F, Tensor, flow, nn
from core.errors import UserError

Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x (a, n, ...) times scale (n) plus shift (n), without gradient: a batch norm with known statistics."""
    if x.is_cuda:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * scale.reshape(shape) + (0.0 if shift is None else shift.reshape(shape))
    zero, one = flow.zeros_like(scale), flow.ones_like(scale)
    shift = zero if shift is None else shift
    return flow._C.normalization(x, zero, one, scale, shift, axis=1, epsilon=0.0, momentum=0.0, is_training=False)


def length(x: Tensor) -> Tensor:
    """L2 norm of all numbers, a 0-d tensor."""
    return (x * x).sum().sqrt()


@cache
def norm(eps: float, reduce: Reduce | None = None) -> type[flow.autograd.Function]:
    """Return a function of x: (x - mean) / sqrt(var + eps) by axis 1, over the rest; it gives mean, var, count too.

    `reduce` sums a tensor over the processes. OneFlow's functions take tensors alone: what else they need is around.
    """
    total: Reduce = reduce or (lambda tensor: tensor)

    class Norm(flow.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor):  # type: ignore[no-untyped-def]
            axes = [0, *range(2, x.dim())]
            local = flow.full((1,), x.numel() / x.shape[1], device=x.device)
            sums = total(flow.cat([x.sum(axes), local]))
            mean, count = sums[:-1] / sums[-1:], sums[-1:]
            centred = scaled(x, flow.ones_like(mean), -mean)  # two passes: exact where the mean is large
            var = total((centred * centred).sum(axes)) / count
            inverse = flow.rsqrt(var + eps)
            normed = scaled(centred, inverse)
            ctx.save_for_backward(normed, inverse, count)
            ctx.mark_non_differentiable(mean, var, count)
            return normed, mean, var, count

        @staticmethod
        def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
            normed, inverse, count = ctx.saved_tensors
            axes = [0, *range(2, grad.dim())]
            sums = total(flow.cat([grad.sum(axes), (grad * normed).sum(axes)]))
            mean, slope = (inverse * part / count for part in sums.chunk(2))
            return scaled(grad, inverse, -mean) - scaled(normed, slope)

    return Norm


class LayerNorm(nn.Module):
    """nn.LayerNorm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(flow.ones(width))
        self.bias = nn.Parameter(flow.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        normed = norm(self.eps).apply(x.reshape(1, -1, x.shape[-1]))[0]
        return normed.reshape(*x.shape) * self.weight + self.bias


class Affine(flow.autograd.Function):
    """x (n, width, ...), weight (width), bias (width) -> x weight + bias."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor):  # type: ignore[no-untyped-def]
        """As above."""
        ctx.save_for_backward(x, weight)
        return scaled(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        """Gradients of all three."""
        x, weight = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        return scaled(grad, weight), (grad * x).sum(axes), grad.sum(axes)


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
    """x P(x), P the normal distribution: the exact GELU."""
    return F.gelu(x) if x.is_cuda else _Gelu.apply(x)


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


def refuse(precision: str, compile: bool) -> None:
    """Raise UserError for what OneFlow 0.9.0 cannot do, or does in another precision without a word."""
    if precision != "float32":
        raise UserError(f"OneFlow 0.9.0 has no {precision} here: its CPU kernels know float32 alone. Take float32.")
    if compile:
        raise UserError("OneFlow's nn.Graph takes no optimiser of ours and is no faster on a CPU: leave out --compile.")


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise UserError for labels (n,) out of range, to which OneFlow gives a number all the same."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(f"labels from {labels.min()} to {labels.max()} do not fit the model's {classes} classes.")
