"""Steps that change colours, for 1 or 3 channels, as Pillow and torchvision do them to the last bit.

A blend moves a pixel from a grey (factor 0) through itself (factor 1) and beyond, in single precision, cut to a byte.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from triport.core.augment.geometry import through_pillow
from triport.core.errors import UserError

Bytes = NDArray[np.uint8]


def check_channels(channels: int, what: str) -> None:
    """Raise a UserError unless there are 1 or 3 channels."""
    if channels not in (1, 3):
        raise UserError(
            f"{what} is a colour operation for 1 or 3 channels, but the image has {channels}; "
            "leave it out of the recipe's views."
        )


def brightness(image: Bytes, factor: float) -> Bytes:
    """Blend with black."""
    return through_pillow(image, lambda picture: ImageEnhance.Brightness(picture).enhance(factor))


def contrast(image: Bytes, factor: float) -> Bytes:
    """Blend with the image's mean luma, rounded."""
    return through_pillow(image, lambda picture: ImageEnhance.Contrast(picture).enhance(factor))


def saturation(image: Bytes, factor: float) -> Bytes:
    """Blend with the luma of each pixel; one channel stays as it is."""
    if image.shape[2] == 1:
        return image
    return through_pillow(image, lambda picture: ImageEnhance.Color(picture).enhance(factor))


def gray(image: Bytes) -> Bytes:
    """Every channel becomes the luma."""
    return saturation(image, 0.0)


def hue(image: Bytes, factor: float) -> Bytes:
    """Hue moved by `factor` (-0.5 to 0.5) of the circle through HSV in bytes; one channel stays as it is."""
    if image.shape[2] == 1:
        return image
    # Also for a shift of 0: the way through HSV rounds, and the original goes it too.
    hsv = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
    hsv[..., 0] += np.uint8(hue_shift(factor))
    return np.asarray(Image.frombytes("HSV", (image.shape[1], image.shape[0]), hsv.tobytes()).convert("RGB"))


def hue_shift(factor: float) -> int:
    """Steps of 256 around the circle: towards zero, then around, as torchvision."""
    return int(factor * 255) & 255


def table(image: Bytes, values: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Bytes:
    """Each byte replaced by `values` of it."""
    return values(np.arange(256)).astype(np.uint8)[image]


def invert(image: Bytes, threshold: int) -> Bytes:
    """Values from `threshold` on become 255 minus themselves."""
    return np.where(image < threshold, image, 255 - image) if threshold > 0 else 255 - image


def add(image: Bytes, amount: int, threshold: int) -> Bytes:
    """Values under `threshold` grow by `amount`, up to 255."""
    return table(image, lambda x: np.where(x < threshold, np.minimum(x + amount, 255), x))


def posterize(image: Bytes, bits: int) -> Bytes:
    """Only the highest `bits` bits stay."""
    return image & np.uint8(256 - 2 ** (8 - bits)) if bits > 0 else np.zeros_like(image)


def auto_contrast(image: Bytes) -> Bytes:
    """Each channel is stretched to 0..255."""
    return through_pillow(image, ImageOps.autocontrast)


def equalize(image: Bytes) -> Bytes:
    """Each channel's histogram becomes flat."""
    return through_pillow(image, ImageOps.equalize)


def sharpness(image: Bytes, factor: float) -> Bytes:
    """Blend with the image smoothed by a 3 x 3 kernel."""
    return through_pillow(image, lambda picture: ImageEnhance.Sharpness(picture).enhance(factor))
