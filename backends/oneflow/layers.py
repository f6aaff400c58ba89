"""The pieces of every encoder: attention, MLP, block, batch norm over all processes, patch embedding, conv stem."""

from __future__ import annotations

from itertools import pairwise

from triport.backends.oneflow.numerics import Gather, LayerNorm, Reduce, Rows, gelu, norm, products
from triport.backends.oneflow.runtime import F, Tensor, flow, nn
from triport.backends.oneflow.tensors import wide


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
        each = width // self.heads
        if token_only:  # the other rows' queries would be discarded
            weight, bias = self.qkv.weight, self.qkv.bias
            query = F.linear(x[:, :1], weight[:width], bias[:width]).reshape(n, 1, 1, self.heads, each)
            rest = F.linear(x, weight[width:], bias[width:]).reshape(n, tokens, 2, self.heads, each)
            q, (k, v) = query[:, :, 0].transpose(1, 2), rest.permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, each).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, -1, width))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of the scaled scores times the values; all (n, heads, tokens, width of a head)."""
    scores = products(q, k, q.shape[-1] ** -0.5)
    return flow.matmul(flow.softmax(scores, dim=-1), v)


class MLP(nn.Module):
    """Two linear layers around the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.keep = 1 - drop_path
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, draws: Tensor | None = None, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same or its first token; `draws` (n, 2): uniform numbers for the two branches."""
        draw1, draw2 = (None, None) if draws is None else (draws[:, 0], draws[:, 1])
        skip = x[:, :1] if token_only else x
        x = skip + self._drop(self.attn(self.norm1(x), token_only), draw1)
        return x + self._drop(self.mlp(self.norm2(x)), draw2)

    def _drop(self, branch: Tensor, draw: Tensor | None) -> Tensor:
        """Leave out a sample's branch where floor(keep + draw) is 0 (timm layers/drop.py)."""
        if draw is None or self.keep == 1:
            return branch
        factors = flow.floor(self.keep + draw) / self.keep
        return branch * factors.reshape(-1, 1, 1) if branch.is_lazy else Rows.apply(branch, factors)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, computed as one matrix product over unfolded patches."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def unfold(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, channels * rows * columns), raster order."""
        (n, channels, height, width), (rows, columns) = images.shape, self.patch
        x = images.reshape(n, channels, height // rows, rows, width // columns, columns)
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
        self.weight = nn.Parameter(flow.ones(width)) if affine else None
        self.bias = nn.Parameter(flow.zeros(width)) if affine else None
        self.register_buffer("running_mean", flow.zeros(width))
        self.register_buffer("running_var", flow.ones(width))
        self.register_buffer("num_batches_tracked", flow.zeros((), dtype=flow.int64))
        self.traced: list[tuple[Tensor, Tensor, float]] = []  # what `take` is to be given after a graph's step

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        weight = flow.ones_like(self.running_mean) if self.weight is None else self.weight
        bias = flow.zeros_like(self.running_mean) if self.bias is None else self.bias
        if self.training and x.is_lazy:
            return self._in_graph(wide(x), weight, bias)
        if self.training:
            self.num_batches_tracked += self.views
            return self._shared(x, weight, bias)
        if x.dtype == flow.float64:  # the kernel takes its eps in float32
            return _normalised(x, self.running_mean, self.running_var + self.eps, weight, bias)
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, self.momentum, self.eps)

    def _shared(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, means, variances, count = norm(self.eps, self.views, self.gather, self.reduce).apply(wide(x), weight, bias)
        with flow.no_grad():
            unbiased = variances * (count / (count - 1).clamp(min=1))
            for i in range(self.views):
                self._follow(means[i], unbiased[i])
        return y

    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        self.running_mean.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)
        self.running_var.mul_(1 - self.momentum).add_(unbiased, alpha=self.momentum)

    def _in_graph(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What is traced, of one view and process: a graph changes no buffer, so its step gives the statistics."""
        rest = [0, *range(2, x.dim())]
        mean = x.mean(rest)
        var = (x - mean.reshape(1, -1, *[1] * (x.dim() - 2))).square().mean(rest)
        self.traced.append((mean, var, x.numel() / x.shape[1]))
        return _normalised(x, mean, var + self.eps, weight, bias)

    @flow.no_grad()
    def take(self, mean: Tensor, var: Tensor, rows: float) -> None:
        """Let the buffers follow the statistics of a batch that went through a graph."""
        self.num_batches_tracked += 1
        self._follow(mean, var * (rows / max(rows - 1, 1)))


def _normalised(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) / sqrt(var) weight + bias along axis 1, written out."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (x - mean.reshape(shape)) * (flow.rsqrt(var) * weight).reshape(shape) + bias.reshape(shape)


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
