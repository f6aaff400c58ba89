"""PASSL's models without values, layers made in its order: Paddle names tensors by counting the layers made so far."""

from __future__ import annotations

import math
from itertools import pairwise

from triport.backends.paddle.runtime import nn, paddle
from triport.core.model.inventory import grid
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def skeleton(model: ModelSpec, synchronised: bool) -> nn.Layer:
    """PASSL's model as one process builds it, or several: they convert their batch norms."""
    encoder, objective = model.encoder, model.objective
    assert isinstance(encoder, ViT)
    with paddle.utils.unique_name.guard(), paddle.LazyGuard():
        if isinstance(objective, MAE):
            return MaskedAutoencoderViT(encoder, objective)
        assert isinstance(objective, MoCo)
        width, hidden, dim = encoder.width, objective.hidden, objective.dim
        layer = nn.Layer()
        layer.base_encoder = VisionTransformerMoCo(encoder, hidden)
        layer.momentum_encoder = VisionTransformerMoCo(encoder, hidden)
        layer.base_encoder.head = _mlp([width, hidden, hidden, dim])
        layer.momentum_encoder.head = _mlp([width, hidden, hidden, dim])
        layer.predictor = _mlp([dim, hidden, dim])
        return nn.SyncBatchNorm.convert_sync_batchnorm(layer) if synchronised else layer


class VisionTransformerMoCo(nn.Layer):
    """The encoder of MoCo v3. Its tensors are called after this class, so it has PASSL's name."""

    def __init__(self, encoder: ViT, hidden: int) -> None:
        super().__init__()
        self.patch_embed = _patches(encoder)
        places = [1, 1 + math.prod(grid(encoder)), encoder.width]
        self.pos_embed = self.create_parameter(places)
        self.cls_token = self.create_parameter([1, 1, encoder.width])
        self.blocks = _blocks(encoder.depth, encoder.width, encoder.mlp_ratio)
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, hidden)  # made and discarded, but counted
        del self.head
        self.pos_embed = self.create_parameter(places)  # the table replaces what was there


class MaskedAutoencoderViT(nn.Layer):
    """The masked autoencoder, by PASSL's name."""

    def __init__(self, encoder: ViT, objective: MAE) -> None:
        super().__init__()
        width, places = objective.decoder_width, 1 + math.prod(grid(encoder))
        self.patch_embed = _patches(encoder)
        self.cls_token = self.create_parameter([1, 1, encoder.width])
        self.pos_embed = self.create_parameter([1, places, encoder.width])
        self.blocks = _blocks(encoder.depth, encoder.width, encoder.mlp_ratio)
        self.norm = nn.LayerNorm(encoder.width)
        self.decoder_embed = nn.Linear(encoder.width, width)
        self.mask_token = self.create_parameter([1, 1, width])
        self.decoder_pos_embed = self.create_parameter([1, places, width])
        self.decoder_blocks = _blocks(objective.decoder_depth, width, encoder.mlp_ratio)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, encoder.channels * math.prod(encoder.patch))


def _patches(encoder: ViT) -> nn.Layer:
    layer = nn.Layer()
    layer.proj = nn.Conv2D(encoder.channels, encoder.width, encoder.patch, stride=encoder.patch)
    return layer


def _blocks(depth: int, width: int, mlp_ratio: float) -> nn.LayerList:
    blocks, wide = nn.LayerList(), int(width * mlp_ratio)
    for _ in range(depth):
        block = nn.Layer()
        block.norm1, block.attn = nn.LayerNorm(width), nn.Layer()
        block.attn.qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        block.norm2, block.mlp = nn.LayerNorm(width), nn.Layer()
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)
        blocks.append(block)
    return blocks


def _mlp(widths: list[int]) -> nn.Sequential:
    steps: list[nn.Layer] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        norm = nn.BatchNorm1D(out, weight_attr=False, bias_attr=False) if last else nn.BatchNorm1D(out)
        steps += [nn.Linear(into, out, bias_attr=False), norm, *([] if last else [nn.ReLU()])]
    return nn.Sequential(*steps)
