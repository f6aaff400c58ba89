"""RandAugment as timm 0.3.2 spells it `rand-m9-mstd0.5-inc1`: which operations, and how magnitude becomes argument.

"Increasing" forms throughout: a larger magnitude always means a stronger change. Source: timm data/auto_augment.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from triport.core.augment import steps
from triport.core.augment.steps import Fill, Step
from triport.core.spec import Pair, RandAugment

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_ENHANCEMENTS: dict[str, Callable[[float], Step]] = {
    "colour": steps.Saturation,
    "contrast": steps.Contrast,
    "brightness": steps.Brightness,
    "sharpness": steps.Sharpness,
}


def step(operation: str, magnitude: float, sign: int, size: Pair, fill: Fill) -> Step:
    """One operation at `magnitude` (0 to 10); `sign` is +1 or -1 and counts where an argument may be negative."""
    level = magnitude / 10
    height, width = size
    if operation in _ENHANCEMENTS:
        return _ENHANCEMENTS[operation](1 + sign * 0.9 * level)
    match operation:
        case "auto_contrast":
            return steps.AutoContrast()
        case "equalize":
            return steps.Equalize()
        case "invert":
            return steps.Invert(0)
        case "posterize":
            return steps.Posterize(4 - int(level * 4))
        case "solarize":
            return steps.Invert(256 - int(level * 256))
        case "solarize_add":
            return steps.Add(min(128, int(level * 110)))
        case "rotate":
            return steps.Rotate(sign * 30 * level, fill)
        case "shear_x":
            return steps.Shear(sign * 0.3 * level, 0.0, fill)
        case "shear_y":
            return steps.Shear(0.0, sign * 0.3 * level, fill)
        case "translate_x":
            return steps.Translate(sign * 0.45 * level * width, 0.0, fill)
        case "translate_y":
            return steps.Translate(0.0, sign * 0.45 * level * height, fill)
    raise ValueError(f"RandAugment has no operation {operation!r}")


def draw(spec: RandAugment, generator: np.random.Generator, size: Pair, fill: Fill) -> tuple[Step, ...]:
    """Draw `spec.operations` operations with replacement; each is kept with probability p at a normal magnitude."""
    drawn: list[Step] = []
    for choice in generator.integers(len(OPERATIONS), size=spec.operations):
        keep = generator.random() < spec.p
        magnitude = min(10.0, max(0.0, generator.normal(spec.magnitude, spec.deviation)))
        sign = -1 if generator.random() < 0.5 else 1
        if keep:
            drawn.append(step(OPERATIONS[choice], magnitude, sign, size, fill))
    return tuple(drawn)
