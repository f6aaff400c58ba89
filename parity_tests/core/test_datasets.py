"""Every kind of dataset is read as its makers wrote it, and what cannot be read is named in one line."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from triport.core.data import datasets
from triport.core.data.datasets import ArrayDataset, BrokenImage, check_apart, check_labelled
from triport.core.data.readers import cifar as cifar_files
from triport.core.data.readers import mat_file
from triport.core.data.readers.image_files import FileDataset
from triport.core.data.readers.tree import Paths
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.labels import numbered
from triport.core.errors import UserError
from triport.core.spec import DataSpec

open_dataset: Any = datasets.open_dataset  # its images are of either kind
FASHION, IMAGENET = DataSpec(name="fashion-mnist"), DataSpec(name="imagenet")


def colour(number: int, height: int = 6, width: int = 8) -> np.ndarray:
    """An image that tells which one it is: every pixel is (number, 2 * number, 3 * number)."""
    return np.broadcast_to(np.array([number, 2 * number, 3 * number], np.uint8), (height, width, 3)).copy()


def put(path: Path, number: int = 1, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colour(number)).convert(mode).save(path, **({"format": "PNG"} if path.suffix == ".JPEG" else {}))
    return path


def tree(root: Path, *names: str) -> Path:
    for number, name in enumerate(names, 1):
        put(root / name, number)
    return root


def pixel(dataset, index: int) -> list[int]:
    return np.asarray(dataset.image(index))[0, 0].tolist()


def labels(dataset) -> list[int]:
    return [dataset.label(index) for index in range(len(dataset))]


def refused(*words: str, where: object, split="train", data=IMAGENET, channels: int = 3) -> None:
    with pytest.raises(UserError) as error:
        open_dataset(str(where), split, data, channels)
    the_line(error.value, words)


def no_labels(*words: str, where: object, split="train") -> None:
    """Pretraining can have the images; a task with labels is refused."""
    data = open_dataset(str(where), split, IMAGENET, 3)
    assert set(labels(data)) == {-1} and data.classes == []
    with pytest.raises(UserError) as error:
        check_labelled(data)
    the_line(error.value, words)


def the_line(error: UserError, words: tuple[str, ...]) -> None:
    line = str(error)
    assert "\n" not in line
    for word in words:
        assert word in line


# ---------------------------------------------------------------- the shipped default
def test_shipped_images_are_divided_as_the_rule_says():
    train, test = open_dataset(None, "train", FASHION, 1), open_dataset("fashion-mnist", "test", IMAGENET, 1)
    folder = Path(mat_file.__file__).parents[1] / "fashion_mnist"
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    whole = np.frombuffer(raw, np.uint8, offset=16).reshape(10000, 28, 28, 1)
    assert (len(train), len(test)) == (8000, 2000)
    assert np.array_equal(train.image(7999), whole[7999])
    assert np.array_equal(test.image(0), whole[8000])
    assert train.classes[test.label(0)] in train.classes and len(train.classes) == 10
    assert train.classes[train.label(0)] == "Ankle-boot"  # the first test image of Fashion-MNIST
    assert np.bincount(labels(test)).min() > 150  # every class is there
    assert "Copyright (c) 2017 Zalando SE" in (folder / "NOTICE").read_text()


def test_grey_images_are_repeated_for_three_channels():
    grey, rgb = open_dataset(None, "train", FASHION, 1), open_dataset(None, "train", FASHION, 3)
    assert rgb.image(3).shape == (28, 28, 3)
    assert np.array_equal(rgb.image(3)[..., 2], grey.image(3)[..., 0])


def test_without_a_path_only_a_recipe_made_for_the_shipped_images_runs():
    with pytest.raises(UserError, match=r"made for imagenet.*--data"):
        open_dataset(None, "train", IMAGENET, 3)


# ---------------------------------------------------------------- folders
def test_class_folders(tmp_path):
    root = tree(tmp_path / "data", "train/b/2.JPEG", "train/b/deep/1.png", "train/a/x.bmp", "val/b/3.png", ".git/x.png")
    (root / "train/a/notes.txt").write_text("no image")
    (root / "train/a/._x.bmp").write_bytes(b"left by an archive")
    train, test = open_dataset(str(root), "train", IMAGENET, 3), open_dataset(str(root), "test", IMAGENET, 3)
    assert train.classes == test.classes == ["a", "b"]
    assert labels(train) == [0, 1, 1]
    assert [pixel(train, index) for index in range(3)] == [[3, 6, 9], [1, 2, 3], [2, 4, 6]]  # sorted by name
    assert labels(test) == [1]  # numbered as in training, though class a has no test image
    assert train.image(0).mode == "RGB"
    assert open_dataset(str(root), "train", IMAGENET, 1).image(0).mode == "L"


@pytest.mark.parametrize("name", ["val", "test", "validation", "valid"])
def test_names_of_the_test_folder(tmp_path, name):
    tree(tmp_path, "train/a/1.png", f"{name}/a/2.png")
    assert pixel(open_dataset(str(tmp_path), "test", IMAGENET, 3), 0) == [2, 4, 6]


def test_undivided_folders_are_used_whole_and_distinguished(tmp_path):
    tree(tmp_path, "a/1.png", "b/2.png")
    train, test = (open_dataset(str(tmp_path), split, IMAGENET, 3) for split in ("train", "test"))
    assert len(train) == len(test) == 2
    with pytest.raises(UserError, match="are the same"):
        check_apart(train, test)
    check_apart(*(open_dataset(None, split, FASHION, 1) for split in ("train", "test")))


def test_flat_folder(tmp_path):
    tree(tmp_path, "3.png", "deep/er/1.png", "2.png")
    data = open_dataset(str(tmp_path), "train", IMAGENET, 3)
    assert labels(data) == [-1, -1, -1] and data.classes == []
    assert [pixel(data, index)[0] for index in range(3)] == [3, 1, 2]
    forced = open_dataset(f"flat:{tmp_path}/deep", "train", IMAGENET, 3)
    assert len(forced) == 1
    with pytest.raises(UserError, match="no labels"):
        check_labelled(data)


def test_unlabelled_images_in_split_folders(tmp_path):
    tree(tmp_path, "train/1.png", "val/2.png")
    assert pixel(open_dataset(str(tmp_path), "test", IMAGENET, 3), 0) == [2, 4, 6]


def test_links_that_loop_end(tmp_path):
    tree(tmp_path, "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(open_dataset(str(tmp_path), "train", IMAGENET, 3)) == 1


def test_odd_names_survive(tmp_path):
    names = ["a/ä ö.png", "a/" + os.fsdecode(b"\xff.png"), "b/日本.png"]
    tree(tmp_path, *names)
    data = open_dataset(str(tmp_path), "train", IMAGENET, 3)
    assert sorted(pixel(data, index)[0] for index in range(3)) == [1, 2, 3]


def test_faults_of_folders(tmp_path):
    refused("no file or folder", "nowhere", where=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("no image", "empty", where=tmp_path / "empty")
    tree(tmp_path / "gap", "a/1.png", "b/2.png")
    (tmp_path / "gap/c").mkdir()
    with pytest.raises(UserError, match=r"class folder '.*gap/c' has no image"):
        check_labelled(open_dataset(str(tmp_path / "gap"), "train", IMAGENET, 3))
    tree(tmp_path / "half", "train/a/1.png")
    refused("no val or test folder", where=tmp_path / "half", split="test")
    tree(tmp_path / "odd", "train/a/1.png", "val/b/2.png")
    no_labels("val/b", "no counterpart", where=tmp_path / "odd", split="test")
    refused("3 channels, the model has 4", "1.png", where=tmp_path / "half", channels=4)
    (tmp_path / "thing.doc").write_bytes(b"x")
    refused("is not a dataset", where=tmp_path / "thing.doc")
    refused("is one picture", "folder", where=tmp_path / "gap/a/1.png")
    (tmp_path / "thing.tar").write_bytes(b"x")
    refused("not a .tar file", where=tmp_path / "thing.tar")
    refused("no kind of dataset 'foldr'", "'folder'?", where=f"foldr:{tmp_path}")
    refused("cannot be read as 'folder'", where=f"folder:{tmp_path / 'thing.tar'}")


def test_tasks_with_labels_need_two_classes(tmp_path):
    data = open_dataset(str(tree(tmp_path, "only/1.png")), "train", IMAGENET, 3)
    with pytest.raises(UserError, match="one class only, 'only'"):
        check_labelled(data)
    fashion = open_dataset(None, "train", FASHION, 1)
    check_labelled(fashion, 10)
    with pytest.raises(UserError, match="has 10 classes, the model has 1000"):
        check_labelled(fashion, 1000)


# ---------------------------------------------------------------- broken images
def noise_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.jpg", b"", "empty"),
        ("cut.jpg", noise_jpeg()[:-900], "truncated"),
        ("head.jpg", noise_jpeg()[:20], ""),
        ("text.png", b"<html>404</html>" * 9, "not an image"),
        ("bomb.png", huge_png(), "pixels"),
        ("broken.png", huge_png()[:60], ""),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_are_named(tmp_path, name, content, why):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    data = open_dataset(str(tmp_path), "train", IMAGENET, 3)
    with pytest.raises(BrokenImage) as error:
        data.image(0)
    assert name in str(error.value) and why in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_vanishes_is_a_broken_image(tmp_path):
    data = open_dataset(str(tree(tmp_path, "a/1.png")), "train", IMAGENET, 3)
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        data.image(0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(colour(40))
    image = Image.new(mode, (8, 6), 40) if mode == "I;16" else image.convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / ("x.tif" if mode in ("CMYK", "I;16") else "x.png"))
    data = open_dataset(str(tmp_path), "train", IMAGENET, 3)
    assert np.asarray(data.image(0)).shape == (6, 8, 3)


# ---------------------------------------------------------------- list files
def test_list_file_relative_to_its_folder_and_to_the_split(tmp_path):
    tree(tmp_path, "train/a/1 one.png", "train/b/2.png", "val/3.png")
    (tmp_path / "train_list.txt").write_text("train/b/2.png 1\ntrain/a/1 one.png 0\n\n")
    (tmp_path / "val_list.txt").write_text("3.png 0\n")
    train, test = (open_dataset(str(tmp_path), split, IMAGENET, 3) for split in ("train", "test"))
    assert labels(train) == [1, 0] and pixel(train, 0) == [2, 4, 6] and pixel(train, 1) == [1, 2, 3]
    assert labels(test) == [0] and pixel(test, 0) == [3, 6, 9]
    assert test.classes == train.classes == ["0", "1"]


def test_list_file_without_labels_and_with_absolute_paths(tmp_path):
    tree(tmp_path, "x/1.png", "x/2.png")
    (tmp_path / "some.txt").write_text(f"# mine\n{tmp_path}/x/2.png\nx/1.png\n")
    data = open_dataset(f"list:{tmp_path / 'some.txt'}", "train", IMAGENET, 3)
    assert labels(data) == [-1, -1] and pixel(data, 0) == [2, 4, 6] and pixel(data, 1) == [1, 2, 3]


def test_faults_of_list_files(tmp_path):
    tree(tmp_path, "1.png")
    path = tmp_path / "some.txt"
    for check, text, words in [
        (refused, "1.png 0\ngone.png 1\naway.png 1\n", ("2 missing files", "gone.png")),
        (no_labels, "1.png 1\n", ("no image of class 0", "count from 0")),
        (no_labels, "1.png 0\n1.png\n", ("with and without",)),
        (refused, "\n# nothing\n", ("names no image",)),
    ]:
        path.write_text(text)
        check(*words, str(path), where=path)
    path.write_bytes(b"\xff\xfe\x00")
    refused("UTF-8", where=path)
    (tmp_path / "train_list.txt").write_text("1.png 0\n")
    refused("test_list.txt", "missing", where=tmp_path, split="test")


# ---------------------------------------------------------------- idx
def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("ending", "stem"), [("-idx3-ubyte", "t10k"), ("-idx3-ubyte.gz", "t10k"), (".idx3-ubyte", "test")]
)
def test_idx_folder(tmp_path, ending, stem):
    pack = gzip.compress if ending.endswith("gz") else bytes
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, shift in (("train", 0), (stem, 100)):
        (folder / f"{part}-images{ending}").write_bytes(pack(idx(images + np.uint8(shift))))
        (folder / f"{part}-labels{ending.replace('3', '1')}").write_bytes(pack(idx(np.array([2, 0, 1], np.uint8))))
    for where in (tmp_path, folder, f"idx:{folder}"):
        train, test = (open_dataset(str(where), split, IMAGENET, 1) for split in ("train", "test"))
        assert np.array_equal(train.image(1)[..., 0], images[1]) and labels(train) == [2, 0, 1]
        assert np.array_equal(test.image(1)[..., 0], images[1] + 100) and test.classes == ["0", "1", "2"]
    alone = open_dataset(str(folder / f"train-images{ending}"), "test", IMAGENET, 1)
    assert np.array_equal(alone.image(0)[..., 0], images[0])


def test_faults_of_idx_files(tmp_path):
    path, beside = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = idx(np.zeros((2, 3, 3), np.uint8))
    path.write_bytes(whole)
    no_labels("no labels beside it", where=tmp_path)
    beside.write_bytes(idx(np.zeros(3, np.uint8)))
    no_labels("2 images need as many", where=tmp_path)
    refused("no t10k-images", where=tmp_path, split="test")
    path.write_bytes(whole[:-1])
    refused("cut short", where=tmp_path)
    path.write_bytes(b"\0\0\x0d\3" + whole[4:])
    refused("not an idx file", where=tmp_path)
    path.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-9])
    refused("damaged", where=tmp_path)


# ---------------------------------------------------------------- CIFAR
def cifar_rows(n: int, start: int) -> np.ndarray:
    return np.random.default_rng(start).integers(0, 256, (n, 3072), np.uint8)


def cifar(root: Path, kind: str, binary: bool, protocol: int = 2) -> dict[str, np.ndarray]:
    """Write a small CIFAR of two images a file; return the rows of each split."""
    root.mkdir(parents=True)
    names = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
    names = names if kind == "cifar10" else {"train": ["train"], "test": ["test"]}
    key, meta = ("labels", "batches.meta") if kind == "cifar10" else ("fine_labels", "meta")
    rows: dict[str, np.ndarray] = {}
    for number, (split, files) in enumerate(names.items()):
        parts = [cifar_rows(2, 10 * number + k) for k in range(len(files))]
        rows[split] = np.concatenate(parts)
        for name, part in zip(files, parts, strict=True):
            if binary:
                head = np.array([[3, 1]] * 2 if kind == "cifar100" else [[3], [1]], np.uint8)
                head = np.array([[9, 3], [9, 1]], np.uint8) if kind == "cifar100" else head
                (root / f"{name}.bin").write_bytes(np.concatenate([head, part], 1).tobytes())
            else:
                found = {key.encode(): [3, 1], b"data": part, b"filenames": [b"x.png"] * 2, b"batch_label": b"1 of 5"}
                (root / name).write_bytes(pickle.dumps(found, protocol))
    classes = ["plane", "car", "bird", "cat"]
    if binary:
        (root / ("batches.meta.txt" if kind == "cifar10" else "fine_label_names.txt")).write_text("\n".join(classes))
    else:
        words = {b"label_names" if kind == "cifar10" else b"fine_label_names": [name.encode() for name in classes]}
        (root / meta).write_bytes(pickle.dumps(words, protocol))
    return rows


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["binary", 0, 1, 2, 3, 4])
def test_cifar(tmp_path, kind, form):
    place = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind]
    rows = cifar(tmp_path / place, kind, form == "binary", form if form != "binary" else 2)
    for where in (tmp_path, tmp_path / place, f"{kind}:{tmp_path}"):
        for split in ("train", "test"):
            data = open_dataset(str(where), split, IMAGENET, 3)
            assert len(data) == len(rows[split]) and labels(data)[:2] == [3, 1]
            for index in (0, len(data) - 1):
                assert np.array_equal(data.image(index), rows[split][index].reshape(3, 32, 32).transpose(1, 2, 0))
            assert data.classes == ["plane", "car", "bird", "cat"]
    grey = open_dataset(str(tmp_path), "test", IMAGENET, 1)
    assert np.array_equal(grey.image(0)[..., 0], np.asarray(Image.fromarray(data.image(0)).convert("L")))


def python2_cifar(rows: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and the numpy of its day wrote: text as byte strings, old names."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def number(value: int) -> bytes:
        return b"M" + struct.pack("<H", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    kind = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    array += b"(" + number(1) + b"(" + number(rows.shape[0]) + number(rows.shape[1]) + b"t" + kind
    array += b"I00\n" + text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def test_cifar_as_python_2_wrote_it(tmp_path):
    rows = cifar_rows(2, 7)
    path = tmp_path / "test_batch"
    path.write_bytes(python2_cifar(rows, [5, 6]))
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="bytes")[b"data"], rows)  # it is a true pickle
    found = cifar_files.unpickled(path.read_bytes(), str(path))
    assert np.array_equal(found["data"], rows) and found["labels"] == [5, 6]
    data = open_dataset(str(tmp_path), "test", IMAGENET, 3)
    assert labels(data) == [5, 6]


class Attack:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_runs_from_a_pickle(tmp_path, protocol):
    mark = tmp_path / "mark"
    for number, inside in enumerate([{b"data": Attack(mark)}, [Attack(mark)], {b"data": [Path(), print]}]):
        path = tmp_path / f"{number}"
        path.write_bytes(pickle.dumps(inside, protocol))
        with pytest.raises(UserError, match="not a CIFAR file that can be read safely"):
            cifar_files.unpickled(path.read_bytes(), str(path))
        assert not mark.exists()


def test_odd_pickles_are_refused_in_one_line(tmp_path):
    whole = pickle.dumps({b"data": cifar_rows(2, 0), b"labels": [0, 1]}, 2)
    objects = pickle.dumps({b"data": np.array([print], dtype=object)}, 2)
    short = whole.replace(struct.pack("<BH", ord("M"), 3072), struct.pack("<BH", ord("M"), 3073))
    path = tmp_path / "test_batch"
    for content in (b"", whole[:-50], whole[:500], b"nonsense", objects, short, pickle.dumps([1]), pickle.dumps(3.0)):
        path.write_bytes(content)
        refused("test_batch", where=tmp_path, split="test")
    path.write_bytes(pickle.dumps({b"data": cifar_rows(2, 0)}, 2))
    refused("lacks data or labels", where=tmp_path, split="test")
    for odd in ([], np.zeros(2, np.uint8), [[0], [1]], ["0", "1"], 7):
        path.write_bytes(pickle.dumps({b"data": cifar_rows(2, 0), b"labels": odd}, 2))
        refused("labels are not whole numbers", where=tmp_path, split="test")
    path.write_bytes(pickle.dumps({b"data": cifar_rows(2, 0).astype(np.int16), b"labels": [0, 1]}, 2))
    refused("an array that is not uint8", where=tmp_path, split="test")
    path.write_bytes(whole)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", [b"b"]]}, 2))
    refused("its label_names are not names", where=tmp_path, split="test")


@pytest.mark.parametrize(
    "line", [b"Inone\n", b"L1x\n", b"Fx\n", b"Sx'\n", b"S'\n", b"S'\\'\n", b"V\\u12\n", b"I1", b"Np-1\n", b"Ng9\n"]
)
def test_broken_lines_of_the_text_protocols_are_refused(line):
    with pytest.raises(UserError, match="not a CIFAR file that can be read safely"):
        cifar_files.unpickled(b"(dS'labels'\n" + line + b"s.", "x")


def test_the_text_protocols_mean_what_python_takes_them_for():
    lines = (
        b"I7\n",
        b"I-3\n",
        b"I01\n",
        b"L12345678901L\n",
        b"F2.5\n",
        b"S'a\\'b\\xe9'\n",
        b'S"it\'s"\n',
        b"Vg\\u00e9\n",
    )
    content = b"(dS'x'\n(l" + b"".join(line + b"a" for line in lines) + b"p1\nsS'y'\ng1\ns."
    found = cifar_files.unpickled(content, "x")
    assert found == pickle.loads(content, encoding="latin1") and found["x"] is found["y"]
    assert [type(item) for item in found["x"]] == [int, int, bool, int, float, str, str, str]


def test_a_pickle_of_all_of_cifar_100_is_within_the_limits(monkeypatch):
    names = [b"image_s_%06d.png" % number for number in range(50_000)]
    whole = {b"filenames": names, b"fine_labels": [99] * 50_000, b"coarse_labels": [19] * 50_000}
    content = pickle.dumps(whole, 2)  # the protocol that costs most steps
    assert len(cifar_files.unpickled(content, "x")["filenames"]) == 50_000
    monkeypatch.setattr(cifar_files, "MAX_STEPS", 1000)
    with pytest.raises(UserError, match="more than 1000 operations"):
        cifar_files.unpickled(content, "x")


def test_faults_of_cifar(tmp_path):
    cifar(tmp_path / "c", "cifar10", True)
    (tmp_path / "c/data_batch_3.bin").unlink()
    refused("data_batch_3.bin", "unpack", where=tmp_path / "c")
    (tmp_path / "c/test_batch.bin").write_bytes(bytes(3074))
    refused("cut short", where=tmp_path / "c", split="test")
    refused("3 channels, the model has 4", where=cifar_at(tmp_path), split="test", channels=4)


def cifar_at(folder: Path) -> Path:
    cifar(folder / "whole", "cifar10", True)
    return folder / "whole"


# ---------------------------------------------------------------- Flowers and Pets
def mat(arrays: dict[str, np.ndarray], compressed: bool) -> bytes:
    """A MATLAB 5 file, written by the book."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    body = b""
    for name, array in arrays.items():
        kind, number = {"uint8": (9, 2), "float64": (6, 9), "uint16": (11, 4)}[array.dtype.name]
        text = name.encode()
        short = struct.pack("<HH", 1, len(text)) + text.ljust(4, b"\0") if len(text) <= 4 else element(1, text)
        inside = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<2i", *array.shape)) + short
        whole = element(14, inside + element(number, array.tobytes("F")))
        packed = zlib.compress(whole)
        body += struct.pack("<II", 15, len(packed)) + packed if compressed else whole
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + body


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_files(tmp_path, compressed):
    arrays: dict[str, Any] = {
        "labels": np.array([[77, 1, 102]], np.uint8),
        "id": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "x": np.array([[0.5]]),
    }
    path = tmp_path / "x.mat"
    path.write_bytes(mat(arrays, compressed))
    found = mat_file.load(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
    for content in (b"", b"x" * 200, path.read_bytes()[:-9], path.read_bytes()[:140]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.mat' is not a whole MATLAB 5 file .*fetch the original"):
            mat_file.load(path)


def test_a_mat_file_that_could_unpack_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "x.mat"
    path.write_bytes(mat({"labels": np.zeros((1, 40_000))}, compressed=False))
    with pytest.raises(UserError, match="too many for labels"):
        mat_file.load(path)


def test_a_mat_file_with_a_variable_twice_is_refused_in_one_line(tmp_path):
    path = tmp_path / "twice.mat"
    scipy.io.savemat(path, {"labels": np.arange(3)})
    path.write_bytes(path.read_bytes() + path.read_bytes()[128:])
    with pytest.raises(UserError, match="is not a whole MATLAB 5 file") as refused:
        mat_file.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_scipy_writes_is_read_as_scipy_reads_it(tmp_path, compressed):
    rng = np.random.default_rng(0)
    kinds = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
    arrays: dict[str, Any] = {f"a_{kind}": (rng.random((3, 2, 5)) * 99).astype(kind) for kind in kinds}
    arrays |= {"truth": np.array([True, False]), "none": np.zeros((0, 4)), "wide": np.arange(6.0).reshape(2, 3)}
    others = {"text": "ab", "cell": np.array([1, "b"], object), "complex": np.array([1j]), "struct": {"x": 1}}
    scipy.io.savemat(tmp_path / "x.mat", {**arrays, **others}, do_compression=compressed)
    found, wanted = mat_file.load(tmp_path / "x.mat"), scipy.io.loadmat(tmp_path / "x.mat")
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype and np.array_equal(array, wanted[name]), name


def test_no_damage_of_a_mat_file_is_more_than_one_line(tmp_path):
    path, rng = tmp_path / "x.mat", np.random.default_rng(0)
    whole = mat({"labels": np.array([[77, 1, 102]], np.uint8), "x": np.array([[0.5]])}, False)
    for _ in range(2000):
        data = bytearray(whole)
        for at in rng.integers(124, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(100, len(data) + 1)])
        with contextlib.suppress(UserError):
            mat_file.load(path)


def test_numbers_that_do_not_fit_their_class_are_refused(tmp_path):
    path, flags = tmp_path / "x.mat", struct.pack("<II", 6, 8)
    for value, message in ((255, None), (256, "'x' has numbers that do not fit its own class")):
        data = mat({"x": np.array([[1, value]], np.uint16)}, False)
        path.write_bytes(data.replace(flags + struct.pack("<I", 11), flags + struct.pack("<I", 9)))  # uint8
        if message is None:
            assert mat_file.load(path)["x"].tolist() == [[1, 255]]
            continue
        with pytest.raises(UserError, match=message):
            mat_file.load(path)


def test_a_newer_mat_file_says_how_to_write_this_one(tmp_path):
    (tmp_path / "x.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(512))
    with pytest.raises(UserError, match="MATLAB writes this one by save -v7"):
        mat_file.load(tmp_path / "x.mat")


def test_a_mat_file_that_scipy_wrote(tmp_path):
    """scipy.io.savemat(file, {"labels": uint8 [[77, 1, 102]], "trnid": uint16 [[6765, 2]]}, do_compression=True)."""
    text = (
        b"00Bu&4*&oFF8}}lc%0*7U|_HSVm2V=0AfxC2w;Ws8G)D?N`utoBqpWi6f-a|0Y!Zo(-;6degmQp0000k0001Zoa19)V6XsUHX!Bz"
        b"Vr~WqV1@D-ftU$OgTzXT@-kC^Gz$>sN-;42065VDC;"
    )
    path = tmp_path / "x.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + base64.b85decode(text))
    found = mat_file.load(path)
    assert found["labels"].tolist() == [[77, 1, 102]] and found["trnid"].tolist() == [[6765, 2]]


def test_flowers(tmp_path):
    for number in range(1, 8):
        put(tmp_path / f"jpg/image_{number:05d}.jpg", 8 * number)
    ids = {"trnid": [4, 2], "valid": [7], "tstid": [1, 3, 5, 6]}
    (tmp_path / "imagelabels.mat").write_bytes(mat({"labels": np.array([[1, 2, 3, 1, 2, 3, 2]], np.uint8)}, True))
    (tmp_path / "setid.mat").write_bytes(mat({k: np.array([v], np.uint16) for k, v in ids.items()}, True))
    train, test = (open_dataset(str(tmp_path), split, IMAGENET, 3) for split in ("train", "test"))
    assert labels(train) == [0, 1, 1] and labels(test) == [0, 2, 1, 2]
    assert abs(pixel(train, 0)[0] - 32) < 4 and abs(pixel(train, 2)[0] - 56) < 4
    assert len(train.classes) == 3
    (tmp_path / "jpg/image_00002.jpg").unlink()
    refused("missing files", "image_00002.jpg", where=tmp_path)
    (tmp_path / "setid.mat").write_bytes(
        mat({"trnid": np.array([[9]], np.uint8), "valid": np.array([[1]], np.uint8)}, True)
    )
    refused("do not match; fetch", where=tmp_path)
    (tmp_path / "setid.mat").unlink()
    refused("setid.mat", where=tmp_path)


def test_pets(tmp_path):
    for name in ("Abyssinian_1", "great_pyrenees_2", "Abyssinian_3"):
        put(tmp_path / f"images/{name}.jpg", 40)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/trainval.txt").write_text("#Image CLASS\nAbyssinian_1 1 1 1\ngreat_pyrenees_2 2 2 1\n")
    (tmp_path / "annotations/test.txt").write_text("Abyssinian_3 1 1 1\n")
    train, test = (open_dataset(str(tmp_path), split, IMAGENET, 3) for split in ("train", "test"))
    assert labels(train) == [0, 1] and train.classes == ["Abyssinian", "great_pyrenees"]
    assert labels(test) == [0]
    (tmp_path / "annotations/test.txt").write_text("Abyssinian_3 cat\n")
    refused("not an Oxford Pets list", where=tmp_path, split="test")
    (tmp_path / "annotations/test.txt").unlink()
    refused("annotations", "test.txt", where=tmp_path, split="test")


# ---------------------------------------------------------------- arrays
def test_npz(tmp_path):
    images: Any = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 4), np.uint8)
    np.savez(
        tmp_path / "plain.npz", images=images, labels=np.array([[0], [1], [1], [0]]), classes=np.array(["no", "yes"])
    )
    data = open_dataset(str(tmp_path / "plain.npz"), "test", IMAGENET, 4)
    assert np.array_equal(data.image(2), images[2]) and labels(data) == [0, 1, 1, 0] and data.classes == ["no", "yes"]
    for names in (
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ):
        parts = (images[:3, ..., 0], np.arange(3), images[3:, ..., 0], np.array([0]))
        both: dict[str, Any] = dict(zip(names, parts, strict=True))
        np.savez_compressed(tmp_path / "both.npz", **both)
        train, test = (open_dataset(str(tmp_path / "both.npz"), split, IMAGENET, 1) for split in ("train", "test"))
        assert labels(train) == [0, 1, 2] and labels(test) == [0]
        assert train.classes == test.classes == ["0", "1", "2"]
        assert np.array_equal(test.image(0), images[3, ..., :1])
    np.savez(tmp_path / "train.npz", images=images)
    assert labels(open_dataset(str(tmp_path), "train", IMAGENET, 4)) == [-1] * 4
    refused("test.npz", "missing", where=tmp_path, split="test")


