"""What Paddle's CPU kernels do slowly or roughly, done with its good ones: biases, transposes, norms of tensors.

Times are of one thread on [8, 197, 768] float32, forward and backward. On GPUs all is left to Paddle. Private names of
Paddle (`_C_ops`) are used here alone, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from triport.backends.paddle.runtime import F, Tensor, nn, paddle

Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


def left_to_paddle(x: Tensor) -> bool:
    """Whether Paddle's own operations do for a tensor: on GPUs, and in a program that is traced for an export."""
    return not paddle.in_dynamic_mode() or x.place.is_gpu_place()


class Linear(nn.Linear):
    """nn.Linear with the bias of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight + bias, weight (in, out). The bias's gradient is a matrix product: 0.1 ms where Paddle's sum takes 6."""
    if bias is None or left_to_paddle(x):
        return F.linear(x, weight, bias)
    return _Bias.apply(paddle.matmul(x, weight), bias)


class _Bias(paddle.autograd.PyLayer):
    """(..., width) + (width,)."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor):  # type: ignore[no-untyped-def]
        return x + bias

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        flat = grad.flatten(0, -2)
        return grad, paddle.matmul(paddle.ones([1, len(flat)], flat.dtype), flat).flatten()


def transpose(x: Tensor, axes: list[int]) -> Tensor:
    """x.transpose(axes) where the last axis stays last: rows are copied whole, 0.5 ms instead of 8."""
    if left_to_paddle(x):
        return x.transpose(axes)
    there, back = _order(tuple(x.shape[:-1]), tuple(axes[:-1]))
    rows = _Reordered.apply(x.reshape([-1, x.shape[-1]]), there, back)
    return rows.reshape([x.shape[axis] for axis in axes])


@lru_cache(maxsize=64)
def _order(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which row goes where, and the way back."""
    there = np.arange(np.prod(shape)).reshape(shape).transpose(axes).ravel()
    return paddle.to_tensor(there), paddle.to_tensor(np.argsort(there))


class _Reordered(paddle.autograd.PyLayer):
    """Rows in another order."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor):  # type: ignore[no-untyped-def]
        ctx.back = back
        return paddle.gather(x, there)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return paddle.gather(grad, ctx.back), None, None


def length(x: Tensor) -> Tensor:
    """L2 norm, 0-d. The public one adds one by one: of 20 million numbers it is wrong in the second digit."""
    return paddle._C_ops.squared_l2_norm(x).sqrt().squeeze()


def fused_adamw(p, g, m, v, lr: float, decay: float, eps: float, bias1: float, bias2: float) -> None:  # type: ignore[no-untyped-def]
    """AdamW's update of the weights p by given moments m and v, in one kernel.

    It is private: the public optimizer makes the moments itself, and less exactly.

    It would make 1 - beta and the corrections from float32 numbers, and 1 - 0.999 then has four digits. With betas of
    1 it leaves the moments as they are, with powers of 0 it corrects nothing: the corrections go into learning rate,
    eps and decay.
    """
    root = bias2**0.5
    corrected = lr * root / bias1
    decay = decay * lr / corrected if corrected else 0.0
    rate, none = paddle.to_tensor(corrected, dtype="float32"), paddle.zeros([1])
    paddle._C_ops.adamw_(
        p, g, rate, m, v, None, none, none, None, None, 1.0, 1.0, eps * root,
        1.0, decay, decay > 0, False, 1000, False, True, False,
    )  # fmt: skip


def normed_gradients(x, weight, bias, mean, var, grad, eps: float):  # type: ignore[no-untyped-def]
    """Gradients of x, weight and bias of a batch norm with constant mean and variance; no public form has them."""
    return paddle._C_ops.batch_norm_grad(
        x, weight, bias, mean, var, mean, var, None, grad, 0.0, eps, "NCHW", True, True, False
    )


class ExactNorm(paddle.autograd.PyLayer):
    """(x - mean) / sqrt(var + eps) over the rows of all processes, with its gradient, written out.

    Paddle's own kernels take eps and momentum in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, reduce: Reduce):  # type: ignore[no-untyped-def]
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        local = paddle.full([1], math.prod(x.shape) / x.shape[1], x.dtype)
        total, count = reduce(paddle.concat([x.sum(axes), local])).split([x.shape[1], 1])
        mean = total / count
        centred = x - mean.reshape(shape)  # two passes: exact where the mean is large
        var = reduce(centred.square().sum(axes)) / count
        inverse = paddle.rsqrt(var + eps)
        normed = centred * inverse.reshape(shape)
        ctx.save_for_backward(normed, inverse, count)
        ctx.axes, ctx.shape, ctx.reduce = axes, shape, reduce
        ctx.mark_non_differentiable(mean, var, count)
        return normed, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
        normed, inverse, count = ctx.saved_tensor()
        sums = ctx.reduce(paddle.concat([grad.sum(ctx.axes), (grad * normed).sum(ctx.axes)]))
        mean, slope = (part.reshape(ctx.shape) / count for part in sums.chunk(2))
        return inverse.reshape(ctx.shape) * (grad - mean - normed * slope)
