"""Fingerprints of data sets: equal wherever the data lies, another one for other samples, for every kind of source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from triport.core.data import fingerprint as prints
from triport.core.data.datasets import open_dataset
from triport.core.spec import DataSpec
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.sources import colour, encoded, parquet, samples, shard, tree
from triport.parity_tests.fixtures.toy import failed, go

FIVE = list(range(1, 6))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def now(path: Path) -> str:
    return prints.fingerprint(open_dataset(str(path), "train", DataSpec(name="mine"), 3))


def folder(root: Path) -> Path:
    return tree(root, *(f"{n % 2}/{n}.png" for n in FIVE))


def listed(root: Path) -> Path:
    folder(root)
    (root / "train_list.txt").write_text("".join(f"{n % 2}/{n}.png {n % 2}\n" for n in FIVE))
    return root


def mapped(root: Path) -> Path:
    root.mkdir(parents=True)
    np.save(root / "train_images.npy", np.stack([colour(n) for n in FIVE]))
    np.save(root / "train_labels.npy", np.arange(5) % 2)
    return root


def files_of_arrays(root: Path) -> Path:
    for n in FIVE:
        (root / str(n % 2)).mkdir(parents=True, exist_ok=True)
        np.save(root / str(n % 2) / f"{n}.npy", colour(n))
    return root


def shards(root: Path) -> Path:
    for part in range(2):
        shard(root / f"train-{part}.tar", samples(part * 4 + 1, part * 4 + 5))
    return root


def tables(root: Path) -> Path:
    for part in range(2):
        parquet(root / f"train-{part}.parquet", list(range(part * 4, part * 4 + 4)), group=3)
    return root


def changed(path: Path, old: object, new: object) -> None:
    """Write an array again with a value in the place of another."""
    array = np.load(path)
    array[array == old] = new
    np.save(path, array)


CASES: dict[str, tuple[Callable[[Path], Path], dict[str, Callable[[Path], object]]]] = {
    "folder": (
        folder,
        {
            "a name": lambda root: (root / "1/1.png").rename(root / "1/7.png"),
            "a size": lambda root: (root / "1/1.png").write_bytes(encoded(colour(1)) + b"more"),
            "a class": lambda root: (root / "1").rename(root / "2"),
            "a file less": lambda root: (root / "1/1.png").unlink(),
        },
    ),
    "list": (
        listed,
        {"a label": lambda root: (root / "train_list.txt").write_text("".join(f"{n % 2}/{n}.png 1\n" for n in FIVE))},
    ),
    "npy": (
        mapped,
        {
            "a pixel": lambda root: changed(root / "train_images.npy", 5, 6),
            "a label": lambda root: np.save(root / "train_labels.npy", np.array([0, 1, 1, 1, 0])),
            "the number type": lambda root: np.save(
                root / "train_images.npy", np.load(root / "train_images.npy").astype(np.uint16)
            ),
        },
    ),
    "folder of npy": (
        files_of_arrays,
        {
            "a name": lambda root: (root / "1/1.npy").rename(root / "1/7.npy"),
            "a size": lambda root: np.save(root / "1/1.npy", colour(1, height=9)),
        },
    ),
    "shards": (
        shards,
        {
            "a size": lambda root: shard(
                root / "train-1.tar", [(n, c + b"more" if n == "00005.png" else c) for n, c in samples(5, 9)]
            ),
            "a label": lambda root: shard(
                root / "train-1.tar", [(n, b"0" if n == "00005.cls" else c) for n, c in samples(5, 9)]
            ),
            "an order": lambda root: shard(root / "train-1.tar", samples(7, 9) + samples(5, 7)),
            "a name": lambda root: (root / "train-1.tar").rename(root / "train-2.tar"),
        },
    ),
    "parquet": (
        tables,
        {
            "other images": lambda root: parquet(
                root / "train-1.parquet", [4, 5, 6, 7], group=3, label=[1, 2, 0, 1], more=["x" * 99] * 4
            ),
            "other groups": lambda root: parquet(root / "train-1.parquet", [4, 5, 6, 7], group=2),
            "a label": lambda root: parquet(root / "train-1.parquet", [4, 5, 6, 7], group=3, label=[1, 2, 0, 0]),
            "a name": lambda root: (root / "train-1.parquet").rename(root / "train-2.parquet"),
        },
    ),
}


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, (_, changes) in CASES.items() for what in changes])
def test_other_samples_have_another_fingerprint_and_a_copy_the_same(tmp_path, kind, what):
    make, changes = CASES[kind]
    root = make(tmp_path / "data")
    before = now(root)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert now(tmp_path / "elsewhere") == before
    changes[what](root)
    assert now(root) != before


def test_sizes_are_looked_at_evenly_where_there_are_very_many_files(tmp_path, monkeypatch):
    root = tree(tmp_path, *(f"a/{n:02d}.png" for n in range(40)), "b/0.png")
    monkeypatch.setattr(prints, "SIZES", 5)
    looked: list[str] = []

    def size(path: str) -> int:
        looked.append(path)
        return 7

    monkeypatch.setattr(prints, "_size", size)
    now(root)
    assert [Path(path).name for path in looked] == ["00.png", "10.png", "20.png", "30.png", "0.png"]


def test_pixels_of_a_mapped_array_are_looked_at_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(prints, "ROWS", 3)
    np.save(tmp_path / "x.npy", np.zeros((101, 6, 8, 3), np.uint8))
    before = now(tmp_path / "x.npy")
    for row, seen in ((0, True), (50, True), (100, True), (1, False)):
        images = np.zeros((101, 6, 8, 3), np.uint8)
        images[row, 2, 3, 1] = 1
        np.save(tmp_path / "x.npy", images)
        assert (now(tmp_path / "x.npy") != before) is seen, row


def test_a_run_on_shards_does_not_go_on_with_others(tmp_path, capsys):
    data = tmp_path / "shards"
    for split, count in (("train", 80), ("test", 16)):
        shard(data / f"{split}.tar", samples(0, count))
    assert go("mae", tmp_path / "run", "--stop-after-steps", "3", data=data) == 0
    shard(data / "train.tar", samples(1, 81))
    capsys.readouterr()
    line = failed(capsys, go("mae", tmp_path / "run", "--resume", data=data))
    assert "has other images than the run was trained on" in line and "--data-changed" in line
    assert go("mae", tmp_path / "run", "--resume", "--data-changed", data=data) == 0
    assert toy.last(tmp_path / "run")[1]["step"] == 5 * toy.EPOCHS
