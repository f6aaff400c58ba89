"""Every random draw of an augmentation: a view's operations and a generator become a plan of drawn steps.

Distributions are those of the originals: torchvision 0.29 (crops, jitter, resizing), MoCo v3 (blur, solarize),
MAE (crop of style "once") and timm 0.3.2 (RandAugment, erasing). `triport.core.augment.pixels` carries plans out.
"""

from __future__ import annotations

import math

import numpy as np

from triport.core.augment import rand_augment, steps
from triport.core.augment.mix import Mix, mix_plan
from triport.core.augment.steps import Fill, Plan, Step
from triport.core.errors import UserError
from triport.core.spec import (
    AugmentSpec,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    Pair,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Solarize,
)

__all__ = ["Mix", "Plan", "Step", "center_window", "crop_box", "mix_plan", "output_size", "plan", "resized_shape"]

ATTEMPTS = 10  # of a random crop or an erased box before it gives up


def plan(spec: AugmentSpec, view: int, generator: np.random.Generator, image_size: Pair) -> Plan:
    """Draw everything that happens to one image in view `view`.

    `image_size` is the (height, width) of the decoded image; `generator` comes from `triport.core.rng.generator` and is
    keyed by seed, epoch, sample and view, so that a view can be made again at any time.
    """
    if not 0 <= view < len(spec.views):
        raise UserError(f"The augmentation has {len(spec.views)} views; view {view} does not exist, count from 0.")
    if min(image_size) < 1:
        raise UserError(f"An image of {image_size[0]} x {image_size[1]} pixels has nothing to augment; remove it.")
    fill = tuple(min(255, round(255 * mean)) for mean in spec.mean)
    drawn: list[Step] = []
    size = image_size
    for operation in spec.views[view]:
        for step in _draw(operation, generator, size, fill):
            drawn.append(step)
            size = _size_after(step, size)
    return tuple(drawn)


def output_size(plan: Plan, image_size: Pair) -> Pair:
    """Return the (height, width) that `plan` gives an image of `image_size`."""
    for step in plan:
        image_size = _size_after(step, image_size)
    return image_size


def _size_after(step: Step, size: Pair) -> Pair:
    if isinstance(step, (steps.Crop, steps.Resize)):
        return step.size
    return (step.height, step.width) if isinstance(step, steps.Window) else size


def _draw(operation: Operation, generator: np.random.Generator, size: Pair, fill: Fill) -> tuple[Step, ...]:
    """The steps that `operation` becomes on an image of `size`; none where its probability says so."""
    match operation:
        case RandomResizedCrop():
            box = crop_box(operation, generator, size)
            return (steps.Crop(*box, operation.size, operation.interpolation),)
        case ColorJitter():
            return _jitter(operation, generator) if generator.random() < operation.p else ()
        case Grayscale():
            return (steps.Gray(),) if generator.random() < operation.p else ()
        case GaussianBlur():
            sigma = generator.uniform(operation.min_sigma, operation.max_sigma)
            return (steps.Blur(sigma),) if generator.random() < operation.p else ()
        case Solarize():
            return (steps.Invert(operation.threshold),) if generator.random() < operation.p else ()
        case HorizontalFlip():
            return (steps.Mirror(),) if generator.random() < operation.p else ()
        case RandAugment():
            return rand_augment.draw(operation, generator, size, fill)
        case RandomErasing():
            return _erasing(operation, generator, size) if generator.random() < operation.p else ()
        case Resize():
            return (steps.Resize(resized_shape(size, operation.size), operation.interpolation),)
        case CenterCrop():
            return (center_window(size, operation.size),)
    raise UserError(f"The augmentation has an operation that no one knows: {operation!r}. core/spec/spec.py has all.")


# ---------------------------------------------------------------- crops
def crop_box(crop: RandomResizedCrop, generator: np.random.Generator, size: Pair) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a random crop of an image of `size` (torchvision RandomResizedCrop.get_params;
    style "once": mae util/crop.py)."""
    image_height, image_width = size
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for _ in range(1 if crop.style == "once" else ATTEMPTS):
        area = image_height * image_width * generator.uniform(crop.min_area, crop.max_area)
        ratio = math.exp(generator.uniform(low, high))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if crop.style == "once":  # clipped instead of drawn again, so the ratio may leave its range
            width, height = max(1, min(width, image_width)), max(1, min(height, image_height))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = int(generator.integers(0, image_height - height + 1))
            left = int(generator.integers(0, image_width - width + 1))
            return top, left, height, width
    return _fallback(crop.ratio, size)


def _fallback(ratio: tuple[float, float], size: Pair) -> tuple[int, int, int, int]:
    """The largest box in the middle whose ratio is allowed."""
    height, width = size
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    height, width = max(1, min(height, size[0])), max(1, min(width, size[1]))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def resized_shape(size: Pair, shorter: int) -> Pair:
    """(height, width) once the shorter side has `shorter` pixels; the longer side is cut to a whole number."""
    height, width = size
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def center_window(size: Pair, target: Pair) -> steps.Window:
    """The middle box as torchvision's center_crop places it: halves are rounded to even, padding is half before."""
    starts = []
    for have, want in zip(size, target, strict=True):
        starts.append(-((want - have) // 2) if want > have else round((have - want) / 2.0))
    return steps.Window(starts[0], starts[1], *target)


# ---------------------------------------------------------------- colour, erasing
def _jitter(jitter: ColorJitter, generator: np.random.Generator) -> tuple[Step, ...]:
    """Factors uniform around 1 (hue: around 0), in a random order; a strength of 0 leaves its operation out."""

    def around_one(strength: float) -> float:
        return float(generator.uniform(max(0.0, 1 - strength), 1 + strength))

    order = generator.permutation(4)
    drawn: tuple[tuple[float, Step], ...] = (
        (jitter.brightness, steps.Brightness(around_one(jitter.brightness))),
        (jitter.contrast, steps.Contrast(around_one(jitter.contrast))),
        (jitter.saturation, steps.Saturation(around_one(jitter.saturation))),
        (jitter.hue, steps.Hue(float(generator.uniform(-jitter.hue, jitter.hue)))),
    )
    return tuple(drawn[i][1] for i in order if drawn[i][0] > 0)


def _erasing(erasing: RandomErasing, generator: np.random.Generator, size: Pair) -> tuple[Step, ...]:
    """One box strictly smaller than the image, or none after ten attempts (timm data/random_erasing.py)."""
    low, high = math.log(erasing.ratio), math.log(1 / erasing.ratio)
    for _ in range(ATTEMPTS):
        area = size[0] * size[1] * generator.uniform(erasing.min_area, erasing.max_area)
        ratio = math.exp(generator.uniform(low, high))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < size[0] and width < size[1]:
            top = int(generator.integers(0, size[0] - height + 1))
            left = int(generator.integers(0, size[1] - width + 1))
            return (steps.Erase(top, left, height, width, int(generator.integers(2**63))),)
    return ()
