"""What Paddle's CPU kernels do slowly or roughly, done with its good ones; the private names of Paddle that are used.

Times are of one thread on [8, 197, 768] float32, forward and backward. On GPUs all is left to Paddle. Private names of
Paddle (`_C_ops`, `base.core`) are used here alone, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from triport.backends.paddle.runtime import F, Tensor, nn, paddle

Gather = Callable[[Tensor], Tensor]  # rows of this process -> rows of all processes, in rank order
Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


def global_store() -> Any:
    """Return the store at which the launcher's processes have met; no public name gives it."""
    return paddle.base.core.create_or_get_global_tcp_store()


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


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis. Paddle's CPU kernels, also that of its cross entropy, stop at -64: a loss of 100 is 64."""
    if left_to_paddle(logits):
        return F.log_softmax(logits, axis=-1)
    shifted = logits - logits.detach().max(axis=-1, keepdim=True)
    return shifted - paddle.log(paddle.exp(shifted).sum(axis=-1, keepdim=True))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the rows of (n, classes) with labels (n,)."""
    return F.cross_entropy(logits, labels) if left_to_paddle(logits) else F.nll_loss(log_softmax(logits), labels)


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


def alone(value: Tensor) -> Tensor:
    """Rows and sums of one process."""
    return value


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, width, ...) -> the mean (width) and the mean square about it."""
    mean, square = paddle.zeros([x.shape[1]]), paddle.zeros([x.shape[1]])
    if x.numel() == x.shape[1]:  # of one row Paddle's kernel passes on the input and leaves both as they were
        return x.flatten(), square
    F.batch_norm(x, mean, square, training=True, momentum=0.0)  # leaves them there
    return mean, square


def merged(every: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each process its rows, then mean and mean square about it of each view, (processes, 1 + 2 views width) ->
    the mean and variance of all rows, (views, width) each, and how many rows there are (Chan, Golub, LeVeque 1979)."""
    rows, (means, squares) = every[:, :1].unsqueeze(-1), every[:, 1:].reshape([len(every), views, 2, -1]).unbind(2)
    count = rows.sum()
    mean = (means * rows).sum(0) / count
    return mean, ((squares + (means - mean).square()) * rows).sum(0) / count, count


class ExactNorm(paddle.autograd.PyLayer):
    """(x - mean) / sqrt(var + eps) over the rows of all processes, view by view, with its gradient, written out.

    Paddle's own kernels take eps and momentum in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, views: int, gather: Gather, reduce: Reduce):  # type: ignore[no-untyped-def]
        width = x.shape[1]
        by_view = x.reshape([views, -1, *x.shape[1:]])
        axes, shape = [1, *range(3, by_view.ndim)], [views, 1, width, *[1] * (x.ndim - 2)]
        own = by_view.mean(axes)
        square = (by_view - own.reshape(shape)).square().mean(axes)  # two passes: exact where the mean is large
        rows = paddle.full([1], math.prod(x.shape) / width / views, x.dtype)
        mean, var, count = merged(
            gather(paddle.concat([rows, paddle.stack([own, square], 1).flatten()]).unsqueeze(0)), views
        )
        inverse = paddle.rsqrt(var + eps).reshape(shape)
        normed = (by_view - mean.reshape(shape)) * inverse
        ctx.save_for_backward(normed, inverse, count)
        ctx.axes, ctx.shape, ctx.reduce = axes, shape, reduce
        ctx.mark_non_differentiable(mean, var, count)
        return normed.reshape(x.shape), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
        normed, inverse, count = ctx.saved_tensor()
        by_view = grad.reshape(normed.shape)
        sums = ctx.reduce(paddle.stack([by_view.sum(ctx.axes), (by_view * normed).sum(ctx.axes)]))
        mean, slope = (part.reshape(ctx.shape) / count for part in sums.unbind(0))
        return (inverse * (by_view - mean - normed * slope)).reshape(grad.shape)
