"""The reference, part one: layers and encoders in numpy float64, written to be read and to be trusted.

It takes arrays under canonical names and an encoder spec, and borrows no number from `core`: position tables,
masks and schedules are derived again, so that two independent pens have to agree. Shapes: n images, c channels,
L patches, N = L + 1 tokens, d width, h heads. Every function also takes complex arrays with a tiny imaginary part; that
of the result is its derivative times that part (`optimizers.slope`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triport.core.spec import Pair, ResNet, ViT

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Arrays = Mapping[str, NDArray]
Gates = tuple[Array | float, Array | float]  # what multiplies the two branches of a block


def wide(x: ArrayLike) -> Array:
    """In float64, without a copy where it already is; complex numbers stay."""
    array = np.asarray(x)
    return array if np.iscomplexobj(array) else np.asarray(array, np.float64)


@dataclass
class Walk:
    """One walk through a model: the arrays it reads, the outputs it leaves, the running statistics it moves.

    `training` makes batch norms use the statistics of the batch. `watched` fills `outputs` with what each module
    computes, under its canonical name and in order. `buffers` holds the running statistics after a training walk.
    """

    arrays: Arrays
    training: bool = False
    watched: bool = False
    outputs: dict[str, Array] = field(default_factory=dict)
    buffers: dict[str, NDArray] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """The array of this name in float64."""
        return wide(self.arrays[name])

    def buffer(self, name: str) -> Array:
        """A running statistic as it stands now: moved by an earlier batch of this walk, or as it came."""
        return wide(self.buffers.get(name, self.arrays[name]))

    def leave(self, name: str, x: Array) -> Array:
        """Note `x` as the output of module `name`, where the walk is watched, and hand it on."""
        if self.watched:
            self.outputs[name] = x
        return x


# ---------------------------------------------------------------- elementary functions
def _erf_table(spacing: float, reach: float, terms: int) -> Array:
    """Taylor coefficients of erf around 0, spacing, 2 spacing, ... reach; (nodes, terms).

    The k-th derivative is (-1)^(k-1) H_(k-1)(x) exp(-x^2) 2/sqrt(pi), with Hermite polynomials H (DLMF 7.10.1).
    """
    rows = []
    for node in np.arange(0.0, reach + spacing / 2, spacing):
        hermite = [1.0, 2.0 * node]
        for k in range(2, terms):
            hermite.append(2.0 * node * hermite[k - 1] - 2.0 * (k - 1) * hermite[k - 2])
        slope = 2.0 / math.sqrt(math.pi) * math.exp(-node * node)
        derivatives = [(-1.0) ** (k - 1) * hermite[k - 1] * slope / math.factorial(k) for k in range(1, terms)]
        rows.append([math.erf(node), *derivatives])
    return np.array(rows)


_SPACING, _REACH = 1.0 / 128, 6.0  # erf(6) is 1 - 2e-17, so 1 in float64
_ERF = np.ascontiguousarray(_erf_table(_SPACING, _REACH, terms=7).T)  # next term is below 1e-18


def erf(x: ArrayLike) -> Array:
    """The error function in float64, within a few 1e-16 of `math.erf`: a Taylor step from the nearest table node."""
    x = wide(x)
    if np.iscomplexobj(x):
        return erf(x.real) + 1j * x.imag * (2.0 / math.sqrt(math.pi)) * np.exp(-(x.real**2))
    flat, out = x.ravel(), np.empty(x.size)
    for start in range(0, flat.size, 32768):  # pieces that stay in the cache
        piece = flat[start : start + 32768]
        size = np.minimum(np.abs(piece), _REACH)
        node = np.rint(size / _SPACING).astype(np.intp)
        step = size - node * _SPACING
        value = _ERF[-1][node]
        for coefficient in _ERF[-2::-1]:
            value = value * step + coefficient[node]
        out[start : start + 32768] = np.copysign(value, piece)
    return out.reshape(x.shape)


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x: the exact form, not the tanh one."""
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def relu(x: Array) -> Array:
    """max(x, 0), with slope 0 at 0."""
    return np.where(x.real > 0.0, x, 0.0)


# ---------------------------------------------------------------- layers
def linear(walk: Walk, name: str, x: Array, bias: bool = True) -> Array:
    """x W^T + b with W (out, in)."""
    y = x @ walk.array(f"{name}.weight").T
    return walk.leave(name, y + walk.array(f"{name}.bias") if bias else y)


