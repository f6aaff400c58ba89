"""The passes of a batch norm over several processes, ReLU in place, attention in bfloat16 on CPUs: from fused kernels.

Each pass of a norm reads an activation once, in its own precision and format. Statistics and sums are at least float32.
The functions of `torch.ops.aten` are what torch.batch_norm and its gradient are made of; those that start with
`batch_norm_` are the ones of torch.nn.SyncBatchNorm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triport.core.backend.recorder import under_way

aten = torch.ops.aten


def rectified(x: Tensor) -> Tensor:
    """ReLU of a batch norm's output, in place unless it is recorded: for the way back that keeps its input alone."""
    return F.relu(x) if under_way() else F.relu_(x)


# ---------------------------------------------------------------- batch norm over several processes


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (n, width, ...) -> the mean (width) and the mean square about it."""
    if x.is_cuda:
        mean, inverse = torch.batch_norm_stats(x, eps)
        return mean, inverse.pow(-2) - eps
    wide = torch.promote_types(x.dtype, torch.float32)  # of these buffers, or the sums are in x's own type
    zero, one = (x.new_full((x.shape[1],), value, dtype=wide) for value in (0.0, 1.0))
    return aten.batch_norm_update_stats(x, zero, one, 0.0)


def normalise(
    out: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> None:
    """out = (x - mean) / sqrt(var + eps) weight + bias along axis 1."""
    if x.is_cuda:
        torch.batch_norm_elemt(x, weight, bias, mean, torch.rsqrt(var + eps), eps, out=out)
        return
    none = mean.new_empty(0), mean.new_empty(0)
    aten.native_batch_norm.out(
        x, weight, bias, mean, var, False, 0.0, eps, out=out, save_mean=none[0], save_invstd=none[1]
    )


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sums over all rows of the gradient, and of the gradient times the normed x; both (width)."""
    if x.is_cuda:
        sums, products, _, _ = torch.batch_norm_backward_reduce(grad, x, mean, inverse, None, True, False, False)
        return sums, products * inverse
    one = torch.ones_like(mean)
    wanted = [False, True, True]
    _, products, sums = aten.native_batch_norm_backward(grad, x, one, None, None, mean, inverse, True, eps, wanted)
    return sums, products


def input_gradient(
    out: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    sums: Tensor,
    products: Tensor,
) -> None:
    """out = inverse weight (grad - sums - products (x - mean) inverse); both sums are here means over all rows."""
    factor = inverse if weight is None else inverse * weight
    slope = -factor * inverse * products
    shift = -factor * sums - slope * mean
    if x.dtype not in (torch.bfloat16, torch.float16):
        shape = (1, -1, *[1] * (x.dim() - 2))
        torch.addcmul(shift.view(shape), grad, factor.view(shape), out=out).addcmul_(x, slope.view(shape))
        return
    # a product of bfloat16 and float32 has no fused pass: a normalisation with these factors has
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    normalise(out, grad, factor, shift, zero, one, 0.0)
    rest = torch.empty_like(out)
    normalise(rest, x, slope, zero, zero, one, 0.0)
    out.add_(rest)


def laid_out_as(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory format of x: the kernels take both as one."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def merged(every: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each process its rows, then mean and mean square about it of each view, (processes, 1 + 2 views width) ->
    the mean and variance of all rows, (views, width) each, and how many rows there are (Chan, Golub, LeVeque 1979)."""
    rows, (means, squares) = every[:, :1, None], every[:, 1:].view(len(every), views, 2, -1).unbind(2)
    count = rows.sum()
    mean = (means * rows).sum(0) / count
    return mean, ((squares + (means - mean).square()) * rows).sum(0) / count, count


# ---------------------------------------------------------------- attention
class PlainAttention(torch.autograd.Function):
    """Self-attention as plain products with as few copies as they allow: one of q, k and v together, one of the output,
    and the same of the gradients. qkv (n, tokens, 3, heads, width of a head) -> (n, tokens, heads * width of a head).

    For bfloat16 on CPUs: there the backward pass of PyTorch's fused kernel takes more than twice as long as this, and
    plain products by autograd a tenth longer. Without gradients the fused kernel is no faster either.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor):  # type: ignore[no-untyped-def]
        n, tokens, _, heads, width = qkv.shape
        parts = qkv.permute(2, 0, 3, 1, 4).contiguous().view(3, n * heads, tokens, width)
        q, k, v = parts
        ctx.factor = width**-0.5
        weights = _scaled(q, k.transpose(1, 2), ctx.factor).softmax(dim=-1)
        ctx.save_for_backward(parts, weights)
        ctx.shape = qkv.shape
        return torch.bmm(weights, v).view(n, heads, tokens, width).transpose(1, 2).reshape(n, tokens, -1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (parts, weights), (n, tokens, _, heads, width) = ctx.saved_tensors, ctx.shape
        q, k, v = parts
        grad = grad.reshape(n, tokens, heads, width).transpose(1, 2).reshape(n * heads, tokens, width)
        out = torch.empty_like(parts)
        torch.bmm(weights.transpose(1, 2), grad, out=out[2])
        scores = aten._softmax_backward_data(torch.bmm(grad, v.transpose(1, 2)), weights, -1, weights.dtype)
        _scaled(scores, k, ctx.factor, out[0])
        _scaled(scores.transpose(1, 2), q, ctx.factor, out[1])
        return out.view(3, n, heads, tokens, width).permute(1, 3, 0, 2, 4).reshape(ctx.shape)


def _scaled(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """A batch of products a b times a factor, which has no pass of its own."""
    ignored = a.new_empty(1, 1, 1).expand(len(a), a.shape[1], b.shape[2]) if out is None else out
    return torch.baddbmm(ignored, a, b, beta=0, alpha=factor, out=out)
