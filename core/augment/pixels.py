"""A plan carried out on an image, and what follows: to floats, erasing, mixing.

Images are uint8, height x width x channels. Results equal those of torchvision on Pillow images, to the last bit where
the same drawn numbers go in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triport.core import rng
from triport.core.augment import colour, geometry, native, steps
from triport.core.augment.mix import mix, soft_targets
from triport.core.augment.runs import Part, Run, divided
from triport.core.augment.steps import Plan, Step
from triport.core.errors import UserError
from triport.core.spec import Pair

__all__ = ["apply", "as_array", "erase", "mix", "normalise", "shape", "soft_targets", "table", "to_bytes", "view"]

Bytes = NDArray[np.uint8]
Float = NDArray[np.float32]
Source = Union[Image.Image, Bytes]


def apply(plan: Plan, image: Source) -> Bytes:
    """Carry out `plan` on a Pillow image or a uint8 array (H, W, C) or (H, W); returns uint8 (H', W', C).

    Erasing waits for `erase`, since it happens on the normalised image. Colour steps raise a UserError where there
    are neither 1 nor 3 channels. The result never shares memory with an array that was given.
    """
    plan, pixels = _cut(plan, image)
    for part in _parts(plan, pixels):
        pixels = _part(part, pixels)
    if isinstance(image, np.ndarray) and np.may_share_memory(pixels, image):
        return pixels.copy()
    return np.ascontiguousarray(pixels)


def view(plan: Plan, image: Source, out: NDArray[Any], values: Float | None = None) -> None:
    """Carry out `plan` as `apply` does, straight into `out`, which has the shape of the result.

    out: uint8 (H', W', C); or, with `values` (C, 256) from `table`, float32 (C, H', W'): normalised, then erased.
    """
    rest, pixels = _cut(plan, image)
    parts = list(_parts(rest, pixels))
    last = parts.pop() if parts and isinstance(parts[-1], Run) and out.flags.c_contiguous else None
    for part in parts:
        pixels = _part(part, pixels)
    if isinstance(last, Run):
        _run(last, pixels, out, values)
    elif values is None:
        out[...] = pixels
    else:
        _look_up(pixels, values, out)
    if values is not None:
        erase(out, plan)


def _cut(plan: Plan, image: Source) -> tuple[Plan, Bytes]:
    """Cut a Pillow image's first crop before the copy to an array: a small one of a large image then costs little."""
    if isinstance(image, Image.Image) and plan and isinstance(plan[0], steps.Crop):
        crop = plan[0]
        image = _readable(image).crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
        plan = (replace(crop, top=0, left=0), *plan[1:])
    return plan, as_array(image)


def _parts(plan: Plan, pixels: Bytes) -> Iterable[Part]:
    """The steps of a plan, gathered into runs where the kernels are there."""
    height, width, channels = pixels.shape
    return divided(plan, (height, width), channels) if native.available() else plan


def _part(part: Part, pixels: Bytes) -> Bytes:
    if not isinstance(part, Run):
        return _step(part, pixels)
    made = np.empty((*part.size, pixels.shape[2]), np.uint8)
    _run(part, pixels, made)
    return made


def _run(run: Run, pixels: Bytes, out: NDArray[Any], values: Float | None = None) -> None:
    if (out.shape[:2] if values is None else out.shape[1:]) != run.size:
        raise ValueError(f"a view of {run.size} pixels cannot be written to {out.shape}")
    top, left, height, width = run.box
    box = pixels[top : top + height, left : left + width]
    native.view(box, run.bicubic, run.operations, run.mirrored, out, values)


def shape(image: Source) -> tuple[Pair, int]:
    """Return ((height, width), channels) of an image as `as_array` gives it."""
    if isinstance(image, Image.Image):
        return (image.height, image.width), {"L": 1, "RGBA": 4}.get(image.mode, 3)
    return (image.shape[0], image.shape[1]), image.shape[2] if image.ndim == 3 else 1


def as_array(image: Source) -> Bytes:
    """Return uint8 (H, W, C) of a Pillow image or array; modes other than L, RGB and RGBA become RGB."""
    if isinstance(image, Image.Image):
        image = np.asarray(_readable(image))
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UserError(
            f"An image must be uint8 (height, width, channels), not {image.dtype} {image.shape}; convert it."
        )
    return image[..., None] if image.ndim == 2 else image