def layer_norm(walk: Walk, name: str, x: Array, eps: float) -> Array:
    """Zero mean and unit biased variance over the last axis, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(variance + eps) * walk.array(f"{name}.weight") + walk.array(f"{name}.bias")
    return walk.leave(name, y)


def batch_norm(walk: Walk, name: str, x: Array, eps: float = 1e-5, affine: bool = True) -> Array:
    """Batch norm of (n, c) or (n, c, height, width) over all axes but the second.

    Training: normalise by the batch's mean and biased variance; the running statistics move by 0.1 towards the mean
    and the *unbiased* variance. Evaluation: normalise by the running statistics.
    """
    axes = (0, *range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if walk.training:
        mean = x.mean(axis=axes)
        centred = x - mean.reshape(shape)
        variance = (centred**2).mean(axis=axes)
        count = x.size // x.shape[1]
        seen = {"running_mean": mean, "running_var": variance * count / (count - 1)}
        for kind, value in seen.items():
            walk.buffers[f"{name}.{kind}"] = 0.9 * walk.buffer(f"{name}.{kind}") + 0.1 * value
        tracked = f"{name}.num_batches_tracked"
        if tracked in walk.arrays:
            walk.buffers[tracked] = np.asarray(walk.buffers.get(tracked, walk.arrays[tracked])) + 1
    else:
        centred = x - walk.buffer(f"{name}.running_mean").reshape(shape)
        variance = walk.buffer(f"{name}.running_var")
    x = centred / np.sqrt(variance.reshape(shape) + eps)
    if affine:
        x = x * walk.array(f"{name}.weight").reshape(shape) + walk.array(f"{name}.bias").reshape(shape)
    return walk.leave(name, x)


def windows(x: Array, size: int, stride: int) -> Array:
    """Every size x size window of (n, c, height, width), `stride` apart: (n, c, rows, columns, size, size), a view."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return view[:, :, ::stride, ::stride]


def conv(walk: Walk, name: str, x: Array, stride: int, padding: int, bias: bool = False) -> Array:
    """Convolution with a square kernel as one matrix product: (n, c, height, width) -> (n, out, rows, columns)."""
    weight = walk.array(f"{name}.weight")  # (out, c, size, size)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y = np.tensordot(windows(x, weight.shape[-1], stride), weight, axes=((1, 4, 5), (1, 2, 3)))
    if bias:
        y = y + walk.array(f"{name}.bias")
    return walk.leave(name, y.transpose(0, 3, 1, 2))


def max_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    """The largest value of each window; the border counts as minus infinity."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=-np.inf)
    return windows(x, size, stride).max(axis=(4, 5))


# ---------------------------------------------------------------- vision transformer
def grid(encoder: ViT) -> Pair:
    """Rows and columns of patches."""
    return encoder.image[0] // encoder.patch[0], encoder.image[1] // encoder.patch[1]


def position_table(kind: str, width: int, rows: int, columns: int) -> Array:
    """The fixed 2-D sin-cos table, (1, 1 + rows * columns, width), the class token's row being 0.

    With P = width / 4 and frequencies 10000^(-k/P): MoCo v3 writes sin, cos of the row, then of the column;
    MAE writes the column first. Tokens run along rows.
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    table = np.zeros((1, 1 + rows * columns, width))
    for r in range(rows):
        for c in range(columns):
            first, second = (r, c) if kind == "moco" else (c, r)
            parts = [np.sin(first * frequency), np.cos(first * frequency)]
            parts += [np.sin(second * frequency), np.cos(second * frequency)]
            table[0, 1 + r * columns + c] = np.concatenate(parts)
    return table


