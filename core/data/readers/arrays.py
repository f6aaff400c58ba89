"""Datasets of one array: in memory, in .npz files, in .npy files that are read from the disk as they are needed."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Union

import numpy as np

from triport.core.data.readers.sizes import check_unpacked
from triport.core.data.sample import npy, tiff, values
from triport.core.data.sample.decode import BrokenImage, Decoding
from triport.core.data.sample.labels import Labels, numbered, unlabelled, worded
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError

Stack = Union[np.ndarray, npy.Mapped]


class ArrayDataset(Samples):
    """Images in one array: (n, height, width), (n, height, width, channels) or (n, channels, height, width).

    The axis of the channels is the one that has the model's (`values.channel_axis`). uint8 is used as it is, uint16
    and, with a value range, other types are brought to uint8 as each image is asked for (`values.to_bytes`). Grey
    images are repeated for 3 channels, colour images become their luma for 1.
    """

    def __init__(
        self,
        name: str,
        images: Stack,
        labels: np.ndarray | Labels | None = None,
        classes: Sequence[str] = (),
        channels: int | None = None,
        decoding: Decoding | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        shape = tuple(images.shape)
        if len(shape) not in (3, 4):
            size = "x".join(map(str, shape))
            raise UserError(f"{name}: images must be (n, height, width, channels), not {images.dtype} {size}")
        if not math.prod(shape):
            raise UserError(f"{name}: there is no image in it")
        if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
            size = "x".join(map(str, shape))
            raise UserError(
                f"{name}: an array of {size} is one picture; give many as (n, height, width, channels), "
                "or the folder of such files"
            )
        if decoding is None:
            decoding = Decoding(channels or (shape[3] if len(shape) == 4 else 1))
        if images.dtype.kind not in "biuf":
            raise UserError(f"{name}: images cannot be made of {images.dtype}; store uint8, uint16 or floats")
        if len(shape) == 4 and shape[2] in (1, 3) and not {shape[1], shape[3]} & {1, 3, decoding.channels}:
            size = "x".join(map(str, shape))
            raise UserError(f"{name}: {size} has the images along the last axis; store np.moveaxis(images, 3, 0)")
        values.channel_axis(shape[1:], decoding.channels, name)
        values.check_range(images.dtype, decoding.value_range, name, images[0])
        if not isinstance(labels, Labels):
            labels = unlabelled(len(images)) if labels is None else numbered(name, labels, len(images), classes)
        super().__init__(name, labels, decoding, remarks)
        self.images = np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images

    def image(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 (height, width, channels). BrokenImage where it has NaN in it."""
        last = values.channels_last(self.images[index], self.channels, self.name)
        try:
            return values.with_channels(
                values.to_bytes(last, self.decoding.value_range, self.where(index)), self.channels
            )
        except UserError as error:
            raise BrokenImage(str(error)) from None


# ---------------------------------------------------------------- named arrays: .npz, folders of .npy
_KEYS = {
    "train": ("train_images", "x_train", "images"),
    "val": ("val_images", "x_val", "test_images", "x_test", "images"),
    "test": ("test_images", "x_test", "val_images", "x_val", "images"),
}
_DAMAGE = (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error, RuntimeError)


