"""One image from its bytes: JPEG by simplejpeg or Pillow, 16-bit depths at true scale, arrays and TIFF bands."""

from __future__ import annotations

import functools
import importlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Union

import numpy as np
from PIL import Image, ImageOps

from triport.core.data.sample import npy, tiff, values
from triport.core.data.sample.depth import own_values
from triport.core.data.sample.signatures import what_it_is
from triport.core.errors import UserError
from triport.core.reading import MAX_PIXELS

Source = Union[Image.Image, np.ndarray]
_UNREADABLE = (
    OSError,  # truncated, unknown format, gone, unreadable
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    EOFError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    UserError,  # of an array that does not fit
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class BrokenImage(Exception):
    """An image that cannot be read. The loader counts these and puts another in its place."""

    pixels = 0
    channels = 0  # its own, where they are not the model's

    def __init__(self, text: str) -> None:
        super().__init__("\\n".join(text.splitlines()))  # a file's name may have several lines


class LargeImage(BrokenImage):
    """An image of more pixels than are allowed; counted apart, since --max-pixels lets it in."""

    def __init__(self, text: str, pixels: int) -> None:
        super().__init__(text)
        self.pixels = pixels

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.pixels)


@dataclass(frozen=True)
class Decoding:
    """How images become uint8 with the model's channels."""

    channels: int
    max_pixels: int = MAX_PIXELS
    exif: bool = False  # orient pictures as their EXIF orientation says; torchvision does not
    value_range: tuple[float, float] | None = None  # of more than 8 bits: what becomes 0 and what 255


def decode(data: bytes, where: str, decoding: Decoding) -> Source:
    """Return the image in `data`: mode RGB for 3 channels or L for 1, or uint8 (height, width, channels).

    `where` names it in errors. BrokenImage says why it cannot be read, LargeImage that it has too many pixels.
    16-bit grey and colour are divided by 257 and rounded to the nearest; integers of 32 bits and floats need
    `decoding.value_range`. A picture of several frames is read as its first, a TIFF of several pages only where the
    pages are the model's channels.
    """
    try:
        if not data:
            raise BrokenImage(f"{where}: the file is empty")
        if data[:6] == npy.MAGIC:
            return _array(data, where, decoding)
        if data[:3] == b"\xff\xd8\xff" and not decoding.exif and decoding.channels in (1, 3):
            image = _jpeg(data, where, decoding)
            if image is not None:
                return image
        return _through_pillow(data, where, decoding)
    except _UNREADABLE as error:
        if isinstance(error, Image.UnidentifiedImageError):
            known = what_it_is(data)
            raise BrokenImage(f"{where}: not an image{known and f', it is {known}'}") from None
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = " ".join(why.split()) or type(error).__name__
        broken = BrokenImage(why if why.startswith(where) else f"{where}: {why}")
        broken.channels = getattr(error, "channels", 0)
        raise broken from None


def quiet_pillow() -> None:
    """Leave out Pillow's warnings of palettes, EXIF and bombs, which would stand in the middle of the progress."""
    warnings.filterwarnings("ignore", module=r"PIL\..*")


def _check_size(width: int, height: int, where: str, decoding: Decoding) -> None:
    if width * height > decoding.max_pixels:
        raise LargeImage(
            f"{where}: {width} x {height} pixels are more than {decoding.max_pixels}; --max-pixels N lets it in",
            width * height,
        )


# ---------------------------------------------------------------- JPEG
@functools.lru_cache(maxsize=1)
def simplejpeg() -> ModuleType | None:
    """Return the module where it is installed: the same bits as Pillow in less time."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _jpeg(data: bytes, where: str, decoding: Decoding) -> Source | None:
    """Decode with simplejpeg what it surely decodes as Pillow does; None for all else, also whatever is damaged."""
    module = simplejpeg()
    if module is None:
        return None
    try:
        height, width, space, _ = module.decode_jpeg_header(data, strict=True)
        if space not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_size(width, height, where, decoding)
        own = "GRAY" if space == "Gray" else "RGB"
        if own == "RGB" or decoding.channels == 3:
            pixels = module.decode_jpeg(data, colorspace="RGB", strict=True)
            return Image.fromarray(pixels).convert("L") if decoding.channels == 1 else np.asarray(pixels)
        return np.asarray(module.decode_jpeg(data, colorspace="GRAY", strict=True))
    except (ValueError, RuntimeError, MemoryError):
        return None  # Pillow says what is wrong with it, or reads it all the same


# ---------------------------------------------------------------- Pillow
@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open without Pillow's own limit of pixels: there is one here."""
    with _no_limit, Image.open(io.BytesIO(data)) as image:
        yield image


