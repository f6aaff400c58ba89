"""Data of which no image can be read is refused in one line with the reason, before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.data.datasets import check_readable, open_dataset
from triport.core.errors import UserError
from triport.core.run.images import open_splits
from triport.core.spec import DataSpec, recipe


def pictures(folder: Path, readable: int, broken: int) -> None:
    """Float pictures, which have no scale of their own, and others."""
    folder.mkdir(parents=True)
    for number in range(broken):
        Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / f"a{number:03}.tif")
    for number in range(readable):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"b{number:03}.png")


@pytest.mark.parametrize("count", [1, 6, 40])
def test_images_that_none_can_read_are_refused_with_the_remedy(tmp_path: Path, count: int):
    pictures(tmp_path / "train/a", 0, count)
    chosen = recipe.load("tiny/test_moco_vit")
    with pytest.raises(UserError, match=r"none can be read, the first: .*a000\.tif: float32 .*--value-range LO HI"):
        open_splits(str(tmp_path), chosen)
    assert len(open_splits(str(tmp_path), chosen, value_range=(0, 1)).train) == count


def test_held_out_images_that_none_can_read_stop_no_pretraining(tmp_path: Path):
    pictures(tmp_path / "train/a", 2, 0)
    pictures(tmp_path / "val/a", 0, 2)
    splits = open_splits(str(tmp_path), recipe.load("tiny/test_moco_vit"))
    assert splits.test is None and "none can be read" in splits.remark


def test_one_image_that_can_be_read_is_enough(tmp_path: Path):
    pictures(tmp_path / "x", 1, 9)
    check_readable(open_dataset(str(tmp_path / "x"), "train", DataSpec(name="own"), 1))
