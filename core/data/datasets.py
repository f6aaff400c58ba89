"""Opens a dataset by what lies at a path: folders, lists, arrays, shards, parquet, CIFAR, MNIST, Flowers, Pets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from triport.core.data.brightness import dim
from triport.core.data.greyed import greyed
from triport.core.data.readers.archives import read_archive
from triport.core.data.readers.arrays import ArrayDataset, read_npy, read_npz, read_pages
from triport.core.data.readers.cifar import read_cifar10, read_cifar100
from triport.core.data.readers.idx import read_idx, read_shipped
from triport.core.data.readers.image_files import FileDataset, read_flat, read_folder
from triport.core.data.readers.lists import read_list
from triport.core.data.readers.parquet import read_parquet
from triport.core.data.readers.shards import read_shards
from triport.core.data.readers.transfer import read_flowers, read_pets
from triport.core.data.recognise import INSIDE, recognise
from triport.core.data.sample.decode import MAX_PIXELS, BrokenImage, Decoding, LargeImage
from triport.core.data.sample.samples import Samples
from triport.core.data.sample.values import ChannelMismatch
from triport.core.errors import UserError, closest
from triport.core.spec import DataSpec

__all__ = [
    "ArrayDataset",
    "BrokenImage",
    "ChannelMismatch",
    "Dataset",
    "FileDataset",
    "LargeImage",
    "check_apart",
    "check_labelled",
    "check_readable",
    "open_dataset",
    "remarks",
]

Split = Literal["train", "val", "test"]
SHIPPED = "fashion-mnist"
LOOKED_AT = 16  # images of a data set before it is said that none can be read


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


KINDS: dict[str, Callable[[Path, str, Decoding], Samples]] = {
    "folder": read_folder,
    "flat": read_flat,
    "list": read_list,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "archive": read_archive,
    "flowers": read_flowers,
    "pets": read_pets,
    "npz": read_npz,
    "npy": read_npy,
    "pages": read_pages,
    "shards": read_shards,
    "parquet": read_parquet,
}


def open_dataset(
    where: str | None,
    split: Split,
    data: DataSpec,
    channels: int,
    *,
    max_pixels: int = MAX_PIXELS,
    exif: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Samples:
    """Open the `split` of the dataset at `where` for a model with so many input channels.

    where: a path, whose kind is found from what lies there; "kind:path" (the kinds of KINDS) to say it;
        "fashion-mnist" for the 10,000 images that come with the project, or None for the same where the recipe `data`
        is made for them.
    split: "val" is what a run is scored by and chooses its best on; of data without one it is the test split, and of
        data without a test split that is "val".
    max_pixels, exif, value_range: `Decoding`.
    Data that is not divided (a folder of classes, one list, one .npz of `images`) is used whole for any split;
    `check_apart` finds out when training and test images are the same. Faulty labels are not an error here: the images
    have none then, and `check_labelled` says why.
    Raises UserError for whatever cannot be read, in one line with the remedy.
    """
    if where is None and data.name != SHIPPED:
        raise UserError(f"this recipe is made for {data.name}: say where it lies (--data PATH), or --data {SHIPPED}")
    decoding = Decoding(channels, max_pixels, exif, value_range)
    if where is None or where == SHIPPED:
        return read_shipped(split, decoding)
    kind, path = _parse(where)
    if not path.exists():
        raise UserError(f"no file or folder '{path}'; give the path of a dataset or '{SHIPPED}'")
    try:
        if kind is None:
            kind, path = recognise(path)
        else:
            path = next((path / name for name in INSIDE.get(kind, ()) if (path / name).is_dir()), path)
        return KINDS[kind](path, split, decoding)
    except PermissionError as error:
        raise UserError(f"'{error.filename}' may not be read; change its permissions") from None
    except (NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"'{path}' cannot be read as '{kind}': it is a {'folder' if path.is_dir() else 'file'}"
        ) from None


def kind_of(where: str) -> str:
    """Return the kind of what lies at `where`, as `open_dataset` takes it."""
    if where == SHIPPED:
        return "idx"
    kind, path = _parse(where)
    return kind or recognise(path)[0]


def _parse(where: str) -> tuple[str | None, Path]:
    kind, colon, rest = where.partition(":")
    if not colon or Path(where).exists():
        return None, Path(where).expanduser()
    if kind not in KINDS:
        raise UserError(f"no kind of dataset '{kind}' (there are {', '.join(KINDS)}).{closest(kind, KINDS)}")
    return kind, Path(rest).expanduser()


def remarks(*datasets: Dataset | None) -> list[str]:
    """Return the lines about what was left out of datasets or is odd in them, each once."""
    known = [whole for part in datasets if isinstance(whole := getattr(part, "whole", part), Samples)]
    lines = [line for part in known for line in (*part.remarks, greyed(part), dim(part)) if line]
    faults = [f"without labels: {part.fault}" for part in known if part.fault and not part.classes]
    return list(dict.fromkeys(lines + faults))


def check_labelled(dataset: Dataset, classes: int | None = None) -> None:
    """Raise UserError unless the images have labels, of two classes or more, and of `classes` where that is given."""
    if isinstance(dataset, Samples) and dataset.fault:
        raise UserError(dataset.fault)
    if not dataset.classes or dataset.label(0) < 0:
        raise UserError(f"'{dataset.name}' has no labels; this task needs one folder of images for each class")
    if len(dataset.classes) < 2:
        raise UserError(f"'{dataset.name}' has one class only, '{dataset.classes[0]}'; a classifier needs two or more")
    if classes is not None and len(dataset.classes) != classes:
        remedy = f"set model.objective.classes={len(dataset.classes)} or give the data that it was made for"
        raise UserError(f"'{dataset.name}' has {len(dataset.classes)} classes, the model has {classes}; {remedy}")


def check_readable(dataset: Dataset) -> None:
    """Raise UserError where none of some evenly spaced images can be read; mostly the first one can."""
    first = ""
    looked = np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int)).tolist()
    for index in looked:
        try:
            dataset.image(index)
            return
        except BrokenImage as error:
            first = first or str(error)
    raise UserError(f"of {len(looked)} images looked at of '{dataset.name}' none can be read, the first: {first}")


def check_apart(train: Dataset, test: Dataset) -> None:
    """Raise UserError where the training and the test images are the same: such an accuracy says nothing."""
    same = len(train) == len(test)
    if same and isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset):
        same = _same_arrays(train, test)
    elif same and isinstance(train, Samples) and type(train) is type(test):
        same = all(train.where(index) == test.where(index) for index in (0, len(train) // 2, len(train) - 1))
    else:
        same = train is test
    if same:
        raise UserError(
            f"training and test images are the same ('{train.name}'); divide them into train and val folders"
        )


def _same_arrays(train: ArrayDataset, test: ArrayDataset) -> bool:
    if isinstance(train.images, np.ndarray) and isinstance(test.images, np.ndarray):
        return np.array_equal(train.images, test.images)
    return getattr(train.images, "path", None) == getattr(test.images, "path", "")
