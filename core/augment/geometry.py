"""Steps that move or average pixels, for any number of channels: resize, window, mirror, rotate, shear, blur.

They say what the kernels do faster. Each gives what Pillow gives. Other channel counts than 1 and 3 go through Pillow
one channel at a time, since its own modes with four channels treat the last one as transparency.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from triport.core.augment.steps import Fill
from triport.core.spec import Interpolation, Pair

Bytes = NDArray[np.uint8]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def through_pillow(image: Bytes, change: Callable[[Image.Image], Image.Image]) -> Bytes:
    """Apply `change` to (H, W, 3) as a picture of mode RGB, or to each channel alone where there are not three."""
    if image.shape[2] == 3:
        return np.asarray(change(Image.fromarray(np.ascontiguousarray(image))))
    parts = [change(Image.fromarray(np.ascontiguousarray(image[..., c]))) for c in range(image.shape[2])]
    return np.stack([np.asarray(part) for part in parts], axis=-1)


def resize(image: Bytes, size: Pair, interpolation: Interpolation) -> Bytes:
    """Antialiased resize to (height, width).

    Rows and columns take a pass each with bytes in between, so the order counts. It is that of Pillow 13 (columns
    first where the height shrinks by more than twice what the width does), with older versions of Pillow too.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width = image.shape[:2]
    down_first = height > size[0] and height - size[0] > 2 * (width - size[1])
    half = (width, size[0]) if down_first else (size[1], height)

    def two_passes(picture: Image.Image) -> Image.Image:
        return picture.resize(half, FILTERS[interpolation]).resize((size[1], size[0]), FILTERS[interpolation])

    return through_pillow(image, two_passes)


def window(image: Bytes, top: int, left: int, height: int, width: int) -> Bytes:
    """Cut out the box; what reaches over the border is 0."""
    bottom, right = top + height, left + width
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.shape[:2] == (height, width):
        return inside
    out = np.zeros((height, width, image.shape[2]), np.uint8)
    row, column = max(-top, 0), max(-left, 0)
    out[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return out


def mirror(image: Bytes) -> Bytes:
    """Left becomes right."""
    return np.ascontiguousarray(image[:, ::-1])


def affine(image: Bytes, matrix: tuple[float, ...], fill: Fill, interpolation: Interpolation) -> Bytes:
    """Pixel (x, y) of the result comes from (a x + b y + c, d x + e y + f), matrix = (a, b, c, d, e, f)."""
    return _filled(
        image,
        fill,
        lambda picture, colour: picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, FILTERS[interpolation], fillcolor=colour
        ),
    )


def rotate(image: Bytes, degrees: float, fill: Fill, interpolation: Interpolation) -> Bytes:
    """Counter-clockwise about the centre."""
    return _filled(
        image, fill, lambda picture, colour: picture.rotate(degrees, FILTERS[interpolation], fillcolor=colour)
    )


Colour = int | tuple[int, ...]


def _filled(image: Bytes, fill: Fill, change: Callable[[Image.Image, Colour], Image.Image]) -> Bytes:
    channels = image.shape[2]
    if len(fill) != channels:  # a fill made for other channels: its mean for each
        fill = (round(sum(fill) / len(fill)),) * channels
    if channels == 3:
        return through_pillow(image, lambda picture: change(picture, fill))
    parts = [change(Image.fromarray(np.ascontiguousarray(image[..., c])), fill[c]) for c in range(channels)]
    return np.stack([np.asarray(part) for part in parts], axis=-1)


def blur(image: Bytes, sigma: float) -> Bytes:
    """Pillow's GaussianBlur(sigma): three box filters along each axis, edges repeated."""
    if sigma <= 0:
        return image
    return through_pillow(image, lambda picture: picture.filter(ImageFilter.GaussianBlur(sigma)))


def box_weights(sigma: float) -> tuple[int, int, int]:
    """Radius of the box whose third power is near a Gaussian of `sigma`, and its weights inside and just outside.

    Gwosdek et al. 2011, equations 7, 11 and 14; weights are parts of 2^24. Single precision, as in Pillow.
    """
    single = np.float32
    variance = float(single(single(sigma) * single(sigma)) / single(3))
    length = float(single(np.sqrt(12.0 * variance + 1.0)))
    inner = float(np.floor((length - 1.0) / 2.0))
    rest = single((2 * inner + 1) * (inner * (inner + 1) - 3 * variance))
    rest = single(float(rest) / (6 * (variance - (inner + 1) * (inner + 1))))
    full = single(inner) + rest
    radius = int(full)
    whole = int(single(1 << 24) / single(full * single(2) + single(1)))
    return radius, whole, ((1 << 24) - (2 * radius + 1) * whole) // 2
