"""Multiply-adds of one forward pass of an encoder, counted as the model zoos do."""

from __future__ import annotations

import math

from triport.core.model.inventory import BOTTLENECK, STAGES, feature_width, grid
from triport.core.spec import Encoder, ModelSpec, ResNet, ViT


def flops(spec: ModelSpec) -> int:
    """Return multiply-adds of the encoder for one image at its own size, without head, decoder or projector.

    fvcore's rule, which mmpretrain's tables follow: matrix products count one per multiply-add, layer norms 5
    and batch norms 2 per element, average pooling 1 per element.
    """
    return encoder_flops(spec.encoder)


def encoder_flops(encoder: Encoder) -> int:
    """As `flops`, for a bare encoder."""
    return _vit(encoder) if isinstance(encoder, ViT) else _resnet(encoder)


def _vit(encoder: ViT) -> int:
    width, (rows, columns) = encoder.width, grid(encoder)
    tokens, hidden = rows * columns + 1, int(encoder.width * encoder.mlp_ratio)
    block = tokens * width * (4 * width + 2 * hidden) + 2 * tokens * tokens * width
    norms = 5 * tokens * width * (2 * encoder.depth + 1)
    return encoder.depth * block + norms + _stem(encoder)


def _stem(encoder: ViT) -> int:
    rows, columns = grid(encoder)
    if encoder.stem == "patch":
        return rows * columns * encoder.channels * math.prod(encoder.patch) * encoder.width
    total, into, (height, width) = 0, encoder.channels, encoder.image
    for out in (encoder.width // 8, encoder.width // 4, encoder.width // 2, encoder.width):
        height, width = (height + 1) // 2, (width + 1) // 2
        total += height * width * out * (9 * into + 2)
        into = out
    return total + rows * columns * encoder.width**2


def _resnet(encoder: ResNet) -> int:
    height, width = ((side + 1) // 2 for side in encoder.image)
    total = height * width * encoder.width * (49 * encoder.channels + 2)
    height, width, into, deep = (height + 1) // 2, (width + 1) // 2, encoder.width, BOTTLENECK[encoder.depth]
    for stage, blocks in enumerate(STAGES[encoder.depth]):
        inner = encoder.width * 2**stage
        out = inner * (4 if deep else 1)
        for i in range(blocks):
            before = height * width
            if i == 0 and stage > 0:
                height, width = (height + 1) // 2, (width + 1) // 2
            area = height * width
            if deep:  # the stride is in the 3 x 3 convolution
                total += before * inner * (into + 2) + area * inner * (9 * inner + 2) + area * out * (inner + 2)
            else:
                total += area * out * (9 * into + 2) + area * out * (9 * out + 2)
            if i == 0 and (stage > 0 or into != out):
                total += area * out * (into + 2)
            into = out
    return total + height * width * feature_width(encoder)
