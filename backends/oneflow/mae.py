"""Masked autoencoder: the encoder sees a quarter of the patches, a light decoder predicts the rest (models_mae.py)."""

from __future__ import annotations

import math
from typing import cast

from triport.backends.oneflow.layers import Block, PatchEmbedding
from triport.backends.oneflow.numerics import LayerNorm, scaled
from triport.backends.oneflow.runtime import Tensor, flow, nn
from triport.backends.oneflow.tensors import wide
from triport.backends.oneflow.vit import VisionTransformer
from triport.core.model.inventory import grid
from triport.core.spec import MAE, ViT


class MaskedAutoencoder(VisionTransformer):
    """An encoder (the names of a ViT) and a decoder (decoder_*, mask_token)."""

    def __init__(self, encoder: ViT, objective: MAE) -> None:
        super().__init__(encoder)
        rows, columns = grid(encoder)
        width, eps = objective.decoder_width, encoder.norm_eps
        self.normalised_pixels = objective.normalised_pixels
        self.mask_token = nn.Parameter(flow.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(flow.zeros(1, 1 + rows * columns, width))
        self.decoder_embed = nn.Linear(encoder.width, width)
        self.decoder_blocks = nn.ModuleList(
            Block(width, objective.decoder_heads, encoder.mlp_ratio, eps, 0.0) for _ in range(objective.decoder_depth)
        )
        self.decoder_norm = LayerNorm(width, eps=eps)
        self.decoder_pred = nn.Linear(width, encoder.channels * math.prod(encoder.patch))

    def reconstruct(self, images: Tensor, visible: Tensor, restore: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Images (n, channels, height, width), a masking.Mask -> loss, prediction (n, patches, pixels), mask.

        Also features (n, width), the class token's, which no gradient passes.
        """
        encoded = self.encode(images, visible)
        prediction = self.decode(encoded, restore)
        error = (wide(prediction) - self.target(images)).square().mean(dim=-1)
        loss, features = (error * mask).sum() / mask.sum(), encoded[:, 0].detach()
        return {"loss": loss, "prediction": prediction, "mask": mask, "features": features}

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Class token and visible patches (n, 1 + k, width); `visible` (n, k) says which, in their order."""
        assert self.norm is not None
        embed = cast(PatchEmbedding, self.patch_embed)  # in a graph a stand-in for it, which no test of its kind passes
        # patches are chosen before they are embedded: three quarters would be embedded for nothing
        tokens = embed.project(take(embed.unfold(images), visible))
        tokens = tokens + take(self.pos_embed[:, 1:].expand(len(images), -1, -1), visible)
        token = self.cls_token + self.pos_embed[:, :1]
        x = flow.cat([token.expand(len(images), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, x: Tensor, restore: Tensor) -> Tensor:
        """Encoded tokens -> the pixels of every patch (n, patches, rows * columns * channels)."""
        x = self.decoder_embed(x)
        hidden = restore.shape[1] + 1 - x.shape[1]
        tokens = flow.cat([x[:, 1:], self.mask_token.to(x.dtype).expand(len(x), hidden, -1)], dim=1)
        x = flow.cat([x[:, :1], take(tokens, restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1:]))

    @flow.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """Pixels of every patch, ordered row, column, channel; by choice normalised with the unbiased variance."""
        (rows, columns), (n, channels, height, width) = cast(PatchEmbedding, self.patch_embed).patch, images.shape
        x = images.reshape(n, channels, height // rows, rows, width // columns, columns)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, rows * columns * channels)
        if self.normalised_pixels:
            rows = x.reshape(1, -1, x.shape[-1])
            mean = rows.mean(dim=-1).flatten()
            centred = scaled(rows, flow.ones_like(mean), -mean)
            var = (centred * centred).sum(dim=-1).flatten() / (x.shape[-1] - 1)
            x = scaled(centred, flow.rsqrt(var + 1e-6)).reshape(*x.shape)
        return x


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (n, k) of x (n, rows, width)."""
    return flow.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
