"""Values of more than 8 bits in pictures that Pillow opens, as the file has them; Pillow alone loses lower bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageFile

# 16 bits a channel: Pillow keeps the upper byte, and takes the lower one where it is told the other byte order
_OTHER = {f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA", "CMYK") for order, other in ("BL", "LB")}
_OTHER |= {f"{mode};16N": f"{mode};16B" for mode in ("RGB", "RGBA", "CMYK") if np.little_endian}
_WHITE_IS_ZERO, _SIGNED = 0, 2  # a TIFF's PhotometricInterpretation and SampleFormat


def own_values(image: Image.Image, data: bytes, scaled: bool) -> np.ndarray | None:
    """Return the numbers of a picture of more than 8 bits, (height, width) or with channels; None of other pictures.

    The picture is not loaded yet and is loaded then. scaled: the numbers as the file has them are wanted, for a value
    range; without, those of a PPM stretch over 16 bits, or are not needed where Pillow brings them to 8.
    """
    if image.format == "PPM" and scaled and (numbers := _netpbm(image, data)) is not None:
        return numbers
    if isinstance(image, ImageFile.ImageFile) and image.format in ("PNG", "TIFF") and image.tile:
        stated: list[Any] = [part[3] for part in image.tile]
        raws = [words if isinstance(words, str) else (words or ("",))[0] for words in stated]
        if raws == ["LA;16B"]:  # the two bytes of grey, the two of alpha
            parts = _again(data, {"LA;16B": "RGBA"}).astype(np.uint16)
            return parts[..., 0::2] << 8 | parts[..., 1::2]
        if all(raw in _OTHER for raw in raws):
            low = _again(data, _OTHER).astype(np.uint16)
            return np.asarray(image).astype(np.uint16) << 8 | low
    tags = getattr(image, "tag_v2", {})
    if image.mode == "L" and tags.get(339, (1,))[0] == _SIGNED:
        return np.asarray(image).view(np.int8)
    if image.mode not in ("F", "I") and not image.mode.startswith("I;"):
        return None
    numbers = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16 bits at most
        numbers = numbers.astype(np.uint16)
        bits = tags.get(258, (16,))[0]
        if tags.get(262) == _WHITE_IS_ZERO:
            numbers = (1 << bits) - 1 - numbers
        if bits < 16 and not scaled:  # 12 bits, packed
            numbers = np.rint(numbers * (65535 / ((1 << bits) - 1))).astype(np.uint16)
        return numbers
    if image.mode == "I" and tags.get(258, (0,))[0] == 32 and tags.get(339, (1,))[0] == 1:
        return numbers.view(np.uint32)
    return numbers


def _again(data: bytes, raws: dict[str, str]) -> np.ndarray:
    """Return the bytes of a picture with other raw modes than Pillow chooses."""
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, ImageFile.ImageFile)

        def other(words: Any) -> Any:
            return raws[words] if isinstance(words, str) else (raws[words[0]], *words[1:])

        image.tile = [type(part)(*part[:3], other(part[3])) for part in image.tile]
        return np.asarray(image)


def _netpbm(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the 16-bit values of a binary or plain PGM or PPM, which Pillow stretches to its own; None of others."""
    assert isinstance(image, ImageFile.ImageFile)
    codec, _, offset, stated = image.tile[0]
    if not codec.startswith("ppm") or not isinstance(stated, tuple) or stated[-1] < 256:
        return None
    count = image.width * image.height * (bands := len(image.getbands()))
    if codec == "ppm":
        numbers = np.frombuffer(data, ">u2", count, offset)
    else:
        words = b" ".join(line.partition(b"#")[0] for line in data[offset:].splitlines()).split()
        numbers = np.array(words[:count], np.uint16)
    return numbers.astype(np.uint16).reshape(image.height, image.width, bands)
