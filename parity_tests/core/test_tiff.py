"""core.data.sample.tiff: previews, masks and odd colours of TIFF files are read as they are meant, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from triport.core.data.datasets import open_dataset, remarks
from triport.core.data.sample.decode import BrokenImage
from triport.core.errors import UserError
from triport.core.spec import DataSpec
from triport.parity_tests.fixtures.pictures import read, saved, tiff

COLOURS = np.random.default_rng(0).integers(0, 256, (18, 26, 3), np.uint8)
SPEC = DataSpec(name="own")


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "L", "1"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_preview_page_changes_nothing(mode, compression):
    image = Image.fromarray(COLOURS).convert(mode)
    more = {"save_all": True, "append_images": [image.resize((9, 6))]}
    both = saved(image, "TIFF", compression=compression, **more)
    assert np.array_equal(read(both), read(saved(image, "TIFF")))


def test_several_pages_with_palettes_are_refused(tmp_path: Path):
    image = Image.fromarray(COLOURS).convert("P")
    image.save(tmp_path / "x.tif", save_all=True, append_images=[image, image])
    with pytest.raises(BrokenImage, match="palette; save them as RGB"):
        read((tmp_path / "x.tif").read_bytes())
    with pytest.raises(UserError, match="palette; save them as RGB"):
        open_dataset(str(tmp_path / "x.tif"), "train", SPEC, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_always_turned_as_it_says_at_every_depth(orientation):
    tag = {"extratags": [(274, 3, 1, orientation, True)]}
    plain = read(tiff(COLOURS, photometric="rgb", **tag))
    deep = COLOURS.astype(np.uint16) * 257
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    for data in (tiff(deep, photometric="rgb", **tag), tiff(deep.transpose(2, 0, 1).copy(), **planes, **tag)):
        for exif in (False, True):
            assert np.array_equal(read(data, exif=exif), plain)


def stack(path: Path, pages: list[np.ndarray], **more: object) -> str:
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, contiguous=False, **more)
    return str(path)


def test_pages_that_were_written_one_by_one_are_one_stack(tmp_path: Path):
    where = stack(tmp_path / "x.tif", [COLOURS[..., band] for band in (0, 1, 2)], photometric="minisblack")
    assert len(open_dataset(where, "train", SPEC, 1)) == 3
    assert np.array_equal(read(Path(where).read_bytes()), COLOURS)


def test_white_may_be_zero_in_stacks(tmp_path: Path):
    where = stack(tmp_path / "x.tif", [255 - COLOURS[..., band] for band in (0, 1, 2)], photometric="miniswhite")
    data = open_dataset(where, "train", SPEC, 1)
    assert np.array_equal(np.asarray(data.image(1))[..., 0], COLOURS[..., 1])
    assert np.array_equal(read(Path(where).read_bytes()), COLOURS)


def test_one_colour_page_is_one_picture_and_pages_of_other_sizes_are_named(tmp_path: Path):
    where = stack(tmp_path / "x.tif", [COLOURS, COLOURS[:9], COLOURS[:9]], photometric="rgb")
    data = open_dataset(where, "train", SPEC, 3)
    assert len(data) == 1 and np.array_equal(np.asarray(data.image(0)), COLOURS)
    assert any("2 pages of" in line and "left out" in line for line in remarks(data))


def test_a_compression_that_is_not_there_is_named_with_the_remedy(tmp_path: Path):
    image = Image.fromarray(COLOURS)
    image.save(tmp_path / "x.tif", save_all=True, append_images=[image], compression="tiff_lzw")
    with pytest.raises(UserError, match="pip install imagecodecs, or save it uncompressed"):
        open_dataset(str(tmp_path / "x.tif"), "train", SPEC, 3)
