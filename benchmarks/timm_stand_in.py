"""What the original code imports from timm 0.4.9 and 0.3.2 and from torchvision, by their documentation.

Those versions of timm do not import under today's PyTorch. Names of modules and parameters are timm's, so that the
originals' weights fit; every operation is the plain one that timm used then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED_ATTENTION = False  # of float32, for the "modern" variant


def to_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """A number for both axes."""
    return value if isinstance(value, tuple) else (value, value)


class Attention(nn.Module):
    """Softmax of the whole score matrix, scaled after the product."""

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> the same."""
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if FUSED_ATTENTION and (q.is_cuda or q.dtype == torch.float32):
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers around GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block without drop path."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: None = None,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), Attention(dim, num_heads, qkv_bias)
        self.norm2, self.mlp = norm_layer(dim), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel."""

    def __init__(self, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, **_: Any):
        super().__init__()
        self.img_size, self.patch_size = to_pair(img_size), to_pair(patch_size)
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, dim)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The class token of the normed last block, through a head."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        embed_layer: Callable[..., Any] = PatchEmbed,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_tokens = embed_dim, 1
        self.patch_embed = embed_layer(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        blocks = [Block(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_layer=norm_layer) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, classes)."""
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


# ---------------------------------------------------------------- torchvision's ResNet
class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1, each with a batch norm."""

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(into, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, into, height, width) -> (n, 4 width, ...)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """ResNet-50 with torchvision's names."""

    def __init__(self, num_classes: int = 1000, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        into = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            width, blocks = 64 * 2**stage, []
            for i in range(count):
                blocks.append(Bottleneck(into, width, 2 if i == 0 and stage else 1))
                into = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(into, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def resnet50() -> Callable[..., nn.Module]:
    """Torchvision's where it is installed, else the one above."""
    try:
        from torchvision.models import resnet50 as theirs
    except ImportError:
        return ResNet
    return theirs  # type: ignore[no-any-return]


def install() -> None:
    """Let `import timm...` find these."""
    names = {
        "timm": {},
        "timm.models": {},
        "timm.models.vision_transformer": {
            "VisionTransformer": VisionTransformer, "PatchEmbed": PatchEmbed, "Block": Block, "_cfg": dict,
        },
        "timm.models.layers": {"PatchEmbed": PatchEmbed},
        "timm.models.layers.helpers": {"to_2tuple": to_pair},
    }  # fmt: skip
    for name, contents in names.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(contents)
        module.__path__ = []
