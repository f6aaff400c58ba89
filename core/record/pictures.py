"""Pictures of a run as PNG files: on one sheet, small, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core import atomic

GAP = 4  # pixels between pictures
LARGEST = 300_000  # bytes of a file


def visible(image: np.ndarray) -> np.ndarray:
    """Return uint8 (height, width, 3): grey repeated, of other channel counts the first three, or the first."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def sheet(rows: Sequence[Sequence[np.ndarray]], side: int) -> Image.Image:
    """Return pictures uint8 (height, width, channels) in rows on one white sheet, `side` pixels wide at most."""
    height = sum(max(picture.shape[0] for picture in row) + GAP for row in rows) - GAP
    width = max(sum(picture.shape[1] + GAP for picture in row) for row in rows) - GAP
    whole = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            whole[top : top + picture.shape[0], left : left + picture.shape[1]] = visible(picture)
            left += picture.shape[1] + GAP
        top += max(picture.shape[0] for picture in row) + GAP
    return fitted(Image.fromarray(whole), side)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side is at most `side`; small ones are enlarged by a whole factor."""
    factor = side // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    return picture


def write(path: Path, picture: Image.Image, most: int = LARGEST) -> None:
    """Write a PNG of at most `most` bytes: what is larger is shrunk until it fits. OSError as the system raises it."""
    while len(content := _png(picture)) > most and min(picture.size) > 1:
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replaced(path, durable=False) as part:
        part.write_bytes(content)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