class _NoLimit:
    """Pillow's limit is one for all threads: the first to come takes it away, the last to go puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


_no_limit = _NoLimit()


def _through_pillow(data: bytes, where: str, decoding: Decoding) -> Source:
    try:
        with _opened(data) as image:
            _check_size(image.width, image.height, where, decoding)
            if image.format == "TIFF" and tiff.needs_tifffile(image, decoding.channels):
                return _tiff(data, where, decoding)
            return _converted(image, data, where, decoding)
    except Image.UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # bands or depths that Pillow does not know
            return _tiff(data, where, decoding)
        raise


def _converted(image: Image.Image, data: bytes, where: str, decoding: Decoding) -> Source:
    deep = own_values(image, data, decoding.value_range is not None)
    image.load()  # here and not in a copy: an RGB picture is used as it is
    if deep is not None:
        pixels = values.to_bytes(deep, decoding.value_range, where)
        if decoding.exif:
            pixels = values.upright(pixels, image.getexif().get(274, 1))
        if decoding.channels in (1, 3) and pixels.ndim == 3:
            if image.mode == "CMYK":
                pixels = np.asarray(Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))
            elif pixels.shape[2] in (2, 4):  # transparency is dropped, as that of 8 bits
                pixels = pixels[..., :-1]
        return _with_channels(pixels, where, decoding.channels)
    if decoding.exif:
        image = ImageOps.exif_transpose(image)
    if decoding.channels not in (1, 3):
        bands = np.asarray(image if image.mode in ("L", "RGB", "RGBA", "LA", "CMYK") else image.convert("RGB"))
        return _with_channels(bands, where, decoding.channels)
    wanted = "RGB" if decoding.channels == 3 else "L"
    if image.mode == wanted:
        return image
    image.info.pop("transparency", None)  # it is not used, and Pillow would warn of it
    return (image.convert("RGB") if image.mode == "LAB" else image).convert(wanted)


def _with_channels(pixels: np.ndarray, where: str, channels: int) -> Source:
    """Return one image's bytes with the model's channels, as (height, width, channels)."""
    return values.with_channels(values.channels_last(pixels, channels, where), channels)


def _array(data: bytes, where: str, decoding: Decoding) -> Source:
    pixels = npy.from_bytes(data, where)
    if pixels.ndim not in (2, 3):
        raise BrokenImage(f"{where}: an image has 2 or 3 dimensions, not {pixels.ndim}")
    last = values.channels_last(pixels, decoding.channels, where)
    if not last.size:
        raise BrokenImage(f"{where}: the array has no pixel")
    _check_size(last.shape[1], last.shape[0], where, decoding)
    return values.with_channels(values.to_bytes(last, decoding.value_range, where), decoding.channels)


def _tiff(data: bytes, where: str, decoding: Decoding) -> Source:
    """Read a TIFF's first series with tifffile: one page with bands, or pages that are the model's channels."""
    with tiff.opened(data, where, "a TIFF of several pages, bands or 16-bit colours") as file:
        whole = tiff.shape_of(file, decoding.channels)
        shape = tuple(size for size in whole if size != 1) if len(whole) > 3 else whole
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise BrokenImage(f"{where}: a TIFF of shape {'x'.join(map(str, shape))} is not one image")
        axis = values.channel_axis(shape, decoding.channels, where)
        height, width = (shape[:2], shape[:2], shape[1:])[(None, 2, 0).index(axis)]
        _check_size(width, height, where, decoding)
        pixels = tiff.pixels_of(file, decoding.channels, where).reshape(shape)
        turned = tiff.orientation(file)
    last = values.upright(values.channels_last(pixels, decoding.channels, where), turned)  # always, as Pillow does
    return values.with_channels(values.to_bytes(last, decoding.value_range, where), decoding.channels)
