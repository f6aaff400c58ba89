"""Every parameter and buffer of a model, with the originals' names, shapes and order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from triport.core.model.parameters import (
    Constant,
    Copy,
    Initial,
    Normal,
    Parameter,
    SinCos,
    Uniform,
    batch_norm,
    blocks,
    linear,
    norm,
    xavier,
)
from triport.core.spec import MAE, Classifier, Encoder, MoCo, ModelSpec, Pair, ResNet, ViT

BOTTLENECK = {10: False, 18: False, 34: False, 50: True, 101: True}
STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def inventory(spec: ModelSpec) -> tuple[Parameter, ...]:
    """Return every parameter and buffer of a model, in the originals' order of registration."""
    encoder, objective = spec.encoder, spec.objective
    if isinstance(objective, MoCo):
        base = [*_encoder(encoder), *_projector(encoder, objective)]
        momentum = [
            replace(p, name=f"momentum_encoder.{p.name}", initial=Copy(f"base_encoder.{p.name}"), trainable=False)
            for p in base
        ]
        named = [replace(p, name=f"base_encoder.{p.name}") for p in base]
        return (*named, *momentum, *_predictor(encoder, objective))
    if isinstance(objective, MAE):
        return tuple(_mae(encoder, objective))
    return tuple(_classifier(encoder, objective))


def encoder_inventory(encoder: Encoder) -> tuple[Parameter, ...]:
    """Return the bare encoder's parameters: what `encoder.safetensors` holds."""
    return tuple(_encoder(encoder))


def feature_width(encoder: Encoder) -> int:
    """Width of the features that an encoder gives."""
    if isinstance(encoder, ViT):
        return encoder.width
    return encoder.width * (32 if BOTTLENECK[encoder.depth] else 8)


def grid(encoder: ViT) -> Pair:
    """Rows and columns of patches."""
    return encoder.image[0] // encoder.patch[0], encoder.image[1] // encoder.patch[1]


def parameter_count(spec: ModelSpec, trainable: bool = False) -> int:
    """Number of parameters (buffers apart), of all or of the trainable ones."""
    return sum(p.size for p in inventory(spec) if not p.buffer and (p.trainable or not trainable))


# ---------------------------------------------------------------- encoders
def _encoder(encoder: Encoder, last_norm: bool = True) -> Iterator[Parameter]:
    yield from _vit(encoder, last_norm) if isinstance(encoder, ViT) else _resnet(encoder)


def _vit(encoder: ViT, last_norm: bool) -> Iterator[Parameter]:
    width, rule, (rows, columns) = encoder.width, encoder.initial_values, grid(encoder)
    token = {"moco": 1e-6, "mae": 0.02, "timm": 0.02}[rule]
    yield Parameter("cls_token", (1, 1, width), Normal(token), "token")
    place: Initial = Normal(0.02) if rule == "timm" else SinCos(encoder.position, (rows, columns))
    yield Parameter("pos_embed", (1, 1 + rows * columns, width), place, "table", trainable=encoder.trainable_position)
    for p in _patch_embedding(encoder):
        yield replace(p, trainable=p.trainable and not (encoder.frozen_patch and encoder.stem == "patch"))
    yield from blocks("blocks", encoder.depth, width, encoder.mlp_ratio, rule, 1)
    if last_norm:
        yield from norm("norm", width, encoder.depth + 1)


