"""The pieces of every encoder: attention, MLP, block, batch norm over all processes, patch embedding, conv stem."""

from __future__ import annotations

import math
from itertools import pairwise

from triport.backends.paddle.kernels import (
    ExactNorm,
    Gather,
    Linear,
    Reduce,
    alone,
    linear,
    merged,
    normed_gradients,
    statistics,
    transpose,
)
from triport.backends.paddle.runtime import F, Tensor, nn, paddle
from triport.backends.paddle.tensors import wide


class Attention(nn.Layer):
    """Multi-head self-attention with one fused qkv projection (columns: query, key, value; heads inside)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same, or (n, 1, width): the class token's row alone."""
        n, tokens, width = x.shape
        if token_only:  # the other rows' queries would be discarded
            weight, bias = self.qkv.weight, self.qkv.bias
            query = linear(x[:, :1], weight[:, :width], bias[:width]).reshape([n, self.heads, 1, -1])
            rest = linear(x, weight[:, width:], bias[width:]).reshape([n, tokens, 2, self.heads, -1])
            q, (k, v) = query, transpose(rest, [2, 0, 3, 1, 4]).unbind(0)
        else:
            qkv = self.qkv(x).reshape([n, tokens, 3, self.heads, -1])
            q, k, v = transpose(qkv, [2, 0, 3, 1, 4]).unbind(0)
        return self.proj(transpose(attend(q, k, v), [0, 2, 1, 3]).reshape([n, -1, width]))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of the scaled scores times the values; all (n, heads, tokens, width of a head)."""
    if paddle.in_dynamic_mode() and q.place.is_gpu_place():  # on a CPU Paddle's own function is no faster
        q, k, v = (part.transpose([0, 2, 1, 3]) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose([0, 2, 1, 3])
    scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)
    return paddle.matmul(F.softmax(scores), v)


class MLP(nn.Layer):
    """Two linear layers around the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Layer):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.keep = 1 - drop_path
        self.norm1 = LayerNorm(width, epsilon=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, epsilon=eps)
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
        return branch * (paddle.floor(self.keep + draw) / self.keep).reshape([-1, 1, 1]).astype(branch.dtype)


