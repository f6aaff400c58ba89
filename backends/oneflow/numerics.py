"""Where OneFlow's CPU kernels are slow or inexact: the same sums, done another way. Every such place is here.

Measured on OneFlow 0.9.0: broadcasting along trailing axes takes fifty times as long as along leading ones, and with it
nn.LayerNorm; batch norm takes a variance as the difference of two large numbers (5e-5 off where the mean is ten times
the deviation); `norm` adds up in order (8e-3 off over ten million numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from backends.oneflow.quiet import Tensor, flow, nn

Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x (a, n, ...) times scale (n) plus shift (n), without gradient: a batch norm with known statistics."""
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
