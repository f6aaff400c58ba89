"""Sources of images as people have them: splits, folders, lists, arrays, archives, shards, parquet."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from triport.core.data import datasets
from triport.core.data.datasets import ArrayDataset, BrokenImage, check_apart, check_labelled, remarks
from triport.core.data.readers import archives, splits
from triport.core.errors import UserError
from triport.core.spec import DataSpec
from triport.parity_tests.fixtures.sources import colour, encoded, parquet, put, samples, shard, tree

ANY = DataSpec(name="x")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def opened(where: object, split: Any = "train", channels: int = 3, **more: Any) -> Any:
    return datasets.open_dataset(str(where), split, ANY, channels, **more)


def first(dataset: Any, index: int = 0) -> int:
    return int(np.asarray(dataset.image(index)).reshape(-1)[0])


def numbers(dataset: Any) -> list[int]:
    return [first(dataset, index) for index in range(len(dataset))]


def labels(dataset: Any) -> list[int]:
    return [dataset.label(index) for index in range(len(dataset))]


def line(function: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- splits
@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Val"), ("training", "validation"), ("Training", "Testing"), ("TRAIN", "TEST"), ("train", "Valid")],
)
def test_splits_in_any_case(tmp_path, train, test):
    tree(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/a/3.png", f"{test}/b/4.png")
    assert numbers(opened(tmp_path)) == [1, 2]
    assert numbers(opened(tmp_path, "val")) == numbers(opened(tmp_path, "test")) == [3, 4]


@pytest.mark.parametrize("middle", ["valid", "val", "Validation"])
def test_with_three_splits_val_is_what_a_run_sees_and_test_only_what_is_asked_for(tmp_path, middle):
    tree(tmp_path, "train/a/1.png", "train/b/2.png", f"{middle}/a/3.png", "test/a/4.png")
    assert [numbers(opened(tmp_path, split)) for split in ("train", "val", "test")] == [[1, 2], [3], [4]]


def test_two_folders_of_one_split_are_refused(tmp_path):
    tree(tmp_path, "train/a/1.png", "val/a/2.png", "valid/a/3.png")
    assert "val and valid both mean the val split" in line(opened, tmp_path, "val")


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, "airplane/1.png", "train/2.png", "truck/3.png")
    assert opened(tmp_path).classes == ["airplane", "train", "truck"]


def test_words_of_file_names():
    for name, split in [
        ("train-00000-of-00005.parquet", "train"),
        ("imagenet1k-validation-03.tar", "val"),
        ("TEST_1.tar", "test"),
        ("shard-1.tar", None),
        ("train-test.tar", None),
        ("training.tar", "train"),
        ("trainer-1.tar", None),
    ]:
        assert splits.word_in(name) == split


# ---------------------------------------------------------------- folders
def test_a_stray_picture_is_left_out_with_a_line_and_class_folders_win(tmp_path):
    tree(tmp_path / "flat", "a/1.png", "b/2.png", "stray.jpg", "other.png", "more.png")
    data = opened(tmp_path / "flat")
    assert data.classes == ["a", "b"] and numbers(data) == [1, 2]
    assert any("3 pictures beside class folders left out" in one and "more.png" in one for one in data.remarks)
    tree(tmp_path / "split", "train/a/1.png", "train/b/2.png", "val/a/3.png", "poster.png", "train/stray.png")
    data = opened(tmp_path / "split")
    assert data.classes == ["a", "b"] and numbers(data) == [1, 2] and len(data.remarks) == 2
    assert numbers(opened(f"flat:{tmp_path / 'flat'}")) == [1, 2, 5, 4, 3]


def test_empty_class_folders_and_what_systems_leave_stop_no_pretraining(tmp_path):
    tree(tmp_path, "a/1.png", "b/2.png", "__MACOSX/a/._1.png", "__MACOSX/x.png", "a/.DS_Store.png")
    assert opened(tmp_path).classes == ["a", "b"] and opened(tmp_path).remarks == ()
    (tmp_path / "c").mkdir()
    data = opened(tmp_path)
    assert numbers(data) == [1, 2] and labels(data) == [0, 1]  # so that kNN goes on
    assert "1 class folder without an image" in remarks(data)[0] and len(data.remarks) == 1
    assert "fill it or remove it" in line(check_labelled, data)


def test_dangling_links_and_odd_endings_are_counted_and_named(tmp_path):
    tree(tmp_path, "a/1.png", "a/2.jfif", "b/3.JFIF", "b/4.png")
    (tmp_path / "a/gone.png").symlink_to("nowhere.png")
    (tmp_path / "b/loop.png").symlink_to("loop.png")
    (tmp_path / "b/notes.txt").write_text("x")
    data = opened(tmp_path)
    assert numbers(data) == [1, 2, 3, 4]
    assert data.remarks[0] == "2 links to nowhere left out, first 'a/gone.png'"
    assert "1 file left out" in data.remarks[1] and "1 .txt" in data.remarks[1]
    assert "2 files read" in data.remarks[2] and "2 .jfif" in data.remarks[2]


def test_a_test_folder_without_some_classes_is_numbered_as_training(tmp_path):
    tree(tmp_path, "Train/a/1.png", "Train/b/2.png", "Train/c/3.png", "Test/c/4.png", "Test/a/5.png")
    data = opened(tmp_path, "test")
    assert data.classes == ["a", "b", "c"] and labels(data) == [0, 2]


def test_folders_of_npy_arrays(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.npy", "b/2.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, rng.integers(0, 65536, (5, 8, 9), np.uint16))
    data = opened(tmp_path, channels=5)
    assert data.classes == ["a", "b"] and data.image(1).shape == (8, 9, 5) and data.image(1).dtype == np.uint8
    expected = np.rint(np.load(tmp_path / "b/2.npy") / 257).astype(np.uint8)
    assert np.array_equal(data.image(1), np.moveaxis(expected, 0, 2))
    assert "5 channels, the model has 4" in line(opened, tmp_path, channels=4)


# ---------------------------------------------------------------- lists
LISTS = {
    "blanks": "{0} 0\n{1} 1\n",
    "tabs": "{0}\t0\n{1}\t1\n",
    "commas": "{0},0\n{1},1\n",
    "semicolons": "{0};0\r\n{1};1\r\n",
    "byte order mark, Windows": "\ufeff{0} 0\r\n{1} 1\r\n",
    "header": "filename,label\n{0},0\n{1},1\n",
    "quotes": 'path,label\n"{0}","0"\n"{1}","1"\n',
    "comments": "# mine\n#\n{0} 0\n## more\n\n{1} 1",
    "old Mac": "{0} 0\r{1} 1\r",
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_as_people_write_them(tmp_path, form):
    names = ["a/1 one.png", "#2, two.png"] if form in ("blanks", "tabs") else ["a/1 one.png", "#2.png"]
    tree(tmp_path, *names)
    (tmp_path / "x.txt").write_text(LISTS[form].format(*names), encoding="utf-8", newline="")
    data = opened(tmp_path / "x.txt")
    assert numbers(data) == [1, 2] and labels(data) == [0, 1] and data.classes == ["0", "1"]


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_labels_in_words_are_classes_in_sorted_order(tmp_path, separator):
    tree(tmp_path, "1.png", "2.png", "3.png", "4.png")
    (tmp_path / "train_list.txt").write_text(
        "".join(f"{n}.png{separator}{w}\n" for n, w in ((1, "dog"), (2, "cat"), (3, "emu")))
    )
    (tmp_path / "val_list.txt").write_text(f"4.png{separator}dog\n")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.classes == val.classes == ["cat", "dog", "emu"] and labels(train) == [1, 0, 2] and labels(val) == [1]
    (tmp_path / "val_list.txt").write_text(f"4.png{separator}fox\n")
    assert "'fox' has no counterpart" in line(check_labelled, opened(tmp_path, "val"))


BAD_LABELS = ["3000000000", str(2**31), str(2**63), "9" * 5000, "-1"]


@pytest.mark.parametrize("label", BAD_LABELS)
def test_bad_labels_of_a_list_stop_no_pretraining_and_fill_no_memory(tmp_path, label):
    tree(tmp_path, "1.png", "2.png")
    (tmp_path / "x.txt").write_text(f"1.png 0\n2.png {label}\n")
    with limited(1 << 28):
        data = opened(tmp_path / "x.txt")
    assert labels(data) == [-1, -1] and data.classes == [] and numbers(data) == [1, 2]
    assert "labels must lie in 0.." in line(check_labelled, data)


class limited:
    """No more than so many bytes of new memory may be mapped inside."""

    def __init__(self, more: int) -> None:
        self.more = more

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + self.more, self.before[1]))

    def __exit__(self, *rest: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.before)


# ---------------------------------------------------------------- arrays
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("first_axis", [True, False])
@pytest.mark.parametrize("form", ["npz", "npy", "folder"])
def test_arrays_of_n_channels(tmp_path, kind, first_axis, form):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 4), np.uint8)
    stored: Any = {"uint8": images, "uint16": images.astype(np.uint16) * 257, "float32": images / np.float32(255)}[kind]
    stored = np.moveaxis(stored, 3, 1) if first_axis else stored
    wanted = np.arange(6) % 2
    if form == "npz":
        np.savez_compressed(tmp_path / "x.npz", images=stored, labels=wanted)
    elif form == "npy":
        np.save(tmp_path / "x.npy", stored)
        np.save(tmp_path / "x_labels.npy", wanted)
    else:
        np.save(tmp_path / "images.npy", stored)
        np.save(tmp_path / "labels.npy", wanted)
    where = tmp_path if form == "folder" else tmp_path / f"x.{form}"
    more = {"value_range": (0.0, 1.0)} if kind == "float32" else {}
    data = opened(where, channels=4, **more)
    assert all(np.array_equal(data.image(index), images[index]) for index in range(6))
    assert labels(data) == wanted.tolist()
    again = pickle.loads(pickle.dumps(data, 5))
    assert np.array_equal(again.image(3), images[3])
    if kind == "float32":
        assert "--value-range LO HI" in line(opened, where, channels=4)


def test_a_mapped_file_is_not_pickled_and_not_read_to_be_opened(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 64, 64)})
        file.truncate(file.tell() + (1 << 32))  # sparse
    data = opened(tmp_path / "x.npy")
    assert len(data) == 1 << 20 and len(pickle.dumps(data)) < 10_000_000
    assert data.image(99999).shape == (64, 64, 3)


def test_labels_of_arrays_that_nobody_can_use(tmp_path):
    images = np.zeros((3, 4, 5, 3), np.uint8)
    for wrong in (
        [0, 1, 3 * 10**9],
        [0, 1, 2**31],
        [0, 1, -5],
        np.array([0, 1, 2**63], np.uint64),
        [[1, 0], [0, 1], [1, 1]],
        [0.0, 1.0, 2.0],
    ):
        np.savez(tmp_path / "x.npz", images=images, labels=np.array(wrong))
        with limited(1 << 28):
            data = opened(tmp_path / "x.npz")
        assert labels(data) == [-1] * 3 and data.fault and line(check_labelled, data) == data.fault
    np.savez(tmp_path / "x.npz", images=images, labels=np.array(["b", "a", "b"]))
    assert labels(opened(tmp_path / "x.npz")) == [1, 0, 1] and opened(tmp_path / "x.npz").classes == ["a", "b"]


def test_medmnist_has_a_val_split_of_its_own(tmp_path):
    parts: Any = {
        f"{split}_images": np.full((2, 4, 4), value, np.uint8)
        for split, value in (("train", 1), ("val", 2), ("test", 3))
    }
    np.savez(tmp_path / "x.npz", **parts)
    assert [first(opened(tmp_path / "x.npz", split)) for split in ("train", "val", "test")] == [1, 2, 3]


def test_pages_of_one_tiff_are_the_images(tmp_path):
    stack = np.random.default_rng(0).integers(0, 65536, (7, 8, 9), np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    data = opened(tmp_path / "x.tif", channels=1)
    assert len(data) == 7 and np.array_equal(data.image(4)[..., 0], np.rint(stack[4] / 257).astype(np.uint8))


# ---------------------------------------------------------------- bombs
def test_small_files_that_unpack_to_much_are_refused_by_size(tmp_path):
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 1 << 20, 1 << 6, 1 << 6)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(1 << 20))
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 19, 32, 32)})
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as out,
    ):
        out.write(member.getvalue())
        for _ in range(512):
            out.write(bytes(1 << 20))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 20
    with limited(1 << 29):
        assert "decompression bomb" in line(opened, tmp_path / "x.npz")
        assert "decompression bomb" in line(opened, f"idx:{tmp_path}")


def test_a_header_that_claims_more_than_the_file_holds_allocates_nothing(tmp_path):
    shape = (1 << 40, 224, 224, 3)
    for name in ("x.npy", "x.npz"):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if name == "x.npy":
            (tmp_path / name).write_bytes(head.getvalue())
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.writestr("images.npy", head.getvalue() + b"\0" * 9)
        with limited(1 << 28):
            assert "cut short" in line(opened, tmp_path / name)


# ---------------------------------------------------------------- archives
def cifar_archive(path: Path, kind: str = "py") -> Path:
    folder = f"cifar-10-batches-{kind}"
    rows = np.arange(5 * 2 * 3072).astype(np.uint8).reshape(5, 2, 3072)
    with tarfile.open(path, "w:gz") as file:
        for name, part in [*((f"data_batch_{k + 1}", rows[k]) for k in range(5)), ("test_batch", rows[0])]:
            content = pickle.dumps({b"data": part, b"labels": [3, 1]}, 2)
            if kind == "bin":
                content = np.concatenate([np.array([[3], [1]], np.uint8), part], 1).tobytes()
            info = tarfile.TarInfo(f"{folder}/{name}{'.bin' if kind == 'bin' else ''}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar_is_read_in_its_archive_and_its_checksum_is_looked_at(tmp_path, kind):
    name = {"py": "cifar-10-python.tar.gz", "bin": "cifar-10-binary.tar.gz"}[kind]
    data = opened(cifar_archive(tmp_path / name, kind))
    assert len(data) == 10 and labels(data)[:2] == [3, 1] and data.image(0).shape == (32, 32, 3)
    assert "is not the published file" in data.remarks[0] and "https://www.cs.toronto.edu" in data.remarks[0]


def test_a_published_checksum_is_recognised(tmp_path, monkeypatch):
    path = cifar_archive(tmp_path / "cifar-10-python.tar.gz")
    own = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(archives.PUBLISHED, path.name, archives.Published(own, "https://here"))
    assert archives.checksum_line(path) == f"{path.name} is the published file (MD5 {own}, https://here)"


@pytest.mark.parametrize("ending", ["tgz", "tar.gz", "zip", "tar.xz"])
def test_other_archives_are_unpacked_once_on_request(tmp_path, ending):
    tree(tmp_path / "src", "train/a/1.png", "train/b/2.png")
    path = tmp_path / f"mine.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for item in (tmp_path / "src").rglob("*.png"):
                file.write(item, item.relative_to(tmp_path / "src"))
    else:
        with tarfile.open(path, f"w:{ending.rpartition('.')[2].replace('t', '', ending == 'tgz')}") as file:  # type: ignore[call-overload]
            file.add(tmp_path / "src/train", "train")
    assert "triport data" in line(opened, path) and "--unpack DIR" in line(opened, path)
    archives.unpack([path], tmp_path / "out")
    assert numbers(opened(tmp_path / "out")) == [1, 2]
    assert "exists already" in line(archives.unpack, [path], tmp_path / "out")


def test_a_zip_with_a_file_that_has_no_name_is_refused(tmp_path):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("abcd", b"12")
    content = path.read_bytes()
    place = content.rindex(b"abcd")  # of the directory at the end, not of the entry itself
    path.write_bytes(content[:place] + b"\0bcd" + content[place + 4 :])
    for asked in ((opened, path), (archives.unpack, [path], tmp_path / "out")):
        assert "a file without a name" in line(*asked)
    assert not (tmp_path / "out").exists()


def test_pets_are_unpacked_from_two_archives(tmp_path):
    tree(tmp_path / "src", "images/Abyssinian_1.jpg", "images/great_pyrenees_2.jpg")
    (tmp_path / "src/annotations").mkdir()
    (tmp_path / "src/annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\ngreat_pyrenees_2 2 2 1\n")
    for name in ("images", "annotations"):
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as file:
            file.add(tmp_path / "src" / name, name)
    printed = archives.unpack([tmp_path / "images.tar.gz", tmp_path / "annotations.tar.gz"], tmp_path / "pets")
    assert sum("https://www.robots.ox.ac.uk" in one for one in printed) == 2
    assert opened(tmp_path / "pets").classes == ["Abyssinian", "great_pyrenees"]


def flowers(folder: Path) -> Path:
    """Flowers-102 as it is downloaded, with four pictures."""
    scipy_io = pytest.importorskip("scipy.io")
    tree(folder / "src", *(f"jpg/image_{number:05d}.jpg" for number in range(1, 5)))
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as file:
        file.add(folder / "src/jpg", "jpg")
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2]], np.uint8)})
    sets = {"trnid": np.array([[1]]), "valid": np.array([[2]]), "tstid": np.array([[3, 4]])}
    scipy_io.savemat(folder / "setid.mat", {name: part.astype(np.uint16) for name, part in sets.items()})
    return folder


def test_flowers_are_unpacked_with_what_belongs_to_them(tmp_path):
    path = flowers(tmp_path) / "102flowers.tgz"
    message = line(opened, path)
    assert f"triport data {path} {tmp_path / 'imagelabels.mat'} {tmp_path / 'setid.mat'} --unpack DIR" in message
    printed = archives.unpack([path], tmp_path / "one")
    assert sum("https://www.robots.ox.ac.uk" in one and "MD5" in one for one in printed) == 3
    archives.unpack([path, tmp_path / "imagelabels.mat", tmp_path / "setid.mat"], tmp_path / "all")
    for folder in (tmp_path / "one", tmp_path / "all"):
        train, test = opened(folder), opened(folder, "test")
        assert numbers(train) == [1, 2] and labels(train) == [0, 1] and labels(test) == [0, 1]
        assert sorted(item.name for item in folder.iterdir()) == ["imagelabels.mat", "jpg", "setid.mat"]


def test_what_belongs_to_an_archive_and_is_not_there_is_named_with_its_address(tmp_path):
    path = flowers(tmp_path) / "102flowers.tgz"
    (tmp_path / "setid.mat").unlink()
    printed = archives.unpack([path], tmp_path / "out")
    assert any("setid.mat belongs to 102flowers.tgz" in one and one.endswith("/102/setid.mat") for one in printed)
    assert "Flowers-102 needs" in line(opened, tmp_path / "out") and "setid.mat" in line(opened, tmp_path / "out")


def test_nothing_is_fetched_for_an_archive(tmp_path, monkeypatch):
    import socket

    def refused(*ignored: Any, **more: Any) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "socket", refused)
    path = cifar_archive(tmp_path / "cifar-10-python.tar.gz")
    assert len(opened(path)) == 10
    archives.unpack([flowers(tmp_path) / "102flowers.tgz"], tmp_path / "out")
    assert len(opened(tmp_path / "out")) == 2


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path, name):
    path = shard(tmp_path / "x.tar", [("fine", b"1"), (name, b"2")])
    assert "outside its folder" in line(archives.unpack, [path], tmp_path / "deep/out")
    assert not (tmp_path / "deep/out").exists() and not list(tmp_path.rglob("evil"))


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size = 2
        file.addfile(info, io.BytesIO(b"ok"))
    archives.unpack([tmp_path / "x.tgz"], tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["a.txt"]


# ---------------------------------------------------------------- tar shards
def test_shards_are_read_by_offset_with_splits_and_labels(tmp_path):
    shard(tmp_path / "train-0000.tar", samples(0, 5))
    shard(tmp_path / "train-0001.tar", samples(5, 9), format=tarfile.GNU_FORMAT)
    shard(tmp_path / "val-0000.tar", samples(9, 12), format=tarfile.USTAR_FORMAT)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert numbers(train) == list(range(9)) and labels(train) == [number % 3 for number in range(9)]
    assert numbers(val) == [9, 10, 11] and train.classes == val.classes == ["0", "1", "2"]
    check_apart(train, val)
    assert "are the same" in line(check_apart, train, opened(tmp_path))
    again = pickle.loads(pickle.dumps(train, 5))
    assert numbers(again) == list(range(9))
    (tmp_path / "classnames.txt").write_text("cat\ndog\nemu\n")
    assert opened(tmp_path).classes == ["cat", "dog", "emu"]


def test_the_index_of_shards_is_made_once_and_again_when_they_change(tmp_path, cache, monkeypatch):
    from triport.core.data.readers import shards

    path = shard(tmp_path / "x.tar", samples(0, 4))
    made = []
    make = shards._make

    def counted(files):
        made.append(1)
        return make(files)

    monkeypatch.setattr(shards, "_make", counted)
    assert numbers(opened(path)) == numbers(opened(path)) == [0, 1, 2, 3] and made == [1]
    saved = next(cache.rglob("index-*.npz"))
    saved.write_bytes(saved.read_bytes()[:50])
    assert numbers(opened(path)) == [0, 1, 2, 3] and made == [1, 1]
    shard(path, samples(4, 6))
    assert numbers(opened(path)) == [4, 5] and made == [1, 1, 1]


def test_an_index_that_cannot_be_saved_is_made_each_time_with_a_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = opened(shard(tmp_path / "x.tar", samples(0, 2)))
    assert numbers(data) == [0, 1] and "cannot be kept" in data.remarks[0]


def test_members_as_others_write_them(tmp_path):
    long = "deep/" * 40 + "x" * 60
    members = [
        ("a/1.png", encoded(colour(1))),
        ("a/1.json", b'{"label": "dog"}'),
        ("b/1.json", b'{"label": "cat"}'),  # the same name in another folder is another sample
        ("b/1.jpg", encoded(colour(2))),
        (f"{long}.png", encoded(colour(3))),
        (f"{long}.json", b'{"label": "dog", "caption": "x"}'),
        ("notes.txt", b"no image"),
        ("README", b"no ending"),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        data = opened(shard(tmp_path / f"{form}.tar", members, format=form))
        assert numbers(data) == [1, 2, 3] and data.classes == ["cat", "dog"] and labels(data) == [1, 0, 1]
        assert "1 samples without an image" in data.remarks[0]


@pytest.mark.parametrize("label", BAD_LABELS)
def test_bad_labels_of_shards_and_parquet_stop_no_pretraining(tmp_path, label):
    members = [("1.png", encoded(colour(1))), ("1.cls", label.encode()), ("2.png", encoded(colour(2))), ("2.cls", b"0")]
    with limited(1 << 28):
        data = opened(shard(tmp_path / "x.tar", members))
    assert labels(data) == [-1, -1] and "labels must lie in" in line(check_labelled, data)
    if len(label) < 18:
        path = parquet(tmp_path / "x.parquet", [1, 2], label=[0, int(label)])
        data = opened(path)
        assert labels(data) == [-1, -1] and "labels must lie in" in line(check_labelled, data)


def test_faults_of_shards(tmp_path):
    path = shard(tmp_path / "x.tar", samples(0, 3))
    whole = path.read_bytes()
    for content, words in [
        (whole[:700], "damaged"),
        (b"\x1f\x8b" + whole[2:], "damaged at byte 0"),
        (whole[:100], "not a .tar file"),
        (bytes(10240), "without an image"),
    ]:
        path.write_bytes(content)
        assert words in line(opened, path)
    path.write_bytes(whole)
    data = opened(path)
    path.write_bytes(whole[:600])
    with pytest.raises(BrokenImage, match=r"x\.tar@.*cut short"):
        data.image(2)
    again = pickle.loads(pickle.dumps(data))
    path.unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        again.image(0)


# ---------------------------------------------------------------- parquet
def test_parquet_of_hugging_face(tmp_path):
    parquet(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 2, 3, 4, 5], ["cat", "dog", "emu"])
    parquet(tmp_path / "data/train-00001-of-00002.parquet", [6, 7, 8], ["cat", "dog", "emu"])
    parquet(tmp_path / "data/validation-00000-of-00001.parquet", [9, 10], ["cat", "dog", "emu"])
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert numbers(train) == list(range(9)) and labels(train) == [number % 3 for number in range(9)]
    assert train.classes == val.classes == ["cat", "dog", "emu"] and numbers(val) == [9, 10]
    assert [first(train, index) for index in (8, 0, 5, 3, 8)] == [8, 0, 5, 3, 8]
    assert numbers(pickle.loads(pickle.dumps(train, 5))) == list(range(9))
    check_apart(train, val)


def test_parquet_as_others_write_it(tmp_path):
    from pyarrow import parquet as files
    from pyarrow import table

    raw = [encoded(colour(number)) for number in (1, 2, 3)]
    files.write_table(table({"img": raw, "class": ["b", "a", "b"]}), tmp_path / "x.parquet")
    data = opened(tmp_path / "x.parquet")
    assert numbers(data) == [1, 2, 3] and labels(data) == [1, 0, 1] and data.classes == ["a", "b"]
    files.write_table(
        table({"image": [{"bytes": raw[0], "path": ""}, {"bytes": None, "path": "x.png"}, None]}),
        tmp_path / "y.parquet",
    )
    data = opened(tmp_path / "y.parquet")
    assert first(data) == 1 and labels(data) == [-1] * 3
    for index in (1, 2):
        with pytest.raises(BrokenImage, match=r"y\.parquet#0"):
            data.image(index)
    files.write_table(table({"one": raw, "two": raw}), tmp_path / "z.parquet")
    assert "needs exactly one column with image bytes" in line(opened, tmp_path / "z.parquet")
    files.write_table(table({"text": ["x"]}), tmp_path / "z.parquet")
    assert "needs exactly one column" in line(opened, tmp_path / "z.parquet")
    (tmp_path / "z.parquet").write_bytes(b"PAR1" + bytes(90) + b"PAR1")
    assert "not a parquet file" in line(opened, tmp_path / "z.parquet")


# ---------------------------------------------------------------- many samples
MANY = """
import re, sys
from pathlib import Path
from triport.core.data.datasets import open_dataset
from triport.core.spec import DataSpec
data = open_dataset(sys.argv[1], "train", DataSpec(name="x"), 3)
# Not getrusage's: after a fork that begins at the parent's size.
print(len(data), int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_a_million_samples_of_an_index_stay_under_500_mb(tmp_path, cache):
    path = shard(tmp_path / "x.tar", samples(0, 1))
    opened(path)
    saved = next(cache.rglob("index-*.npz"))
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files}
    for name in ("shard", "offset", "size", "label"):
        arrays[name] = np.repeat(arrays[name], 1_000_000)
    np.savez(saved, **arrays)
    made = subprocess.run([sys.executable, "-c", MANY, str(path)], capture_output=True, text=True, check=True)
    length, megabytes = map(int, made.stdout.split())
    assert length == 1_000_000 and megabytes < 500


def test_a_list_of_a_million_images_stays_under_500_mb(tmp_path):
    put(tmp_path / "one.png")
    with (tmp_path / "x.txt").open("w") as file:
        file.writelines(f"./././././././././././././one.png {number % 1000}\n" for number in range(1_000_000))
    made = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path / "x.txt")], capture_output=True, text=True, check=True
    )
    length, megabytes = map(int, made.stdout.split())
    assert length == 1_000_000 and megabytes < 500


def test_many_classes_are_found_without_a_search_through_them(tmp_path):
    from triport.core.data.readers import image_files
    from triport.core.data.sample.decode import Decoding

    class Names(list):
        def index(self, *rest: Any) -> int:
            raise AssertionError("searched")

    tree(tmp_path, "a/1.png", "b/2.png")
    data = image_files._read_classes(tmp_path, Names(["a", "b"]), Names(["a", "b"]), True, Decoding(3), [])
    assert labels(data) == [0, 1]


def test_small_things():
    data = ArrayDataset("x", np.zeros((2, 4, 5), np.uint8))
    assert data.where(1) == "x[1]" and labels(data) == [-1, -1]