class PatchEmbedding(nn.Layer):
    """A convolution whose stride is its kernel, computed as one matrix product over unfolded patches."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2D(channels, width, patch, stride=patch)

    def unfold(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, channels * rows * columns), raster order."""
        (n, channels, height, width), (rows, columns) = images.shape, self.patch
        x = images.reshape([n, channels, height // rows, rows, width // columns, columns])
        return transpose(x, [0, 2, 4, 1, 3, 5]).reshape([n, -1, channels * rows * columns])

    def project(self, patches: Tensor) -> Tensor:
        """Unfolded patches (n, any, channels * rows * columns) -> (n, any, width)."""
        return linear(patches, self.proj.weight.flatten(1).T, self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.project(self.unfold(images))


class ConvStem(nn.Layer):
    """MoCo v3's stem: four strided 3 x 3 convolutions with batch norm and ReLU, then a 1 x 1 (vits.py)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        steps: list[nn.Layer] = []
        for out in (width // 8, width // 4, width // 2, width):
            steps += [nn.Conv2D(channels, out, 3, stride=2, padding=1, bias_attr=False), BatchNorm(out), nn.ReLU()]
            channels = out
        self.proj = nn.Sequential(*steps, nn.Conv2D(width, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.proj(images).flatten(2).transpose([0, 2, 1])


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape in and out. The kernel takes its eps in float32, so float64 is written out."""
        if input.dtype != paddle.float64:
            return super().forward(input)
        centred = input - input.mean(axis=-1, keepdim=True)
        variance = (centred * centred).mean(axis=-1, keepdim=True)
        return centred * paddle.rsqrt(variance + self._epsilon) * self.weight + self.bias


class BatchNorm(nn.Layer):
    """Batch norm of (n, width) or (n, width, rows, columns) with one batch's statistics over all processes.

    `gather` and `reduce` collect rows and sums from all processes, on any device; None stands for one process. There
    `views` batches stand one after another in n, each with statistics of its own. Normalises by the biased variance
    and keeps the unbiased one in `running_var`, as PyTorch does. Paddle's own layer keeps the biased one and has no
    kernel for several processes on CPUs.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum, self.views = eps, momentum, 1
        self.gather: Gather | None = None
        self.reduce: Reduce | None = None
        self.weight = self.create_parameter([width]) if affine else None
        self.bias = self.create_parameter([width], is_bias=True) if affine else None
        self.register_buffer("running_mean", paddle.zeros([width]))
        self.register_buffer("running_var", paddle.ones([width]))
        self.register_buffer("num_batches_tracked", paddle.zeros([], dtype="int64"))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        exact = x.dtype == paddle.float64  # Paddle's kernels take momentum and eps in float32
        if not self.training:
            if exact:
                shape = [1, -1, *[1] * (x.ndim - 2)]
                scale = paddle.rsqrt(self.running_var + self.eps).reshape(shape)
                return self._affine((x - self.running_mean.reshape(shape)) * scale)
            return self._normalise(x, self.running_mean, self.running_var)
        with paddle.no_grad():
            self.num_batches_tracked.add_(paddle.full([], self.views, dtype="int64"))
        if exact:
            places = self.views, self.gather or alone, self.reduce or alone
            normed, *moments = ExactNorm.apply(x, self.eps, *places)
            self._follow(*moments)
            return self._affine(normed)
        if self.reduce is not None:
            return self._shared(x)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        out = self._normalise(x, mean, var)
        with paddle.no_grad():
            moved, count = var - self.running_var * (1 - self.momentum), math.prod(x.shape) // x.shape[1]
            paddle.assign(mean, self.running_mean)
            paddle.assign(var + moved / max(count - 1, 1), self.running_var)  # Paddle adds the biased variance
        return out

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 1 - self.momentum, self.eps)

    def _shared(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        weight = paddle.ones([width]) if self.weight is None else self.weight
        bias = paddle.zeros([width]) if self.bias is None else self.bias
        places = self.views, self.gather, self.reduce
        out, means, variances, count = _SharedNorm.apply(wide(x), weight, bias, self.eps, *places)
        self._follow(means, variances, count)
        return out.astype(x.dtype)

    @paddle.no_grad()
    def _follow(self, means: Tensor, variances: Tensor, count: Tensor) -> None:
        for mean, var in zip(means, variances * (count / (count - 1).clip(min=1))):
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)

    def _affine(self, x: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return x
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


class _SharedNorm(paddle.autograd.PyLayer):
    """Batch norm over the rows of all processes: one message forward, one backward, for all views."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps: float, views: int, gather: Gather, reduce: Reduce):  # type: ignore[no-untyped-def]
        parts = x.chunk(views)
        own = [moment for part in parts for moment in statistics(part)]
        rows = paddle.full([1], math.prod(x.shape) / x.shape[1] / views)
        mean, var, count = merged(gather(paddle.concat([rows, *own]).unsqueeze(0)), views)
        ctx.save_for_backward(x, weight, bias, mean, var, count)
        ctx.eps, ctx.views, ctx.reduce, ctx.affine = eps, views, reduce, not weight.stop_gradient
        ctx.mark_non_differentiable(mean, var, count)
        normed = [F.batch_norm(part, mean[i], var[i], weight, bias, epsilon=eps) for i, part in enumerate(parts)]
        return paddle.concat(normed), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):  # type: ignore[no-untyped-def]
        x, weight, bias, mean, var, count = ctx.saved_tensor()
        parts, inward, sums = x.chunk(ctx.views), [], []
        for i, (part, g) in enumerate(zip(parts, grad.chunk(ctx.views))):
            # as if mean and variance were constants; then what is lost to their own gradients
            own, slope, shift = normed_gradients(part, weight, bias, mean[i], var[i], g, ctx.eps)
            inward.append(own)
            sums.append(paddle.stack([shift, slope]))
        both = paddle.stack(sums)
        # those of weight and bias are this process's own, as all parameters' are until they are averaged
        shift, slope = both.sum(0).unbind(0)
        lost = ctx.reduce(both) * (weight * paddle.rsqrt(var + ctx.eps)).unsqueeze(1) / count
        for i, part in enumerate(parts):
            inward[i] -= F.batch_norm(part, mean[i], var[i], lost[i, 1], lost[i, 0], epsilon=ctx.eps)
        return paddle.concat(inward), *((slope, shift) if ctx.affine else (None, None))


def mlp_head(widths: list[int], last_norm: bool) -> nn.Sequential:
    """Projector or predictor: linear without bias, batch norm, ReLU ...; the last norm without affine (builder.py)."""
    steps: list[nn.Layer] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        steps.append(nn.Linear(into, out, bias_attr=False))
        if not last:
            steps += [BatchNorm(out), nn.ReLU()]
        elif last_norm:
            steps.append(BatchNorm(out, affine=False))
    return nn.Sequential(*steps)
