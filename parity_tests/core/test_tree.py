"""core.data.readers.tree and splits: no picture is lost without a word, none is read twice or for another split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.data.datasets import kind_of, open_dataset
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.spec import DataSpec


def tree(root: Path, *names: str) -> None:
    """Write a small picture at each path."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16).save(path, "PNG")


def opened(where: Path, split: str = "train") -> Samples:
    return open_dataset(str(where), split, DataSpec(name="own"), 1)  # type: ignore[arg-type]


def names(data: Samples, root: Path) -> list[str]:
    return [Path(data.where(index)).relative_to(root).as_posix() for index in range(len(data))]


def test_hidden_pictures_and_class_folders_are_named(tmp_path: Path):
    tree(tmp_path, "a/1.png", "a/.2.png", "b/3.png", ".cats/4.png", "a/._1.png", ".ipynb_checkpoints/1.png")
    data = opened(tmp_path)
    assert len(data) == 2
    assert data.remarks == ("2 hidden pictures or folders left out, first '.cats': its name begins with a dot",)


@pytest.mark.parametrize("place", ["train/a/loop", "train/loop", "train/a/b/loop"])
def test_links_to_any_folder_above_are_cut(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    tree(tmp_path / "own", "train/a/1.png", "train/b/2.png", "train/a/b/3.png", "val/a/4.png")
    (tmp_path / "own" / place).symlink_to(tmp_path / "own", target_is_directory=True)
    for where in (tmp_path / "own", Path("own")):
        monkeypatch.chdir(tmp_path)
        data = opened(where)
        assert len(data) == 3 and data.classes == ["a", "b"]


@pytest.mark.parametrize(
    ("train", "val", "beside"),
    [
        ("train2017", "val2017", "annotations"),
        ("seg_train", "seg_test", "seg_pred"),
        ("Train_Set", "test_set", "docs"),
        ("training-images", "validation-images", "docs"),
        ("trainset", "testset", "docs"),
    ],
)
def test_folders_of_splits_with_more_in_their_names_are_splits(tmp_path: Path, train: str, val: str, beside: str):
    tree(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{val}/a/3.png", f"{beside}/c/4.png")
    if (train, val) == ("training-images", "validation-images"):
        assert kind_of(str(tmp_path)) == "folder"
    data = opened(tmp_path)
    assert names(data, tmp_path / train) == ["a/1.png", "b/2.png"] and data.classes == ["a", "b"]
    assert names(opened(tmp_path, "val"), tmp_path / val) == ["a/3.png"]
    assert any(f"left out: {beside} in" in remark for remark in data.remarks)


@pytest.mark.parametrize(
    "classes", [("bullet_train", "steam_train"), ("train", "car"), ("trainer", "tester"), ("bullet_train", "car_test")]
)
def test_classes_that_are_called_like_splits_stay_classes(tmp_path: Path, classes: tuple[str, str]):
    tree(tmp_path, *(f"{name}/1.png" for name in classes))
    assert opened(tmp_path).classes == sorted(classes)


def test_a_folder_that_only_wraps_the_data_is_seen_through(tmp_path: Path):
    tree(tmp_path / "one", "data/train/a/1.png", "data/train/b/2.png", "data/val/a/3.png")
    assert opened(tmp_path / "one").classes == ["a", "b"] and len(opened(tmp_path / "one", "val")) == 1
    tree(tmp_path / "boxes", "images/train/1.png", "images/val/2.png")
    (tmp_path / "boxes/labels/train").mkdir(parents=True)
    assert len(opened(tmp_path / "boxes")) == 1


def test_one_class_of_several_folders_is_named_with_the_path_to_give(tmp_path: Path):
    tree(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
    (remark,) = opened(tmp_path).remarks
    assert "one class, 'photos'" in remark and "cat, dog" in remark and f"give '{tmp_path / 'photos'}'" in remark
    assert opened(tmp_path / "photos").classes == ["cat", "dog"]


@pytest.mark.parametrize(("place", "told"), [("", "but 2 .avif; convert them"), ("a", r"2 files left out: .*2 \.avif")])
def test_a_folder_without_an_image_is_told_with_what_it_holds(tmp_path: Path, place: str, told: str):
    (tmp_path / place).mkdir(exist_ok=True)
    for number in (1, 2):
        (tmp_path / place / f"{number}.avif").write_bytes(b"x")
    with pytest.raises(UserError, match=told):
        opened(tmp_path)
