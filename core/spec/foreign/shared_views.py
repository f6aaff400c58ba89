"""Steps of image chains that several projects write alike: timm's RandAugment, jitter, the scoring of the paper."""

from __future__ import annotations

import re

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import (
    MAE,
    CenterCrop,
    Classifier,
    ColorJitter,
    Encoder,
    Interpolation,
    Objective,
    Operation,
    RandAugment,
    Resize,
)


def rand_augment(s: Settings, key: str) -> RandAugment:
    """RandAugment as timm writes it: `rand-m9-mstd0.5-inc1`."""
    text = str(s.take(key))
    found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?-mstd(\d+(?:\.\d+)?)-inc1", text)
    if not found:
        raise UserError(f"{s.path}: {key} is '{text}'; here it is of the form rand-m9-mstd0.5-inc1")
    return RandAugment(magnitude=float(found[1]), operations=int(found[2] or 2), deviation=float(found[3]))


def jitter(s: Settings, key: str, p: float) -> ColorJitter:
    """Colour jitter by its four strengths, with probability p."""
    return ColorJitter(
        p=p,
        brightness=s.number(f"{key}.brightness", 0.0),
        contrast=s.number(f"{key}.contrast", 0.0),
        saturation=s.number(f"{key}.saturation", 0.0),
        hue=s.number(f"{key}.hue", 0.0),
    )


def interpolation(s: Settings, key: str, default: str = "bilinear") -> Interpolation:
    """How an image is resized."""
    how = str(s.take(key, default)).lower()
    if how not in ("bilinear", "bicubic"):
        raise UserError(f"{s.path}: {key} is '{how}': take bilinear or bicubic")
    return how  # type: ignore[return-value]


def held_out(s: Settings, missing: str, encoder: Encoder, objective: Objective) -> tuple[Operation, ...]:
    """The paper's view of images that a file does not say how to score; `missing` is what it has not."""
    s.remarks.append(f"{missing} is not there: held-out images are resized and cut as in the paper")
    mae = isinstance(objective, MAE) or (isinstance(objective, Classifier) and not objective.frozen_encoder)
    resize = Resize(size=max(encoder.image) * 256 // 224, interpolation="bicubic" if mae else "bilinear")
    return resize, CenterCrop(size=encoder.image)
