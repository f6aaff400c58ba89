"""TIFF files of several pages, bands or depths that Pillow does not know, read by tifffile in their own colours."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from triport.core.errors import UserError

# values of PhotometricInterpretation, PlanarConfiguration and ExtraSamples
_WHITE_IS_ZERO, _PALETTE, _PLANES, _ALPHA = 0, 3, 2, (1, 2)


def tifffile(why: str) -> Any:
    """Import the module, or raise UserError that names the extra."""
    try:
        return importlib.import_module("tifffile")
    except ImportError:
        raise UserError(f'{why} needs tifffile: pip install "triport[tiff]"') from None


def needs_tifffile(image: Image.Image, channels: int) -> bool:
    """Say whether Pillow would leave something of a TIFF out: pages, bands, or the lower bytes of planes of 16 bits.

    Pages of another size or mode than the first are no channels: they are a preview or a mask, and left out.
    """
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    planes = getattr(image, "tag_v2", {}).get(284) == _PLANES
    if (planes and max(bits, default=8) > 8) or (channels not in (1, 3) and image.mode not in ("RGBA", "CMYK")):
        return True
    if getattr(image, "n_frames", 1) < 2:
        return False
    first = image.size, image.mode
    image.seek(1)
    alike = first == (image.size, image.mode)
    image.seek(0)
    return alike


@contextmanager
def opened(data: bytes, where: str, what: str) -> Iterator[Any]:
    """Open a TIFF. UserError where tifffile is missing, or cannot read what is asked of the file within."""
    module = tifffile(f"{where}: {what}")
    try:
        with module.TiffFile(io.BytesIO(data)) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # tifffile raises whatever the damage leads to
        why = " ".join(str(error).split()) or type(error).__name__
        if "imagecodecs" in why:
            why = f"its compression needs imagecodecs: pip install imagecodecs, or save it uncompressed ({why})"
        raise UserError(f"{where}: {why}") from None


def alike(file: Any) -> list[Any]:
    """Return the first series, and those like it: pages that were written one by one are a series each."""
    first = file.series[0]
    if not is_one_picture(first):
        return [first]
    return [series for series in file.series if _kind(series) == _kind(first)]


def _kind(series: Any) -> tuple[Any, ...]:
    return series.shape, series.dtype, series.keyframe.photometric


def shape_of(file: Any, channels: int) -> tuple[int, ...]:
    """Return the shape that `pixels_of` gives."""
    parts = alike(file)
    shape = tuple(parts[0].shape)
    shape = (*shape[1:], shape[0]) if _in_planes(parts[0]) else shape
    shape = shape if _opaque(parts[0], channels) is None else (*shape[:-1], shape[-1] - 1)
    return shape if len(parts) == 1 else (len(parts), *shape)


def pixels_of(file: Any, channels: int, where: str) -> np.ndarray:
    """Return the values of the first page and those like it, 0 for black.

    Transparency is left out where the model has 1 or 3 channels.
    """
    parts = [_values(series, channels, where) for series in alike(file)]
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _values(series: Any, channels: int, where: str) -> np.ndarray:
    kind, top = series.keyframe.photometric, (1 << series.keyframe.bitspersample) - 1
    if kind == _PALETTE:
        raise UserError(f"{where}: several pages whose colours are in a palette; save them as RGB")
    pixels: np.ndarray = series.asarray()
    if _in_planes(series):
        pixels = np.moveaxis(pixels, 0, -1)
    if (opaque := _opaque(series, channels)) is not None:
        pixels = pixels[..., opaque]
    if kind == _WHITE_IS_ZERO and pixels.dtype.kind in "bu":
        return ~pixels if pixels.dtype.kind == "b" else (top - pixels).astype(pixels.dtype)
    return pixels


def _opaque(series: Any, channels: int) -> slice | None:
    """Return which of the last axis are colours, None where all are."""
    page = series.keyframe
    extra = tuple(page.extrasamples)
    last = _in_planes(series) or series.shape[-1] == page.samplesperpixel
    if channels in (1, 3) and len(extra) == 1 and extra[0] in _ALPHA and last:
        return slice(0, -1)
    return None


def _in_planes(series: Any) -> bool:
    """Say whether a series is one page whose bands are stored one after another."""
    page = series.keyframe
    return is_one_picture(series) and page.planarconfig == _PLANES and series.shape[0] == page.samplesperpixel > 1


def is_one_picture(series: Any) -> bool:
    """Say whether a series is one page, with or without bands."""
    page = series.keyframe
    return math.prod(series.shape) == page.imagewidth * page.imagelength * page.samplesperpixel


def orientation(file: Any) -> int:
    """Return how the first page is turned, 1 for not at all."""
    tag = file.pages[0].tags.get(274)
    return int(tag.value) if tag is not None else 1
