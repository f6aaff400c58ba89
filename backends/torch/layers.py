"""The pieces of every encoder: attention, MLP, block, batch norm over all processes, patch embedding, conv stem."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triport.backends.torch import kernels

Gather = Callable[[Tensor], Tensor]  # rows of this process -> rows of all processes, in rank order
Reduce = Callable[[Tensor], Tensor]  # a tensor -> its sum over all processes


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection (rows: query, key, value; heads inside)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same, or (n, 1, width): the class token's row alone."""
        n, tokens, width = x.shape
        if token_only:  # the other rows' queries would be discarded
            weight, bias = self.qkv.weight, self.qkv.bias
            query = F.linear(x[:, :1], weight[:width], bias[:width]).view(n, 1, 1, self.heads, -1)
            rest = F.linear(x, weight[width:], bias[width:]).view(n, tokens, 2, self.heads, -1)
            q, (k, v) = query[:, :, 0].transpose(1, 2), rest.permute(2, 0, 3, 1, 4)
        else:
            qkv = self.qkv(x).view(n, tokens, 3, self.heads, -1)
            if qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu":
                return self.proj(kernels.PlainAttention.apply(qkv))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, -1, width))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of the scaled scores times the values; all (n, heads, tokens, width of a head)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # the fused CPU kernel's bfloat16 backward takes three to five times as long as plain products
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class MLP(nn.Module):
    """Two linear layers around the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.keep = 1 - drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, draws: Tensor | None = None, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same or its first token; `draws` (n, 2): uniform numbers for the two branches."""
        draw1, draw2 = (None, None) if draws is None else draws.unbind(1)
        skip = x[:, :1] if token_only else x
        x = skip + self._drop(self.attn(self.norm1(x), token_only), draw1)
        return x + self._drop(self.mlp(self.norm2(x)), draw2)

    def _drop(self, branch: Tensor, draw: Tensor | None) -> Tensor:
        """Leave out a sample's branch where floor(keep + draw) is 0 (timm layers/drop.py)."""
        if draw is None or self.keep == 1:
            return branch
        return branch * (torch.floor(self.keep + draw) / self.keep).view(-1, 1, 1).to(branch.dtype)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, computed as one matrix product over unfolded patches."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def unfold(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, channels * rows * columns), raster order."""
        (n, channels, height, width), (rows, columns) = images.shape, self.patch
        x = images.view(n, channels, height // rows, rows, width // columns, columns)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * rows * columns)

    def project(self, patches: Tensor) -> Tensor:
        """Unfolded patches (n, any, channels * rows * columns) -> (n, any, width)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.project(self.unfold(images))


class ConvStem(nn.Module):
    """MoCo v3's stem: four strided 3 x 3 convolutions with batch norm and ReLU, then a 1 x 1 (vits.py)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for out in (width // 8, width // 4, width // 2, width):
            steps += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), BatchNorm(out), nn.ReLU()]
            channels = out
        self.proj = nn.Sequential(*steps, nn.Conv2d(width, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class BatchNorm(nn.Module):
    """Batch norm of (n, width) or (n, width, rows, columns) with one batch's statistics over all processes.

    `gather` and `reduce` collect rows and sums from all processes, on any device; None stands for one process. There
    `views` batches stand one after another in n, each with statistics of its own. Normalises by the biased variance
    and keeps the unbiased one in `running_var`, as PyTorch does.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum, self.views = eps, momentum, 1
        self.gather: Gather | None = None
        self.reduce: Reduce | None = None
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        if self.training:
            self.num_batches_tracked += self.views
            if self.reduce is not None:
                return self._shared(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _shared(self, x: Tensor) -> Tensor:
        places = self.views, self.gather, self.reduce
        normed, means, variances, count = _SharedNorm.apply(x, self.weight, self.bias, self.eps, *places)
        with torch.no_grad():
            for mean, var in zip(means, variances * (count / (count - 1).clamp(min=1))):
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        return normed


class _SharedNorm(torch.autograd.Function):
    """Batch norm over the rows of all processes: one message forward, one backward, for all views."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps: float, views: int, gather: Gather, reduce: Reduce):  # type: ignore[no-untyped-def]
        parts, width = x.chunk(views), x.shape[1]
        own = [torch.stack(kernels.statistics(part, eps)).flatten() for part in parts]
        rows = own[0].new_full((1,), x.numel() / width / views)
        mean, var, count = kernels.merged(gather(torch.cat([rows, *own]).unsqueeze(0)), views)
        out = torch.empty_like(x)
        for i, (target, part) in enumerate(zip(out.chunk(views), parts)):
            kernels.normalise(target, part, weight, bias, mean[i], var[i], eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        ctx.eps, ctx.views, ctx.reduce, ctx.affine = eps, views, reduce, weight is not None
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad = kernels.laid_out_as(grad, x)
        parts = list(zip(grad.chunk(ctx.views), x.chunk(ctx.views)))
        local = [kernels.gradient_sums(g, part, mean[i], inverse[i], ctx.eps) for i, (g, part) in enumerate(parts)]
        sums = torch.stack([torch.stack(pair) for pair in local])
        # those of weight and bias are this process's own, as all parameters' are until they are averaged
        of_bias, of_weight = sums.sum(0).unbind() if ctx.affine else (None, None)
        means = ctx.reduce(sums.clone()) / count
        out = torch.empty_like(x)
        for i, (target, (g, part)) in enumerate(zip(out.chunk(ctx.views), parts)):
            kernels.input_gradient(target, g, part, weight, mean[i], inverse[i], *means[i])
        return out, of_weight, of_bias, None, None, None, None


def mlp_head(widths: list[int], last_norm: bool) -> nn.Sequential:
    """Projector or predictor: linear without bias, batch norm, ReLU ...; the last norm without affine (builder.py)."""
    steps: list[nn.Module] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        steps.append(nn.Linear(into, out, bias=False))
        if not last:
            steps += [BatchNorm(out), nn.ReLU()]
        elif last_norm:
            steps.append(BatchNorm(out, affine=False))
    return nn.Sequential(*steps)
