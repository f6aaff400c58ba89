"""What a parameter is, how its initial value is drawn, and the pieces that every model is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Union

from triport.core.spec import Pair

Role = Literal["linear", "conv", "norm", "bias", "token", "table", "statistic", "counter"]


@dataclass(frozen=True)
class Constant:
    """Every element is `value`."""

    value: float


@dataclass(frozen=True)
class Uniform:
    """Uniform between -bound and bound."""

    bound: float


@dataclass(frozen=True)
class Normal:
    """Normal of mean 0, cut at +-2 as timm's trunc_normal does, which the deviations in use never reach."""

    std: float


@dataclass(frozen=True)
class SinCos:
    """The fixed position table of a method."""

    kind: Literal["moco", "mae"]
    grid: Pair


@dataclass(frozen=True)
class Copy:
    """The initial value of another parameter."""

    of: str


Initial = Union[Constant, Uniform, Normal, SinCos, Copy]


@dataclass(frozen=True)
class Parameter:
    """One named array of a model."""

    name: str
    shape: tuple[int, ...]
    initial: Initial
    role: Role
    trainable: bool = True
    layer: int = 0  # for layer decay: 0 = tokens and patch embedding, i + 1 = block i, depth + 1 = what follows

    @property
    def buffer(self) -> bool:
        """Whether it is a batch-norm statistic or counter, which no gradient ever reaches."""
        return self.role in ("statistic", "counter")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


# ---------------------------------------------------------------- pieces
def xavier(out: int, into: int) -> Uniform:
    """Xavier uniform of a matrix."""
    return Uniform(math.sqrt(6 / (out + into)))


def linear(name: str, out: int, into: int, initial: Initial, layer: int, bias: bool = True) -> Iterator[Parameter]:
    """A fully connected layer."""
    yield Parameter(f"{name}.weight", (out, into), initial, "linear", layer=layer)
    if bias:
        yield Parameter(f"{name}.bias", (out,), Constant(0), "bias", layer=layer)


def norm(name: str, width: int, layer: int) -> Iterator[Parameter]:
    """A layer norm."""
    yield Parameter(f"{name}.weight", (width,), Constant(1), "norm", layer=layer)
    yield Parameter(f"{name}.bias", (width,), Constant(0), "bias", layer=layer)


def batch_norm(name: str, width: int, layer: int, affine: bool = True, scale: float = 1) -> Iterator[Parameter]:
    """A batch norm: affine part where it has one, then statistics."""
    if affine:
        yield Parameter(f"{name}.weight", (width,), Constant(scale), "norm", layer=layer)
        yield Parameter(f"{name}.bias", (width,), Constant(0), "bias", layer=layer)
    for statistic, value in (("running_mean", 0), ("running_var", 1)):
        yield Parameter(f"{name}.{statistic}", (width,), Constant(value), "statistic", trainable=False, layer=layer)
    yield Parameter(f"{name}.num_batches_tracked", (), Constant(0), "counter", trainable=False, layer=layer)


def blocks(name: str, depth: int, width: int, ratio: float, rule: str, first_layer: int) -> Iterator[Parameter]:
    """Transformer blocks; `rule` is how they are drawn."""
    hidden = int(width * ratio)
    for i in range(depth):
        layer, block = first_layer + i, f"{name}.{i}"
        # MoCo v3 draws query, key and value as three matrices, MAE as one
        qkv = Uniform(math.sqrt(3 / width)) if rule == "moco" else xavier(3 * width, width)
        wide, square = xavier(hidden, width), xavier(width, width)
        yield from norm(f"{block}.norm1", width, layer)
        yield from linear(f"{block}.attn.qkv", 3 * width, width, _or_timm(rule, qkv), layer)
        yield from linear(f"{block}.attn.proj", width, width, _or_timm(rule, square), layer)
        yield from norm(f"{block}.norm2", width, layer)
        yield from linear(f"{block}.mlp.fc1", hidden, width, _or_timm(rule, wide), layer)
        yield from linear(f"{block}.mlp.fc2", width, hidden, _or_timm(rule, wide), layer)


def _or_timm(rule: str, initial: Initial) -> Initial:
    return Normal(0.02) if rule == "timm" else initial
