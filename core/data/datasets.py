"""Opens a dataset by what lies at a path: folders, lists, CIFAR, MNIST, Flowers, Pets, arrays, the shipped default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from triport.core.data.readers.arrays import (
    IDX_IMAGES,
    ArrayDataset,
    read_cifar10,
    read_cifar100,
    read_idx,
    read_npz,
    read_shipped,
)
from triport.core.data.readers.image_files import (
    BrokenImage,
    FileDataset,
    has_images,
    read_flat,
    read_folder,
    subfolders,
)
from triport.core.data.readers.lists import read_flowers, read_list, read_pets
from triport.core.errors import UserError, closest
from triport.core.spec import DataSpec

__all__ = ["ArrayDataset", "BrokenImage", "Dataset", "FileDataset", "check_apart", "check_labelled", "open_dataset"]

Split = Literal["train", "test"]
SHIPPED = "fashion-mnist"


class Dataset(Protocol):
    """What the loader needs of a dataset. It must be picklable, as loader processes get a copy."""

    name: str
    classes: list[str]  # empty where the images have no labels
    channels: int

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def image(self, index: int, /) -> Image.Image | np.ndarray:
        """Return an image in mode RGB or L, or uint8 (height, width, channels). May raise BrokenImage."""
        ...

    def label(self, index: int, /) -> int:
        """Return the class, or -1 where nobody knows it."""
        ...


KINDS: dict[str, Callable[[Path, str, int], Dataset]] = {
    "folder": read_folder,
    "flat": read_flat,
    "list": read_list,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "flowers": read_flowers,
    "pets": read_pets,
    "npz": read_npz,
}
# where the archives of known datasets unpack to, below a folder that the user may name instead
_INSIDE = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
    "idx": ("raw", "FashionMNIST/raw", "MNIST/raw"),
    "flowers": ("flowers-102",),
    "pets": ("oxford-iiit-pet",),
}


def open_dataset(where: str | None, split: Split, data: DataSpec, channels: int) -> Dataset:
    """Open the `split` of the dataset at `where` for a model with so many input channels.

    where: a path, whose kind is found from what lies there; "kind:path" (folder, flat, list, idx, cifar10, cifar100,
        flowers, pets, npz) to say it; "fashion-mnist" for the 10,000 images that come with the project, or None for
        the same where the recipe `data` is made for them.
    Data that is not divided (a folder of classes, one list, one .npz of `images`) is used whole for either split;
    `check_apart` finds out when training and test images are the same.
    Raises UserError for whatever cannot be read, in one line with the remedy.
    """
    if where is None and data.name != SHIPPED:
        raise UserError(f"this recipe is made for {data.name}: say where it lies (--data PATH), or --data {SHIPPED}")
    if where is None or where == SHIPPED:
        return read_shipped(split, channels)
    kind, path = _parse(where)
    if not path.exists():
        raise UserError(f"no file or folder '{path}'; give the path of a dataset or '{SHIPPED}'")
    try:
        if kind is None:
            kind, path = _recognise(path)
        else:
            path = next((path / name for name in _INSIDE.get(kind, ()) if (path / name).is_dir()), path)
        return KINDS[kind](path, split, channels)
    except PermissionError as error:
        raise UserError(f"'{error.filename}' may not be read; change its permissions") from None
    except (NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"'{path}' cannot be read as '{kind}': it is a {'folder' if path.is_dir() else 'file'}"
        ) from None


def _parse(where: str) -> tuple[str | None, Path]:
    kind, colon, rest = where.partition(":")
    if not colon or Path(where).exists():
        return None, Path(where).expanduser()
    if kind not in KINDS:
        raise UserError(f"no kind of dataset '{kind}' (there are {', '.join(KINDS)}).{closest(kind, KINDS)}")
    return kind, Path(rest).expanduser()


def _recognise(path: Path) -> tuple[str, Path]:
    """Return the kind of what lies at `path`, and where exactly it lies."""
    if path.is_file():
        if path.suffix == ".npz":
            return "npz", path
        if IDX_IMAGES.search(path.name):
            return "idx", path
        if path.suffix in (".txt", ".lst"):
            return "list", path
        raise UserError(f"'{path}' is no dataset: give a folder, an .npz file, an idx file or a .txt list of images")
    if kind := _kind_of_folder(path):
        return kind, path
    for kind, names in _INSIDE.items():
        for name in names:
            if (path / name).is_dir() and _kind_of_folder(path / name) == kind:
                return kind, path / name
    if not subfolders(path) and not has_images(path):
        raise UserError(f"folder '{path}' has no image in it")
    return ("flat" if has_images(path) else "folder"), path


def _kind_of_folder(path: Path) -> str | None:
    """Return the kind that tell-tale files give away, or None."""

    def has(*names: str) -> bool:
        return any((path / name).is_file() for name in names)

    if has("train_list.txt", "val_list.txt", "test_list.txt"):
        return "list"
    if has("data_batch_1", "data_batch_1.bin", "test_batch", "test_batch.bin"):
        return "cifar10"
    if has("train.bin", "test.bin") or (has("meta") and has("train", "test")):
        return "cifar100"
    if has("imagelabels.mat", "setid.mat"):
        return "flowers"
    if has("annotations/trainval.txt", "annotations/test.txt"):
        return "pets"
    if has("train.npz", "test.npz"):
        return "npz"
    return "idx" if any(IDX_IMAGES.search(item.name) for item in path.iterdir()) else None


def check_labelled(dataset: Dataset, classes: int | None = None) -> None:
    """Raise UserError unless the images have labels, of two classes or more, and of `classes` where that is given."""
    if not dataset.classes or dataset.label(0) < 0:
        raise UserError(f"'{dataset.name}' has no labels; this task needs one folder of images for each class")
    if len(dataset.classes) < 2:
        raise UserError(f"'{dataset.name}' has one class only, '{dataset.classes[0]}'; a classifier needs two or more")
    if classes is not None and len(dataset.classes) != classes:
        remedy = f"set model.objective.classes={len(dataset.classes)} or give the data that it was made for"
        raise UserError(f"'{dataset.name}' has {len(dataset.classes)} classes, the model has {classes}; {remedy}")


def check_apart(train: Dataset, test: Dataset) -> None:
    """Raise UserError where the training and the test images are the same: such an accuracy says nothing."""
    same = len(train) == len(test)
    if same and isinstance(train, FileDataset) and isinstance(test, FileDataset):
        same = all(train.path(index) == test.path(index) for index in (0, len(train) // 2, len(train) - 1))
    elif same and isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset):
        same = np.array_equal(train.images, test.images)
    else:
        same = train is test
    if same:
        raise UserError(
            f"training and test images are the same ('{train.name}'); divide them into train and val folders"
        )
