"""Datasets whose images are files, decoded when asked for: class folders and flat folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from triport.core.data.readers.splits import divided, split_of, splits_among
from triport.core.data.readers.tree import (
    SUFFIXES,
    Found,
    Paths,
    count,
    gather,
    hidden_folders,
    loose_images,
    subfolders,
)
from triport.core.data.sample.decode import BrokenImage, Decoding, LargeImage, Source, decode
from triport.core.data.sample.labels import Labels, numbered, unlabelled
from triport.core.data.sample.samples import Samples
from triport.core.data.sample.values import ChannelMismatch
from triport.core.errors import UserError

__all__ = ["BrokenImage", "FileDataset", "LargeImage", "read_flat", "read_folder", "read_image"]


def read_image(path: str, decoding: Decoding | int) -> Source:
    """Return the image in a file as `decode` does; a number of channels stands for the defaults with it."""
    decoding = Decoding(decoding) if isinstance(decoding, int) else decoding
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BrokenImage(f"{path}: {error.strerror or error}") from None
    return decode(data, path, decoding)


class FileDataset(Samples):
    """Images in files, decoded when asked for."""

    def __init__(
        self, name: str, root: Path, paths: Paths, labels: Labels, decoding: Decoding, remarks: Sequence[str] = ()
    ) -> None:
        if not len(paths):
            raise UserError("; ".join([f"no image in '{root}' (looked for {' '.join(SUFFIXES)})", *remarks]))
        super().__init__(name, labels, decoding, remarks)
        self.root = str(root)
        self._paths, self._ends = paths.arrays()
        if decoding.channels not in (1, 3):  # pictures rarely have that many: say so now, not in the first batch
            try:
                self.image(0)
            except BrokenImage as error:
                if error.channels:
                    raise ChannelMismatch(str(error), error.channels) from None
                raise UserError(str(error)) from None

    def listing(self) -> bytes:
        """Return all paths, relative to `root`, with where each ends."""
        return self._paths.tobytes() + self._ends.tobytes()

    def path(self, index: int) -> str:
        """Return where image `index` lies."""
        start = self._ends[index - 1] if index else 0
        return str(Path(self.root, os.fsdecode(self._paths[start : self._ends[index]].tobytes())))

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return self.path(index)

    def image(self, index: int) -> Source:
        """Return image `index`, mode RGB or L or uint8 (height, width, channels). Raises BrokenImage."""
        return read_image(self.path(index), self.decoding)


# ---------------------------------------------------------------- class folders and flat folders
def split_folder(root: Path, split: str) -> tuple[Path, list[str]]:
    """Return the folder of a split where `root` is divided, else `root` itself; and remarks about what lies beside."""
    names = subfolders(root)
    if not divided(root, names):
        return root, []
    chosen = split_of({name: name for name in names}, split)
    if chosen is None:
        wanted = "train" if split == "train" else "val or test"
        raise UserError(f"'{root}' has {', '.join(names)} but no {wanted} folder; add one")
    remarks = _beside(root, f"the folders {', '.join(names[:4])}")
    known = splits_among(names)
    if others := [name for name in names if name not in known]:
        remarks.append(f"beside {', '.join(sorted(known))} left out: {', '.join(others[:4])} in '{root}'")
    return root / chosen, remarks


def _lists(*folders: Path) -> list[str]:
    """Return a line where lists lie in the folders, which may have the labels."""
    found: list[str] = []
    for folder in dict.fromkeys(folders):
        with os.scandir(folder) as items:
            found += sorted(f"'{item.path}'" for item in items if item.name.lower().endswith((".csv", ".tsv")))
    return [f"not read: {', '.join(found[:3])}; if images and labels are listed there, give that file"] if found else []


def _beside(folder: Path, what: str) -> list[str]:
    loose = loose_images(folder)
    if not loose:
        return []
    return [f"{count(len(loose), 'picture')} beside {what} left out, first '{folder / loose[0]}'"]


def read_folder(root: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read root/{train,val,test}/<class>/* or root/<class>/*, classes numbered by sorted name.

    The classes of another split are numbered as the training split's, so that a class without test images shifts
    nothing. Pictures beside class folders are left out with a remark; where there is one folder at most, they are
    taken without classes, as `read_flat`.
    """
    folder, remarks = split_folder(root, split)
    present = subfolders(folder)
    if not present or (len(present) == 1 and loose_images(folder)):
        return read_flat(root, split, decoding)
    classes = present
    if folder != root and split != "train":
        trained = split_of({name: name for name in subfolders(root)}, "train")
        classes = (subfolders(root / trained) if trained else []) or present
    remarks += [*_beside(folder, "class folders"), *_lists(root, folder)]
    return _read_classes(folder, present, classes, split == "train", decoding, remarks)


def _read_classes(
    folder: Path, present: list[str], classes: list[str], train: bool, decoding: Decoding, remarks: list[str]
) -> FileDataset:
    number = {name: index for index, name in enumerate(classes)}
    found, counts, empty = Found(hidden=hidden_folders(folder)), np.zeros(len(present), np.int64), []
    for index, name in enumerate(present):
        before = len(found.paths)
        gather(f"{folder}/{name}", f"{name}/", found)
        counts[index] = len(found.paths) - before
        if not counts[index]:
            empty.append(name)
    remarks = [*remarks, *found.remarks()]
    if len(present) == 1 and len(inner := subfolders(folder / present[0])) > 1:
        remarks.append(
            f"all images are of one class, '{present[0]}'; if its folders {', '.join(inner[:4])} are the classes, "
            f"give '{folder / present[0]}'"
        )
    if strange := [name for name in present if name not in number]:
        fault = f"class folder '{folder / strange[0]}' has no counterpart in the training folder"
        return FileDataset(folder.name, folder, found.paths, unlabelled(len(found.paths), fault), decoding, remarks)
    numbers = np.repeat(np.array([number[name] for name in present], np.int64), counts)
    labels = numbered(folder.name, numbers, len(numbers), classes)
    if empty:
        remarks.append(f"{count(len(empty), 'class folder')} without an image, first '{folder / empty[0]}'")
        if train:  # kNN can do with it, a classifier cannot
            labels = replace(labels, fault=f"class folder '{folder / empty[0]}' has no image; fill it or remove it")
    return FileDataset(folder.name, folder, found.paths, labels, decoding, remarks)


def read_flat(root: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read every image in and below a folder, without classes."""
    folder, remarks = split_folder(root, split)
    found = Found()
    gather(str(folder), "", found)
    return FileDataset(
        folder.name,
        folder,
        found.paths,
        unlabelled(len(found.paths)),
        decoding,
        remarks + _lists(root, folder) + found.remarks(),
    )
