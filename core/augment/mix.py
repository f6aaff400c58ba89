"""Mixup and CutMix of a batch with its own reverse, and smoothed targets (timm 0.3.2 data/mixup.py, mode "batch")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError
from triport.core.spec import MixSpec, Pair

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Mix:
    """What happens to one batch. `lam` is the share of a sample itself, the rest is its partner's."""

    use: Literal["none", "mixup", "cutmix"] = "none"
    lam: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # CutMix: top, left, height, width of what comes from the partner


def mix_plan(spec: MixSpec, generator: np.random.Generator, image_size: Pair) -> Mix:
    """Draw what happens to a batch of images of `image_size` (height, width)."""
    if not (spec.mixup > 0 or spec.cutmix > 0) or generator.random() >= spec.probability:
        return Mix()
    both = spec.mixup > 0 and spec.cutmix > 0
    if (generator.random() < spec.switch) if both else spec.cutmix > 0:
        return _cutmix(float(generator.beta(spec.cutmix, spec.cutmix)), generator, image_size)
    return Mix("mixup", float(generator.beta(spec.mixup, spec.mixup)))


def _cutmix(lam: float, generator: np.random.Generator, image_size: Pair) -> Mix:
    """A box of area 1 - lam around a uniform centre, clipped at the border; lam becomes what is left outside it."""
    box: list[int] = []
    for side in image_size:
        half = int(side * math.sqrt(1 - lam)) // 2
        centre = int(generator.integers(side))
        low, high = max(0, centre - half), min(side, centre + half)
        box += [low, high - low]
    top, height, left, width = box
    return Mix("cutmix", 1.0 - height * width / (image_size[0] * image_size[1]), (top, left, height, width))


def mix(images: Float, plan: Mix) -> Float:
    """Mix float images (n, C, H, W) with their reverse: sample i with sample n - 1 - i. Returns a new array."""
    if plan.use == "none":
        return images
    if len(images) % 2:
        raise UserError(f"Mixup and CutMix pair samples, so a batch of {len(images)} must be made even.")
    if plan.use == "mixup":
        lam = np.float32(plan.lam)
        return images * lam + images[::-1] * np.float32(1.0 - plan.lam)
    mixed = images.copy()
    top, left, height, width = plan.box
    region = (..., slice(top, top + height), slice(left, left + width))
    mixed[region] = images[::-1][region]
    return mixed


def soft_targets(labels: NDArray[np.int64], classes: int, plan: Mix | None = None, smoothing: float = 0.0) -> Float:
    """Targets (n, classes) whose rows sum to 1: smoothed one-hot of a sample and of its partner, weighed by lam.

    Smoothing spreads `smoothing` evenly over all classes, the right one included.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"Labels run from {labels.min()} to {labels.max()}, but the model has {classes} classes.")
    off = smoothing / classes
    own = np.full((len(labels), classes), off, dtype=np.float32)
    own[np.arange(len(labels)), labels] = 1.0 - smoothing + off
    if plan is None or plan.use == "none":
        return own
    return own * np.float32(plan.lam) + own[::-1] * np.float32(1.0 - plan.lam)