def patch_tokens(walk: Walk, prefix: str, encoder: ViT, images: Array) -> Array:
    """Images (n, c, height, width) -> patch tokens (n, L, d), row after row, before positions."""
    name = f"{prefix}patch_embed.proj"
    if encoder.stem == "conv":
        x = images
        for i in (0, 3, 6, 9):
            x = relu(batch_norm(walk, f"{name}.{i + 1}", conv(walk, f"{name}.{i}", x, stride=2, padding=1)))
        x = conv(walk, f"{name}.12", x, stride=1, padding=0, bias=True)
        x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    else:
        n, c = images.shape[:2]
        (rows, columns), (height, width) = grid(encoder), encoder.patch
        cut = images.reshape(n, c, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
        weight = walk.array(f"{name}.weight").reshape(encoder.width, -1)
        x = cut.reshape(n, rows * columns, -1) @ weight.T + walk.array(f"{name}.bias")
    return walk.leave(f"{prefix}patch_embed", x)


def attention(walk: Walk, name: str, x: Array, heads: int) -> Array:
    """Multi-head self-attention of (n, N, d). The rows of `qkv` are q, k, v; inside each, head after head."""
    n, tokens, width = x.shape
    qkv = linear(walk, f"{name}.qkv", x).reshape(n, tokens, 3, heads, width // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (n, h, N, d / h)
    weights = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(width // heads))
    return walk.leave(name, linear(walk, f"{name}.proj", (weights @ v).transpose(0, 2, 1, 3).reshape(n, tokens, width)))


def block(walk: Walk, name: str, x: Array, heads: int, eps: float, gates: Gates = (1.0, 1.0)) -> Array:
    """A pre-norm transformer block; `gates` multiply the two branches (drop path)."""
    seen = layer_norm(walk, f"{name}.norm1", x, eps)
    x = x + gates[0] * attention(walk, f"{name}.attn", seen, heads)
    hidden = gelu(linear(walk, f"{name}.mlp.fc1", layer_norm(walk, f"{name}.norm2", x, eps)))
    x = x + gates[1] * walk.leave(f"{name}.mlp", linear(walk, f"{name}.mlp.fc2", hidden))
    return walk.leave(name, x)


def drop_path_gates(encoder: ViT, index: int, draws: Array | None) -> Gates:
    """What block `index` multiplies its branches with: 0 or 1 / keep per sample, from uniform draws (n, depth, 2).

    The rate grows linearly from 0 at the first block to `encoder.drop_path` at the last.
    """
    rate = encoder.drop_path * index / max(encoder.depth - 1, 1)
    if draws is None or rate == 0.0:
        return 1.0, 1.0
    gates = np.floor(1.0 - rate + np.asarray(draws, np.float64)[:, index]) / (1.0 - rate)  # (n, 2)
    return gates[:, 0, None, None], gates[:, 1, None, None]


def vit(
    walk: Walk, prefix: str, encoder: ViT, images: Array, visible: Indices | None = None, draws: Array | None = None
) -> Array:
    """Images -> tokens (n, N, d) after the last block, before the final norm; token 0 is the class token.

    `visible` (n, k) keeps those patches alone, in that order (MAE); `draws` (n, depth, 2) are drop path's.
    """
    position = walk.array(f"{prefix}pos_embed")
    x = patch_tokens(walk, prefix, encoder, images) + position[:, 1:]
    if visible is not None:
        x = np.take_along_axis(x, visible[:, :, None], axis=1)
    token = walk.array(f"{prefix}cls_token") + position[:, :1]
    x = np.concatenate([np.repeat(token, len(x), axis=0), x], axis=1)
    for i in range(encoder.depth):
        gates = drop_path_gates(encoder, i, draws if walk.training else None)
        x = block(walk, f"{prefix}blocks.{i}", x, encoder.heads, encoder.norm_eps, gates)
    return x


# ---------------------------------------------------------------- ResNet
RESNET_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def residual_block(walk: Walk, name: str, x: Array, stride: int, bottleneck: bool) -> Array:
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with the stride in the middle (v1.5), around a shortcut."""
    steps = ((1, 0), (stride, 1), (1, 0)) if bottleneck else ((stride, 1), (1, 1))  # (stride, padding)
    y = x
    for i, (step, padding) in enumerate(steps, start=1):
        y = batch_norm(walk, f"{name}.bn{i}", conv(walk, f"{name}.conv{i}", y, step, padding))
        if i < len(steps):
            y = relu(y)
    if f"{name}.downsample.0.weight" in walk.arrays:
        x = batch_norm(walk, f"{name}.downsample.1", conv(walk, f"{name}.downsample.0", x, stride, padding=0))
    return walk.leave(name, relu(x + y))


def resnet(walk: Walk, prefix: str, encoder: ResNet, images: Array) -> Array:
    """Images (n, c, height, width) -> features (n, 8 or 32 times the width): the mean over the last map."""
    x = relu(batch_norm(walk, f"{prefix}bn1", conv(walk, f"{prefix}conv1", images, stride=2, padding=3)))
    x = walk.leave(f"{prefix}maxpool", max_pool(x, size=3, stride=2, padding=1))
    for stage, blocks in enumerate(RESNET_BLOCKS[encoder.depth], start=1):
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            x = residual_block(walk, f"{prefix}layer{stage}.{i}", x, stride, bottleneck=encoder.depth >= 50)
    return x.mean(axis=(2, 3))
