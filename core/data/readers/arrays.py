"""Datasets held in memory: arrays, .npz files, (Fashion-)MNIST's idx files, CIFAR binary or pickled."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core.data.readers import safe_pickle
from triport.core.errors import UserError

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"]


class ArrayDataset:
    """Images in one uint8 array (n, height, width, channels) or (n, height, width).

    Grey images are repeated for 3 channels, colour images become their luma for 1; any other difference between the
    array's channels and `channels` (those of the model) is a UserError.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str] = (),
        channels: int | None = None,
    ) -> None:
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4:
            shape = "x".join(map(str, images.shape))
            raise UserError(f"{name}: images must be uint8 (n, height, width, channels), not {images.dtype} {shape}")
        if not images.size:
            raise UserError(f"{name}: there is no image in it")
        channels = images.shape[3] if channels is None else channels
        if images.shape[3] != channels and (images.shape[3], channels) not in ((1, 3), (3, 1)):
            raise UserError(
                f"{name}: images have {images.shape[3]} channels, the model has {channels}; "
                f"set model.encoder.channels={images.shape[3]}"
            )
        self.name, self.images, self.channels = name, np.ascontiguousarray(images), channels
        self.labels = np.full(len(images), -1) if labels is None else _checked(name, labels, len(images), len(classes))
        top = int(self.labels.max()) + 1
        self.classes = list(classes) or [str(number) for number in range(top)]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 (height, width, channels)."""
        image = self.images[index]
        if image.shape[2] == self.channels:
            return image
        if self.channels == 3:
            return np.repeat(image, 3, axis=2)
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]

    def label(self, index: int) -> int:
        """Return the class of image `index`, or -1 where nobody knows it."""
        return int(self.labels[index])


def _checked(name: str, labels: np.ndarray, length: int, classes: int) -> np.ndarray:
    labels = labels.reshape(len(labels), -1)[:, 0] if labels.size == len(labels) else labels
    if labels.shape != (length,) or labels.dtype.kind not in "iu":
        raise UserError(f"{name}: {length} images need as many whole-number labels, not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or (classes and labels.max() >= classes):
        raise UserError(f"{name}: labels must lie in 0..{classes - 1 if classes else 'classes - 1'}")
    return labels.astype(np.int64)


# ---------------------------------------------------------------- npz
_KEYS = {"train": ("train_images", "x_train"), "test": ("test_images", "x_test")}


def read_npz(path: Path, split: str, channels: int) -> ArrayDataset:
    """Read a .npz file of arrays, or a folder with train.npz and test.npz.

    Keys: images (and labels); or train_images, train_labels, test_images, test_labels (as MedMNIST); or x_train,
    y_train, x_test, y_test (as Keras). Optional `classes`: names as text. A file with plain `images` is used whole.
    """
    path = path / f"{split}.npz" if path.is_dir() else path
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            key = next((key for key in ("images", *_KEYS[split]) if key in file.files), None)
            if key is None:
                raise UserError(f"'{path}' holds {', '.join(file.files)}; it needs images or {_KEYS[split][0]}")
            other = key.replace("images", "labels").replace("x_", "y_")
            labels = file[other] if other in file.files else None
            images, classes = file[key], _npz_classes(file, labels)
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"'{path}' is not an .npz file of plain arrays: {str(error).splitlines()[0]}") from None
    return ArrayDataset(path.stem, images, labels, classes, channels)


def _npz_classes(file: Mapping[str, np.ndarray], labels: np.ndarray | None) -> list[str]:
    """Return the names in the file, or numbers up to the highest label of both splits."""
    if "classes" in file:
        return [str(name) for name in file["classes"]]
    if labels is None or labels.dtype.kind not in "iu":
        return []
    both = [file[name] for name in ("train_labels", "test_labels", "y_train", "y_test") if name in file] or [labels]
    return [str(number) for number in range(max((int(part.max()) + 1 for part in both if part.size), default=0))]


# ---------------------------------------------------------------- idx files
IDX_IMAGES = re.compile(r"images[-.]idx3-ubyte(\.gz)?$")


def read_idx(path: Path, split: str, channels: int, classes: Sequence[str] = ()) -> ArrayDataset:
    """Read MNIST-like idx files, gzipped or not: one file of images, or a folder with train-* and t10k-* (or test-*).

    A file that is given alone is used whole; its labels lie beside it.
    """
    if path.is_dir():
        names = ("train-",) if split == "train" else ("t10k-", "test-")
        found = [item for item in sorted(path.iterdir()) if IDX_IMAGES.search(item.name)]
        chosen = [item for item in found if any(name in item.name for name in names)]
        if not chosen:
            raise UserError(f"'{path}' has no {names[0]}images-idx3-ubyte(.gz) file; put it there")
        path = chosen[0]
    images = _idx(path, 3)
    beside = path.name.replace("images", "labels").replace("idx3", "idx1")
    options = (path.with_name(beside), path.with_name(beside.removesuffix(".gz")), path.with_name(beside + ".gz"))
    partner = next((item for item in options if item.is_file()), None)
    if partner is None:
        raise UserError(f"'{path}' has no labels beside it; put '{beside}' there")
    return ArrayDataset(f"{path.parent.name} {split}", images, _idx(partner, 1), classes, channels)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing") from None
    except (OSError, EOFError, zlib.error):
        raise UserError(f"'{path}' is damaged; fetch it again") from None
    head = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < head:
        raise UserError(f"'{path}' is not an idx file of bytes with {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, 4))
    if len(data) != head + math.prod(shape):
        raise UserError(f"'{path}' is cut short; fetch it again")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def read_shipped(split: str, channels: int) -> ArrayDataset:
    """Read the 10,000 Fashion-MNIST images that come with the project: the first 8,000 train, the last 2,000 test.

    They are the test half of Fashion-MNIST (t10k), in its order: classes are mixed evenly all through it. A model
    pretrained on them must therefore never be scored on the official test half.
    """
    folder = Path(__file__).parents[1] / "fashion_mnist"
    whole = read_idx(folder, "test", channels, FASHION)
    part = slice(0, 8000) if split == "train" else slice(8000, None)
    return ArrayDataset(f"fashion-mnist {split}", whole.images[part], whole.labels[part], FASHION, channels)


# ---------------------------------------------------------------- CIFAR
def read_cifar10(root: Path, split: str, channels: int) -> ArrayDataset:
    """Read CIFAR-10, binary (data_batch_1.bin ...) or pickled (data_batch_1 ...)."""
    names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    return _cifar(root, split, channels, names, "cifar-10", "labels", ("batches.meta", "label_names"))


def read_cifar100(root: Path, split: str, channels: int) -> ArrayDataset:
    """Read CIFAR-100 with its 100 fine labels, binary (train.bin) or pickled (train)."""
    return _cifar(root, split, channels, [split], "cifar-100", "fine_labels", ("meta", "fine_label_names"))


def _cifar(
    root: Path, split: str, channels: int, names: list[str], title: str, key: str, meta: tuple[str, str]
) -> ArrayDataset:
    binary = (root / f"{names[0]}.bin").is_file()
    images, labels = [], []
    for name in names:
        path = root / (f"{name}.bin" if binary else name)
        if not path.is_file():
            raise UserError(f"{title} needs '{path}'; unpack the whole archive there")
        pixels, numbers = _cifar_binary(path, 1 if title == "cifar-10" else 2) if binary else _cifar_pickle(path, key)
        images.append(pixels)
        labels.append(numbers)
    planes = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = _cifar_classes(root, binary, *meta)
    return ArrayDataset(f"{title} {split}", planes, np.concatenate(labels), classes, channels)


def _cifar_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not data.size or data.size % (label_bytes + 3072):
        raise UserError(f"'{path}' is cut short or no CIFAR file; fetch it again")
    rows = data.reshape(-1, label_bytes + 3072)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)  # CIFAR-100: coarse, then fine


def _cifar_pickle(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    found = safe_pickle.load(path)
    pixels, numbers = found.get("data"), found.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072 or not numbers:
        raise UserError(f"'{path}' is no CIFAR file: it lacks data or {key}")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise UserError(f"'{path}' is no CIFAR file: its {key} are not whole numbers")
    return pixels, np.array(numbers, np.int64)


def _cifar_classes(root: Path, binary: bool, meta: str, key: str) -> list[str]:
    if not binary:
        return safe_pickle.texts(safe_pickle.load(root / meta).get(key, [])) if (root / meta).is_file() else []
    path = root / ("batches.meta.txt" if meta == "batches.meta" else "fine_label_names.txt")
    return path.read_text("utf-8").split() if path.is_file() else []
