"""The ResNet v1.5 encoder with torchvision's names, and whatever head stands on it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from triport.backends.torch.kernels import rectified
from triport.backends.torch.layers import BatchNorm
from triport.core.backend.recorder import under_way
from triport.core.model.inventory import BOTTLENECK, STAGES
from triport.core.spec import ResNet


def conv(into: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=False)


class Residual(nn.Module):
    """A basic block (two 3 x 3) or a bottleneck (1 x 1, 3 x 3 with the stride, 1 x 1)."""

    def __init__(self, into: int, width: int, out: int, stride: int, deep: bool) -> None:
        super().__init__()
        shapes = [(into, width, 1), (width, width, 3), (width, out, 1)] if deep else [(into, out, 3), (out, out, 3)]
        self.depth = len(shapes)
        strided = 2 if deep else 1
        for i, (of, to, kernel) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", conv(of, to, kernel, stride if i == strided else 1))
            self.add_module(f"bn{i}", BatchNorm(to))
        self.downsample = (
            nn.Sequential(conv(into, out, 1, stride), BatchNorm(out)) if stride != 1 or into != out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, into, h, w) -> (n, out, h / stride, w / stride)."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = rectified(y)
        skip = x if self.downsample is None else self.downsample(x)
        return rectified(y + skip if under_way() else y.add_(skip))


class ResidualNetwork(nn.Module):
    """ResNet-10/18/34/50/101: conv1, bn1, layer1 to layer4, mean over the map, fc."""

    def __init__(self, encoder: ResNet, head: nn.Module | None = None) -> None:
        super().__init__()
        deep = BOTTLENECK[encoder.depth]
        self.conv1 = nn.Conv2d(encoder.channels, encoder.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(encoder.width)
        into = encoder.width
        for stage, count in enumerate(STAGES[encoder.depth]):
            width = encoder.width * 2**stage
            out, steps = width * (4 if deep else 1), []
            for i in range(count):
                steps.append(Residual(into, width, out, 2 if i == 0 and stage > 0 else 1, deep))
                into = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*steps))
        self.fc = head

    def features(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images (n, channels, height, width) -> (n, 8 or 32 times the width); no stochastic depth to draw for."""
        x = F.max_pool2d(rectified(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images -> what the head makes of their features."""
        x = self.features(images, draws)
        return x if self.fc is None else self.fc(x)