def read_npz(path: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read a .npz file of arrays, or a folder with train.npz and val.npz or test.npz.

    Keys: images (and labels); or train_images, train_labels, val_ and test_ (as MedMNIST); or x_train, y_train, x_val,
    x_test (as Keras). Optional `classes`: names as text. A file with plain `images` is used whole.
    """
    if path.is_dir():
        wanted = {"train": ("train",), "val": ("val", "valid", "test"), "test": ("test", "val", "valid")}[split]
        path = next((path / f"{name}.npz" for name in wanted if (path / f"{name}.npz").is_file()), path / "train.npz")
        if split != "train" and path.stem == "train":
            path = path.with_name(f"{split}.npz")
    try:
        with zipfile.ZipFile(path) as file:
            members = {name.removesuffix(".npy"): name for name in file.namelist() if name.endswith(".npy")}
            return _named(path, split, decoding, members.keys(), lambda key: _member(file, members[key], path))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing") from None
    except _DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' is not an .npz file of plain arrays: {why}") from None


def _member(file: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Return an array of the archive; what would unpack to far more than the file holds is refused before it does."""
    info = file.getinfo(name)
    check_unpacked(f"{name} in '{path}'", info.file_size, info.compress_size)
    with file.open(name) as opened:
        data = opened.read(info.file_size + 1)
    return npy.from_bytes(data, f"'{path}': {name}")


def read_npy(path: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read one .npy file of images, or a folder of named arrays as in a .npz.

    Labels lie beside one file: NAME_labels.npy, or its own name with labels for images, y for x.

    train_images.npy, train_labels.npy and so on; nothing is loaded before it is needed.
    """
    if path.is_dir():
        files = {item.stem: item for item in sorted(path.iterdir()) if item.suffix == ".npy"}
        return _named(path, split, decoding, files.keys(), lambda key: npy.Mapped(files[key]))
    images = npy.Mapped(path)
    stem = _labels_of({"X": "x", "x": "x"}.get(path.stem, path.stem).replace("X_", "x_"))
    beside = [path.with_name(f"{name}.npy") for name in (f"{path.stem}_labels", "y" if stem == "x" else stem)]
    labels = next((npy.Mapped(file).whole() for file in beside if file.is_file() and file != path), None)
    return ArrayDataset(path.stem, images, labels, decoding=decoding)


def is_named_arrays(path: Path) -> bool:
    """Say whether a folder holds .npy files with the names that `read_npy` knows."""
    return any((path / f"{key}.npy").is_file() for keys in _KEYS.values() for key in keys)


def _named(
    path: Path, split: str, decoding: Decoding, names: Collection[str], load: Callable[[str], Stack]
) -> ArrayDataset:
    """Return the split of arrays that have the names of `_KEYS`."""
    key = next((key for key in _KEYS[split] if key in names), None)
    if key is None:
        raise UserError(f"'{path}' holds {', '.join(list(names)[:9])}; it needs images or {_KEYS[split][0]}")

    def plain(name: str) -> np.ndarray:
        array = load(name)
        return array.whole() if isinstance(array, npy.Mapped) else array

    partner = _labels_of(key)
    images = load(key)
    name = path.stem if path.is_file() else path.name
    if partner not in names:
        return ArrayDataset(name, images, None, decoding=decoding)
    others = [plain(other) for other in map(_labels_of, dict.fromkeys(sum(_KEYS.values(), ()))) if other in names]
    length = images.shape[0] if len(images.shape) else 0
    labels = _array_labels(name, plain(partner), length, plain("classes") if "classes" in names else None, others)
    return ArrayDataset(name, images, labels, decoding=decoding)


def _labels_of(key: str) -> str:
    return key.replace("images", "labels").replace("x_", "y_")


def _array_labels(
    name: str, values_: np.ndarray, length: int, names: np.ndarray | None, others: Sequence[np.ndarray]
) -> Labels:
    """Return labels with the names of the file, or with numbers up to the highest label of all splits."""
    if values_.dtype.kind in "US" and values_.shape == (length,):
        return worded(name, [str(word) for word in values_.astype(str)])
    classes = [str(word) for word in names.reshape(-1).astype(str)] if names is not None else []
    tops = [int(part.max()) + 1 for part in others if part.size and part.dtype.kind in "iu"]
    return numbered(name, values_, length, classes, least=min(max(tops, default=0), 1 << 20))


# ---------------------------------------------------------------- pages of a TIFF
def read_pages(path: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read a TIFF file whose pages are the images (a microscope's stack), all of one size; `tifffile` is needed."""
    where, remarks = f"'{path}'", []
    with tiff.opened(path.read_bytes(), where, "a TIFF whose pages are the images") as file:
        parts, shape = tiff.alike(file), tiff.shape_of(file, decoding.channels)
        if math.prod(shape) > 64 * decoding.max_pixels:
            raise UserError(f"{where} holds {'x'.join(map(str, shape))} values; store it as a .npy file")
        pixels = tiff.pixels_of(file, decoding.channels, where)
        if len(parts) == 1 and tiff.is_one_picture(parts[0]):
            pixels = pixels[None]
        if left := sum(len(part.pages) for part in file.series) - sum(len(part.pages) for part in parts):
            remarks.append(f"{left} pages of {where} left out: they differ from the first in size or kind")
    return ArrayDataset(path.stem, pixels, None, decoding=decoding, remarks=remarks)
