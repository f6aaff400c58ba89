"""core.data.readers.shards: of samples with several images the picture itself is read, and the others are named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from triport.core.data.datasets import open_dataset, remarks
from triport.core.data.sample.samples import Samples
from triport.core.spec import DataSpec
from triport.parity_tests.fixtures.pictures import saved


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the index away from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shard(path: Path, *names: str) -> Samples:
    """A shard of members; an image's grey is 10 times its place."""
    with tarfile.open(path, "w") as file:
        for place, name in enumerate(names):
            image = name.endswith(("png", "jpg"))
            data = saved(np.full((4, 4), 10 * place, np.uint8), "PNG") if image else b"1"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return open_dataset(str(path), "train", DataSpec(name="own"), 1)


def test_a_plain_ending_comes_before_depths_and_masks(tmp_path: Path):
    data = shard(tmp_path / "x.tar", "1.cls", "1.depth.png", "1.jpg", "2.jpg", "2.mask.png", "2.cls")
    assert [int(np.asarray(data.image(index)).max()) for index in range(2)] == [20, 30]
    assert any("2 further images of samples left out, first 'x.tar: 1.depth.png'" in line for line in remarks(data))


def test_pictures_with_dots_in_their_names_are_not_lost_without_a_word(tmp_path: Path):
    data = shard(tmp_path / "x.tar", "a/img.v1.jpg", "a/img.v2.jpg", "a/img.v3.jpg")
    assert len(data) == 1
    assert any("2 further images" in line and "a/img.v2.jpg" in line for line in remarks(data))


def test_nothing_is_said_where_each_sample_has_one_image(tmp_path: Path):
    assert not shard(tmp_path / "x.tar", "1.cls", "1.jpg", "20.jpg", "20.cls").remarks
