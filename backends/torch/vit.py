"""The vision transformer encoder, with whatever head stands on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triport.backends.torch.layers import Block, ConvStem, PatchEmbedding
from triport.core.model.inventory import grid
from triport.core.spec import ViT


class VisionTransformer(nn.Module):
    """A ViT with the originals' names: cls_token, pos_embed, patch_embed, blocks, norm or fc_norm, head."""

    def __init__(self, encoder: ViT, head: nn.Module | None = None, pooling: str = "token") -> None:
        super().__init__()
        rows, columns = grid(encoder)
        width, last = encoder.width, max(encoder.depth - 1, 1)
        self.pooling = pooling
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.patch_embed: PatchEmbedding | ConvStem = (
            ConvStem(encoder.channels, width)
            if encoder.stem == "conv"
            else PatchEmbedding(encoder.channels, width, encoder.patch)
        )
        rates = [encoder.drop_path * i / last for i in range(encoder.depth)]
        self.blocks = nn.ModuleList(
            Block(width, encoder.heads, encoder.mlp_ratio, encoder.norm_eps, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=encoder.norm_eps) if pooling == "token" else None
        self.head = head
        self.fc_norm = nn.LayerNorm(width, eps=encoder.norm_eps) if pooling == "mean" else None

    def tokens(self, images: Tensor) -> Tensor:
        """Images -> (n, 1 + patches, width), class token first, positions added."""
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        token = self.cls_token + self.pos_embed[:, :1]
        # not len(images), which an exporter takes for a constant
        return torch.cat([token.expand(images.shape[0], -1, -1), patches], dim=1)

    def features(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images (n, channels, height, width) -> (n, width).

        The class token after `norm`, or the mean of the patches after `fc_norm`. `draws` (n, depth, 2) are the
        uniform numbers of stochastic depth. Where only the class token leaves, the last block computes it alone.
        """
        x = self.tokens(images)
        token = self.norm is not None
        for i, block in enumerate(self.blocks):
            final = token and i == len(self.blocks) - 1
            x = block(x, None if draws is None else draws[:, i], token_only=final)
        if self.norm is not None:
            return self.norm(x[:, 0])
        assert self.fc_norm is not None
        return self.fc_norm(x[:, 1:].mean(dim=1))

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images -> what the head makes of their features."""
        x = self.features(images, draws)
        return x if self.head is None else self.head(x)