def _patch_embedding(encoder: ViT) -> Iterator[Parameter]:
    width, channels = encoder.width, encoder.channels
    if encoder.stem == "patch":
        into = channels * math.prod(encoder.patch)
        default = Uniform(1 / math.sqrt(into))
        rules: dict[str, tuple[Initial, Initial]] = {
            "moco": (xavier(width, into), Constant(0)),
            "mae": (xavier(width, into), default),  # MAE keeps the framework's own bias
            "timm": (default, default),
        }
        weight, bias = rules[encoder.initial_values]
        yield Parameter("patch_embed.proj.weight", (width, channels, *encoder.patch), weight, "conv")
        yield Parameter("patch_embed.proj.bias", (width,), bias, "bias")
        return
    into = channels
    for i, out in enumerate((width // 8, width // 4, width // 2, width)):
        shape = (out, into, 3, 3)
        yield Parameter(f"patch_embed.proj.{3 * i}.weight", shape, Uniform(1 / math.sqrt(9 * into)), "conv")
        yield from batch_norm(f"patch_embed.proj.{3 * i + 1}", out, 0)
        into = out
    last = Uniform(1 / math.sqrt(width))
    yield Parameter("patch_embed.proj.12.weight", (width, width, 1, 1), last, "conv")
    yield Parameter("patch_embed.proj.12.bias", (width,), last, "bias")


def _resnet(encoder: ResNet) -> Iterator[Parameter]:
    deep = BOTTLENECK[encoder.depth]
    yield _conv("conv1", encoder.width, encoder.channels, 7, 0)
    yield from batch_norm("bn1", encoder.width, 0)
    into = encoder.width
    for stage, count in enumerate(STAGES[encoder.depth]):
        width = encoder.width * 2**stage
        out = width * (4 if deep else 1)
        for i in range(count):
            name, layer = f"layer{stage + 1}.{i}", stage + 1
            convs = [(width, into, 1), (width, width, 3), (out, width, 1)] if deep else [(out, into, 3), (out, out, 3)]
            for j, (to, of, kernel) in enumerate(convs, 1):
                last = j == len(convs)
                yield _conv(f"{name}.conv{j}", to, of, kernel, layer)
                scale = 0 if last and encoder.zero_init_residual else 1
                yield from batch_norm(f"{name}.bn{j}", to, layer, scale=scale)
            if i == 0 and (stage > 0 or into != out):
                yield _conv(f"{name}.downsample.0", out, into, 1, layer)
                yield from batch_norm(f"{name}.downsample.1", out, layer)
            into = out


def _conv(name: str, out: int, into: int, kernel: int, layer: int) -> Parameter:
    std = math.sqrt(2 / (out * kernel * kernel))  # Kaiming normal, fan out
    return Parameter(f"{name}.weight", (out, into, kernel, kernel), Normal(std), "conv", layer=layer)


# ---------------------------------------------------------------- objectives
def _mlp(name: str, widths: list[int], last_norm: bool, layer: int) -> Iterator[Parameter]:
    """Linear without bias, batch norm, ReLU ...; the last norm has no affine parameters (moco/builder.py)."""
    for i, (into, out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        default = Uniform(1 / math.sqrt(into))
        yield from linear(f"{name}.{3 * i}", out, into, default, layer, bias=False)
        if not last or last_norm:
            yield from batch_norm(f"{name}.{3 * i + 1}", out, layer, affine=not last)


def _projector(encoder: Encoder, objective: MoCo) -> Iterator[Parameter]:
    name, hidden, last = head_name(encoder), objective.hidden, _last_layer(encoder)
    widths = [feature_width(encoder), *([hidden, hidden] if isinstance(encoder, ViT) else [hidden]), objective.dim]
    return _mlp(name, widths, True, last)


def _predictor(encoder: Encoder, objective: MoCo) -> Iterator[Parameter]:
    widths = [objective.dim, objective.hidden, objective.dim]
    return _mlp("predictor", widths, isinstance(encoder, ViT), _last_layer(encoder))


def head_name(encoder: Encoder) -> str:
    """Name of what stands on an encoder: "head" on a ViT, "fc" on a ResNet."""
    return "head" if isinstance(encoder, ViT) else "fc"


def _last_layer(encoder: Encoder) -> int:
    return encoder.depth + 1 if isinstance(encoder, ViT) else 5


def _mae(encoder: Encoder, objective: MAE) -> Iterator[Parameter]:
    assert isinstance(encoder, ViT), "MAE needs a ViT"
    width, last = objective.decoder_width, encoder.depth + 1
    own = list(_vit(encoder, True))
    rows, columns = grid(encoder)
    pixels = encoder.channels * math.prod(encoder.patch)
    yield from own[:2]
    yield Parameter("mask_token", (1, 1, width), Normal(0.02), "token", layer=last)
    place = SinCos("mae", (rows, columns))
    shape = (1, 1 + rows * columns, width)
    yield Parameter("decoder_pos_embed", shape, place, "table", trainable=False, layer=last)
    yield from own[2:]
    yield from linear("decoder_embed", width, encoder.width, xavier(width, encoder.width), last)
    for p in blocks("decoder_blocks", objective.decoder_depth, width, encoder.mlp_ratio, "mae", last):
        yield replace(p, layer=last)
    yield from norm("decoder_norm", width, last)
    yield from linear("decoder_pred", pixels, width, xavier(pixels, width), last)


def _classifier(encoder: Encoder, objective: Classifier) -> Iterator[Parameter]:
    last, width = _last_layer(encoder), feature_width(encoder)
    pooled = isinstance(encoder, ViT) and objective.pooling == "mean"
    own = list(_encoder(encoder, not pooled))
    frozen = objective.frozen_encoder
    for p in own:
        yield replace(p, trainable=p.trainable and not frozen)
    head = head_name(encoder)
    if objective.head_norm:
        yield from batch_norm(f"{head}.0", width, last, affine=False)
        head = f"{head}.1"
    yield from linear(head, objective.classes, width, Normal(objective.head_std), last)
    if pooled:  # models_vit.py makes it after the head
        yield from (replace(p, trainable=not frozen) for p in norm("fc_norm", width, last))
