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
from PIL import Image, ImageFile, ImageOps

from triport.core.data.sample import npy, values
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
# 16 bits a channel: Pillow keeps the upper byte, and takes the lower one where it is told the other byte order
_DEEP = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


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
            raise BrokenImage(f"{where}: not an image") from None
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
            if image.format == "TIFF" and _needs_tifffile(image, decoding):
                return _tiff(data, where, decoding)
            return _converted(image, data, where, decoding)
    except Image.UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # bands or depths that Pillow does not know
            return _tiff(data, where, decoding)
        raise


def _converted(image: Image.Image, data: bytes, where: str, decoding: Decoding) -> Source:
    deep = _deep(image, data)
    image.load()  # here and not in a copy: an RGB picture is used as it is
    if deep is not None:
        upright = _upright(values.to_bytes(deep, decoding.value_range, where), image, decoding)
        return _with_channels(upright, where, decoding.channels)
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        numbers = np.asarray(image)
        if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # these have 16 bits at most
            numbers = numbers.astype(np.uint16)
        upright = _upright(values.to_bytes(numbers, decoding.value_range, where), image, decoding)
        return _with_channels(upright, where, decoding.channels)
    if decoding.exif:
        image = ImageOps.exif_transpose(image)
    if decoding.channels not in (1, 3):
        bands = np.asarray(image if image.mode in ("L", "RGB", "RGBA", "LA", "CMYK") else image.convert("RGB"))
        return _with_channels(bands, where, decoding.channels)
    wanted = "RGB" if decoding.channels == 3 else "L"
    if image.mode == wanted:
        return image
    image.info.pop("transparency", None)  # it is not used, and Pillow would warn of it
    return image.convert(wanted)


def _upright(pixels: np.ndarray, image: Image.Image, decoding: Decoding) -> np.ndarray:
    """The pixels as EXIF says, where that is asked for: rotations and mirrors only move them."""
    if not decoding.exif or image.getexif().get(274, 1) == 1:
        return pixels
    bands = [Image.fromarray(band) for band in np.moveaxis(np.atleast_3d(pixels), 2, 0)]
    for band in bands:
        band.getexif()[274] = image.getexif()[274]
    return np.stack([np.asarray(ImageOps.exif_transpose(band)) for band in bands], axis=-1)


def _deep(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the 16-bit values of a colour PNG, uint16 (height, width, channels); None for other pictures."""
    if not isinstance(image, ImageFile.ImageFile) or image.format != "PNG" or len(image.tile) != 1:
        return None
    raw = image.tile[0][3]
    if not isinstance(raw, str) or raw not in _DEEP:
        return None
    with _opened(data) as again:
        assert isinstance(again, ImageFile.ImageFile)
        again.tile = [type(part)(*part[:3], _DEEP[raw]) for part in again.tile]
        low = np.asarray(again).astype(np.uint16)
    return np.asarray(image).astype(np.uint16) << 8 | low


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


# ---------------------------------------------------------------- TIFF with tifffile
def tifffile(why: str) -> Any:
    """Import the module, or raise UserError that names the extra."""
    try:
        return importlib.import_module("tifffile")
    except ImportError:
        raise UserError(f'{why} needs tifffile: pip install "triport[tiff]"') from None


def _needs_tifffile(image: Image.Image, decoding: Decoding) -> bool:
    """Say whether Pillow would leave something out: pages, bands, or the lower bytes of 16-bit colour."""
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    deep = image.mode in ("RGB", "RGBA", "LA", "CMYK") and max(bits, default=8) > 8
    frames = getattr(image, "n_frames", 1)
    return deep or frames > 1 or (decoding.channels not in (1, 3) and image.mode not in ("RGBA", "CMYK"))


def _tiff(data: bytes, where: str, decoding: Decoding) -> Source:
    """Read a TIFF's first series: one page with bands, or pages that are the model's channels."""
    module = tifffile(f"{where}: a TIFF of several pages, bands or 16-bit colours")
    try:
        with module.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            shape = tuple(size for size in series.shape if size != 1) if len(series.shape) > 3 else series.shape
            if len(shape) not in (2, 3) or min(shape) < 1:
                raise BrokenImage(f"{where}: a TIFF of shape {'x'.join(map(str, shape))} is not one image")
            axis = values.channel_axis(shape, decoding.channels, where)
            height, width = (shape[:2], shape[:2], shape[1:])[(None, 2, 0).index(axis)]
            _check_size(width, height, where, decoding)
            pixels = series.asarray().reshape(shape)
    except (module.TiffFileError, NotImplementedError) as error:
        raise BrokenImage(f"{where}: {' '.join(str(error).split())}") from None
    last = values.channels_last(pixels, decoding.channels, where)
    return values.with_channels(values.to_bytes(last, decoding.value_range, where), decoding.channels)
