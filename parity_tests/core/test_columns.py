"""core.data.readers.columns: columns of lists are found by their names, never guessed; wrong paths have a remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.data.datasets import open_dataset, remarks
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.spec import DataSpec

NAMES = ["im 0.png", "im 1.png", "c, d.png", "im 3.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, each of its number's grey."""
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 4), 60 * number, np.uint8)).save(tmp_path / name)
    return tmp_path


def opened(folder: Path, lines: list[str], split: str = "train") -> Samples:
    (folder / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return open_dataset(str(folder / "x.csv"), split, DataSpec(name="own"), 1)  # type: ignore[arg-type]


def quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


WORDS = ["cat", "dog", "dog", "cat"]
FORMS = {
    "no names": ("", '"{0}","{1}"'),
    "path first": ("path,label", "{2},{1}"),
    "label first": ("label,path", "{1},{2}"),
    "the index of pandas": (",image_path,category", "7,{2},{1}"),
    "boxes": ("filename,width,height,class,xmin", "{2},48,48,{1},1"),
    "blanks and capitals": ("Image Path,Age,Class Name", "{2},64,{1}"),
    "a name of its own": ("Id,Kind", "{2},{1}"),
    "semicolons": ("label;file", "{1};{0}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_columns_have_the_names_that_people_give_them(folder: Path, form: str):
    head, line = FORMS[form]
    lines = [line.format(name, word, quoted(name)) for name, word in zip(NAMES, WORDS, strict=True)]
    data = opened(folder, [head] * bool(head) + lines)
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1, 0]
    assert [Path(data.where(index)).name for index in range(4)] == NAMES
    many = head.count(",") > 1 and not head.startswith(",")
    assert any("the label of an image is its" in remark for remark in remarks(data)) == many


@pytest.mark.parametrize(
    ("head", "told"),
    [("image,MEL,NV", "has the columns image, MEL, NV"), ("", "3 columns and no line that names them")],
)
def test_a_label_is_never_guessed_among_several_columns(folder: Path, head: str, told: str):
    data = opened(folder, [head] * bool(head) + [f"{quoted(name)},1,0" for name in NAMES])
    assert len(data) == 4 and not data.classes and told in data.fault


def test_a_column_says_which_images_are_of_which_split(folder: Path):
    words = ("train", "Train", "valid", "train")
    rows = [f"{quoted(name)},{word},{label}" for name, word, label in zip(NAMES, words, WORDS, strict=True)]
    train, val = (opened(folder, ["path,split,label", *rows], split) for split in ("train", "val"))
    assert [Path(train.where(index)).name for index in range(len(train))] == [NAMES[0], NAMES[1], NAMES[3]]
    assert train.labels.tolist() == [0, 1, 0] and val.labels.tolist() == [1] and val.classes == ["cat", "dog"]
    with pytest.raises(UserError, match="has no line of the val split"):
        opened(folder, ["path,split,label", *rows[:2]], "val")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("https://example.org/1.png,cat", "nothing is downloaded"),
        ("a\\1.png,cat", "write / for"),
        ("cat,im 0.png", "the path must be the first column"),
    ],
)
def test_a_path_that_is_not_there_comes_with_its_remedy(folder: Path, line: str, remedy: str):
    with pytest.raises(UserError, match=remedy):
        opened(folder, [line])


def test_a_path_without_its_ending_is_told_with_it(folder: Path):
    with pytest.raises(UserError, match=r"with their ending, 'im 0\.png'"):
        opened(folder, ["image_id,label", "im 0,cat"])


def test_text_of_another_coding_is_told_with_its_remedy(folder: Path):
    (folder / "x.csv").write_bytes("path,label\nim 0.png,Bär\n".encode("cp1252"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        open_dataset(str(folder / "x.csv"), "train", DataSpec(name="own"), 1)


def test_lists_of_splits_in_a_folder_are_read_and_other_lists_named(folder: Path):
    (folder / "x").mkdir()
    for name in NAMES[:2]:
        (folder / name).rename(folder / "x" / name)
    (folder / "labels.csv").write_text("path,label\nx/im 0.png,cat\nx/im 1.png,dog\n")
    for where in (folder, folder / "x"):
        told = remarks(open_dataset(str(where), "train", DataSpec(name="own"), 1))
        assert any("not read: '" in line and "labels.csv'" in line for line in told) == (where == folder)
    (folder / "labels.csv").rename(folder / "train.csv")
    (folder / "val.csv").write_text("path,label\nx/im 1.png,dog\n")
    train, val = (open_dataset(str(folder), split, DataSpec(name="own"), 1) for split in ("train", "val"))
    assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1] and val.classes == ["cat", "dog"]
