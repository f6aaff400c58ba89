"""Arrays of any number type and layout as images: uint8 (height, width, channels) with the model's channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from triport.core.errors import UserError


def to_bytes(array: np.ndarray, value_range: tuple[float, float] | None, where: str) -> np.ndarray:
    """Return uint8 of the same shape.

    uint8 stays as it is, truth values become 0 and 255. Without `value_range` uint16 is divided by 257 and rounded to
    the nearest, and any other type is a UserError. With (lo, hi) every type of more than 8 bits becomes
    255 (x - lo) / (hi - lo), computed in float64, rounded to the nearest (halves to even) and cut to 0..255.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{where}: images cannot be made of {array.dtype}; store uint8, uint16 or floats")
    if value_range is None:
        check_range(array.dtype, value_range, where, array)
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: there are no halves
    low, high = value_range
    scaled = (array.astype(np.float64) - low) * (255.0 / (high - low))
    if np.isnan(scaled).any():
        raise UserError(f"{where}: it has NaN in it; remove the image or fill the gaps")
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def check_range(
    dtype: np.dtype, value_range: tuple[float, float] | None, where: str, array: np.ndarray | None = None
) -> None:
    """Raise UserError where values of this type have no scale of their own and none is given."""
    if value_range is not None or dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize <= 2):
        return
    seen = ""
    if array is not None and array.size and dtype.kind in "iuf":
        known = array[np.isfinite(array)]
        gaps = ", and NaN" if np.isnan(array).any() else ""
        seen = f" (here {known.min():g} to {known.max():g}{gaps})" if known.size else " (here all NaN or infinite)"
    raise UserError(
        f"{where}: {dtype} values have no scale of their own{seen}; --value-range LO HI says which are black and white"
    )


def channel_axis(shape: tuple[int, ...], channels: int, where: str) -> int | None:
    """Return the axis of an image's shape that holds the channels: 0, 2, or None where there is none.

    It is the one with the model's channels; where there is none, and the model takes 1 or 3, the one with 1 or 3.
    UserError where both could be it or neither.
    """
    if len(shape) == 2:
        if channels not in (1, 3):
            raise _mismatch(where, 1, channels)
        return None
    for wanted in ((channels,), (1, 3) if channels in (1, 3) else ()):
        found = [axis for axis in (2, 0) if shape[axis] in wanted]
        if len(found) == 1:
            return found[0]
        if found:
            size = "x".join(map(str, shape))
            raise UserError(
                f"{where}: the channels of a {size} image can be its first axis or its last; "
                "give images with more pixels a side than channels"
            )
    raise _mismatch(where, min(shape[0], shape[2]), channels)  # an image has more pixels a side than channels


class ChannelMismatch(UserError):
    """Images with another number of channels than the model."""

    def __init__(self, text: str, channels: int) -> None:
        super().__init__(text)
        self.channels = channels  # of the images

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.channels)


def _mismatch(where: str, own: int, channels: int) -> ChannelMismatch:
    have = f"{own} channel{'s' * (own != 1)}"
    return ChannelMismatch(
        f"{where}: images have {have}, the model has {channels}; set model.encoder.channels={own}", own
    )


def channels_last(image: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Return an image (h, w), (h, w, c) or (c, h, w) as a view (h, w, c)."""
    axis = channel_axis(image.shape, channels, where)
    if axis is None:
        return image[..., None]
    return np.moveaxis(image, 0, 2) if axis == 0 else image


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 (h, w, channels) of uint8 (h, w, c): grey is repeated for 3 channels, 3 become their luma for 1."""
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (h, w) or (h, w, c) turned and mirrored as a TIFF's or EXIF's orientation of 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        image = np.swapaxes(image, 0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image