def _readable(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")


def _step(step: Step, image: Bytes) -> Bytes:
    """One step of any kind on (H, W, C)."""
    match step:
        case steps.Crop(top, left, height, width, size, interpolation):
            return geometry.resize(geometry.window(image, top, left, height, width), size, interpolation)
        case steps.Resize(size, interpolation):
            return geometry.resize(image, size, interpolation)
        case steps.Window(top, left, height, width):
            return geometry.window(image, top, left, height, width)
        case steps.Mirror():
            return geometry.mirror(image)
        case steps.Rotate(degrees, fill, interpolation):
            return geometry.rotate(image, degrees, fill, interpolation)
        case steps.Shear(across, down, fill, interpolation):
            return geometry.affine(image, (1, across, 0, down, 1, 0), fill, interpolation)
        case steps.Translate(across, down, fill, interpolation):
            return geometry.affine(image, (1, 0, across, 0, 1, down), fill, interpolation)
        case steps.Blur(sigma):
            return geometry.blur(image, sigma)
        case steps.Erase():
            return image
    colour.check_channels(image.shape[2], type(step).__name__)
    return _colour_step(step, image)


def _colour_step(step: Step, image: Bytes) -> Bytes:
    match step:
        case steps.Brightness(factor):
            return colour.brightness(image, factor)
        case steps.Contrast(factor):
            return colour.contrast(image, factor)
        case steps.Saturation(factor):
            return colour.saturation(image, factor)
        case steps.Sharpness(factor):
            return colour.sharpness(image, factor)
        case steps.Hue(factor):
            return colour.hue(image, factor)
        case steps.Gray():
            return colour.gray(image)
        case steps.Invert(threshold):
            return colour.invert(image, threshold)
        case steps.Add(amount, threshold):
            return colour.add(image, amount, threshold)
        case steps.Posterize(bits):
            return colour.posterize(image, bits)
        case steps.AutoContrast():
            return colour.auto_contrast(image)
        case steps.Equalize():
            return colour.equalize(image)
    raise UserError(f"A plan has a step that no one knows: {step!r}. See core/augment/steps.py for all.")


# ---------------------------------------------------------------- to the model
def normalise(images: Bytes, mean: tuple[float, ...], std: tuple[float, ...], out: Float | None = None) -> Float:
    """uint8 (H, W, C) to float32 (C, H, W), or (N, H, W, C) to (N, C, H, W): (x / 255 - mean) / std.

    `out` may be a place in a larger batch. One mean serves any number of channels.
    """
    channels = images.shape[-1]
    values = table(mean, std, channels)
    if out is None:
        out = np.empty((*images.shape[:-3], channels, *images.shape[-3:-1]), np.float32)
    for image, target in zip(images, out, strict=True) if images.ndim == 4 else ((images, out),):
        _look_up(image, values, target)
    return out


def _look_up(image: Bytes, values: Float, out: Float) -> None:
    """out (C, H, W) = values (C, 256) at image (H, W, C)."""
    same = out.shape == (image.shape[2], *image.shape[:2])  # to any other size the kernels would resize
    if native.available() and out.flags.c_contiguous and same:
        native.view(image, False, (), False, out, values)
        return
    for channel in range(image.shape[2]):
        np.take(values[channel], image[..., channel], out=out[channel])


def table(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> Float:
    """(channels, 256): what `normalise` makes of each byte, so that it can be done elsewhere with the same bits."""
    values = _normalised_bytes(tuple(mean), tuple(std))
    if len(values) == 1:
        values = np.repeat(values, channels, axis=0)
    if len(values) != channels:
        raise UserError(
            f"The recipe normalises {len(values)} channels, but the image has {channels}; set mean and std."
        )
    return values


def to_bytes(images: NDArray[np.floating], mean: tuple[float, ...], std: tuple[float, ...]) -> Bytes:
    """The inverse of `normalise` for (N, C, H, W): uint8 (N, H, W, C), cut at 0 and 255."""
    rows = np.moveaxis(np.asarray(images, np.float64), 1, 3) * np.asarray(std) + np.asarray(mean)
    return np.asarray(np.clip(np.rint(255 * rows), 0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=16)
def _normalised_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> Float:
    """(channels, 256): what each byte becomes, with the roundings of torchvision's ToTensor and Normalize."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    return (scaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def erase(image: Float, plan: Plan) -> Float:
    """Fill the boxes of the plan's Erase steps in a normalised image (C, H, W) with normal noise, in place."""
    for step in plan:
        if isinstance(step, steps.Erase):
            shape = (image.shape[0], step.height, step.width)
            noise = rng.generator("erase", step.key).standard_normal(shape, dtype=np.float32)
            image[:, step.top : step.top + step.height, step.left : step.left + step.width] = noise
    return image
