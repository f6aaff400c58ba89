"""Colour pictures that a model of one channel reads as grey are named, of every kind of data; grey ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.data.datasets import open_dataset, remarks
from triport.core.spec import DataSpec

SPEC = DataSpec(name="own")


def pictures(coloured: bool) -> np.ndarray:
    """Ten pictures uint8 (10, 16, 16, 3)."""
    made = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
    return made if coloured else np.repeat(made[..., :1], 3, axis=3)


def stored(folder: Path, kind: str, coloured: bool) -> Path:
    """Write the pictures as a folder of classes of PNG or JPEG files, or as one array."""
    if kind == "npz":
        np.savez(folder / "own.npz", images=pictures(coloured), labels=np.arange(10) % 2)
        return folder / "own.npz"
    for number, pixels in enumerate(pictures(coloured)):
        where = folder / "abc"[number % 2]
        where.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(where / f"{number}.{kind}")
    return folder


@pytest.mark.parametrize("kind", ["png", "jpg", "npz"])
def test_it_is_reported_of_colour_pictures(tmp_path: Path, kind: str) -> None:
    where = str(stored(tmp_path, kind, coloured=True))
    lines = remarks(open_dataset(where, "train", SPEC, 1))
    assert any("are read as grey" in line and "channels=3" in line for line in lines)
    assert not any("grey" in line for line in remarks(open_dataset(where, "train", SPEC, 3)))


@pytest.mark.parametrize("kind", ["png", "jpg", "npz"])
def test_it_is_not_said_of_grey_pictures(tmp_path: Path, kind: str) -> None:
    assert not remarks(open_dataset(str(stored(tmp_path, kind, coloured=False)), "train", SPEC, 1))


def test_it_is_not_said_of_the_shipped_pictures() -> None:
    assert not remarks(open_dataset(None, "test", DataSpec(name="fashion-mnist"), 1))


def test_a_picture_that_cannot_be_read_does_not_hide_it(tmp_path: Path) -> None:
    stored(tmp_path, "png", coloured=True)
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    assert any("read as grey" in line for line in remarks(open_dataset(str(tmp_path), "train", SPEC, 1)))