def test_faults_of_npz(tmp_path):
    path = tmp_path / "x.npz"
    good = np.zeros((2, 4, 4, 3), np.uint8)
    mark = tmp_path / "mark"
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"pictures": good}, ("holds pictures", "needs images")),
        ({"images": good.astype(np.float32)}, ("float32 values have no scale", "--value-range LO HI")),
        ({"images": good[0, 0]}, ("must be (n, height, width, channels)", "uint8 4x3")),
        ({"images": good[:0]}, ("no image in it",)),
        ({"images": np.array([Attack(mark)], dtype=object)}, ("not a .npy file of numbers",)),
    ]
    for arrays, words in cases:
        np.savez(path, **arrays)
        refused(*words, where=path)
    faulty: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"images": good, "labels": np.zeros(3, int)}, ("2 images need as many",)),
        ({"images": good, "labels": np.zeros(2)}, ("whole-number",)),
        ({"images": good, "labels": np.array([0, -1])}, ("must lie in",)),
        ({"images": good, "labels": np.array([0, 2]), "classes": np.array(["a", "b"])}, ("must lie in 0..1",)),
    ]
    for arrays, words in faulty:
        np.savez(path, **arrays)
        no_labels(*words, where=path)
    assert not mark.exists()
    np.savez(path, images=good)
    refused("3 channels, the model has 5; set model.encoder.channels=3", where=path, channels=5)
    path.write_bytes(path.read_bytes()[:-40])
    refused("x.npz", "not an .npz file", where=path)


def test_datasets_can_be_pickled(tmp_path):
    files = open_dataset(str(tree(tmp_path, "a/1.png", "b/2.png")), "train", IMAGENET, 3)
    arrays = ArrayDataset("mine", np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    for data in (files, arrays):
        again = pickle.loads(pickle.dumps(data, 5))
        assert np.array_equal(np.asarray(again.image(1)), np.asarray(data.image(1))) and again.classes == data.classes


def test_a_million_paths_stay_small(tmp_path):
    paths = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(20000)]
    labels = numbered("many", np.zeros(len(paths), np.int64), len(paths), ["x"])
    data = FileDataset("many", tmp_path, Paths(paths), labels, Decoding(3))
    assert data.path(12345) == str(tmp_path / paths[12345])
    assert len(pickle.dumps(data, 5)) < 60 * len(paths)
