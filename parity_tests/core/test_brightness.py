"""Pictures that would be almost black or white are named, of any kind of data, with what shows them; others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.data.datasets import open_dataset, remarks
from triport.core.spec import DataSpec

SPEC = DataSpec(name="own")
RAMP = np.tile(np.linspace(0, 1, 16), (4, 16, 1))


def stored(folder: Path, kind: str, values: np.ndarray) -> str:
    """Write pictures (n, h, w) as files or as one array."""
    if kind == "npy":
        np.save(folder / "own.npy", values)
        return str(folder / "own.npy")
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(folder / f"{number}.{kind}")
    return str(folder)


def lines(where: str, **more: object) -> list[str]:
    return remarks(open_dataset(where, "train", SPEC, 3, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["png", "tif", "npy"])
@pytest.mark.parametrize(("top", "told"), [(4095, 4095), (1500, 2047), (16000, 16383), (255, 255)])
def test_few_of_16_bits_are_named_with_the_range_that_shows_them(tmp_path: Path, kind: str, top: int, told: int):
    where = stored(tmp_path, kind, (RAMP * top).astype(np.uint16))
    assert any("almost black" in line and f"--value-range 0 {told} shows" in line for line in lines(where))
    assert not lines(where, value_range=(0, told))


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_truth_values_are_named(tmp_path: Path, kind: str):
    where = stored(tmp_path, kind, (RAMP > 0.5).astype(np.uint8))
    assert any("almost black" in line and "Store truth values" in line for line in lines(where))


def test_black_pictures_that_are_drawn_in_transparency_are_named(tmp_path: Path):
    for number in range(3):
        alpha = (RAMP[number] * 255).astype(np.uint8)
        Image.fromarray(np.dstack([np.zeros((16, 16, 3), np.uint8), alpha])).save(tmp_path / f"{number}.png")
    assert any("almost black" in line and "Transparency is dropped" in line for line in lines(str(tmp_path)))


def test_a_range_that_makes_all_white_is_named(tmp_path: Path):
    where = stored(tmp_path, "npy", (100 + RAMP * 155).astype(np.float32))
    assert any("almost white" in line and "than 0 1 may" in line for line in lines(where, value_range=(0, 1)))
    assert not lines(where, value_range=(0, 255))


@pytest.mark.parametrize("values", [(RAMP * 65535).astype(np.uint16), (RAMP * 255).astype(np.uint8)])
def test_pictures_with_dark_and_bright_pixels_are_not_named(tmp_path: Path, values: np.ndarray):
    values[1:3] = 0  # one bright picture is enough
    assert not lines(stored(tmp_path, "png", values))
