"""Datasets whose images are files, decoded when asked for: class folders and flat folders."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from triport.core.data.readers.splits import divided, split_of
from triport.core.data.sample.decode import BrokenImage, Decoding, LargeImage, Source, decode
from triport.core.data.sample.labels import Labels, numbered, unlabelled
from triport.core.data.sample.samples import Samples
from triport.core.data.sample.values import ChannelMismatch
from triport.core.errors import UserError

__all__ = ["BrokenImage", "FileDataset", "LargeImage", "Paths", "read_flat", "read_folder", "read_image", "subfolders"]

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".gif", ".npy"),
)
JUNK = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}


def read_image(path: str, decoding: Decoding | int) -> Source:
    """Return the image in a file as `decode` does; a number of channels stands for the defaults with it."""
    decoding = Decoding(decoding) if isinstance(decoding, int) else decoding
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BrokenImage(f"{path}: {error.strerror or error}") from None
    return decode(data, path, decoding)


class Paths:
    """Many paths in one array of bytes: a million cost 50 MB, and loader processes share them."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q")
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Append a path."""
        self._bytes += os.fsencode(path)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all bytes, and where each path ends."""
        return np.frombuffer(self._bytes, np.uint8), np.frombuffer(self._ends, np.int64)


class FileDataset(Samples):
    """Images in files, decoded when asked for."""

    def __init__(
        self, name: str, root: Path, paths: Paths, labels: Labels, decoding: Decoding, remarks: Sequence[str] = ()
    ) -> None:
        if not len(paths):
            raise UserError(f"no image in '{root}' (looked for {' '.join(SUFFIXES)})")
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


# ---------------------------------------------------------------- what lies in folders
@dataclass
class Found:
    """Images below a folder, and what was left out."""

    paths: Paths = field(default_factory=Paths)
    dangling: list[str] = field(default_factory=list)  # links that lead nowhere
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by their ending
    odd: Counter[str] = field(default_factory=Counter)  # endings that are read here and not by torchvision

    def remarks(self) -> list[str]:
        """Return a line for each kind of thing that was left out."""
        lines = []
        if self.dangling:
            lines.append(f"{_count(len(self.dangling), 'link')} to nowhere left out, first '{self.dangling[0]}'")
        for endings, what in (
            (self.others, "left out: not images by their ending"),
            (self.odd, "read, which torchvision's ImageFolder leaves out"),
        ):
            if endings:
                kinds = ", ".join(f"{number} {ending or 'without one'}" for ending, number in endings.most_common(5))
                lines.append(f"{_count(endings.total(), 'file')} {what} ({kinds})")
        return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def subfolders(folder: Path | str) -> list[str]:
    """Return the names of the folders in `folder`, sorted; hidden ones and what systems leave behind apart."""
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if not _hidden(item.name) and item.is_dir())


def is_image(name: str) -> bool:
    """Say whether a file is an image by its name."""
    return name.lower().endswith(SUFFIXES) and not _hidden(name)


def loose_images(folder: Path | str) -> list[str]:
    """Return the images directly in `folder`, sorted."""
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if is_image(item.name) and item.is_file())


def gather(folder: str, prefix: str, found: Found, above: tuple[str, ...] = ()) -> None:
    """Add the images in `folder` and all folders below it, sorted, named from `prefix` on. Links that loop are cut."""
    with os.scandir(folder) as items:
        entries = sorted(items, key=lambda item: item.name)
    for item in entries:
        name = item.name
        if _hidden(name):
            continue
        try:
            folder_too, file_too = item.is_dir(), item.is_file()
        except OSError:  # links that lead to each other
            folder_too = file_too = False
        if folder_too:
            if item.is_symlink() and any(Path(item.path).samefile(parent) for parent in (folder, *above)):
                continue
            gather(item.path, f"{prefix}{name}/", found, (folder, *above))
        elif not file_too:
            found.dangling.append(prefix + name)
        elif name.lower().endswith(SUFFIXES):
            found.paths.add(prefix + name)
            if name.lower().endswith((".jfif", ".jpe", ".npy")):
                found.odd[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122 a Path for each file costs a second
        else:
            found.others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122


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
    return root / chosen, _beside(root, f"the folders {', '.join(names[:4])}")


def _beside(folder: Path, what: str) -> list[str]:
    loose = loose_images(folder)
    if not loose:
        return []
    return [f"{_count(len(loose), 'picture')} beside {what} left out, first '{folder / loose[0]}'"]


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
    remarks += _beside(folder, "class folders")
    return _read_classes(folder, present, classes, split == "train", decoding, remarks)


def _read_classes(
    folder: Path, present: list[str], classes: list[str], train: bool, decoding: Decoding, remarks: list[str]
) -> FileDataset:
    number = {name: index for index, name in enumerate(classes)}
    found, counts, empty = Found(), np.zeros(len(present), np.int64), []
    for index, name in enumerate(present):
        before = len(found.paths)
        gather(f"{folder}/{name}", f"{name}/", found)
        counts[index] = len(found.paths) - before
        if not counts[index]:
            empty.append(name)
    remarks = [*remarks, *found.remarks()]
    if strange := [name for name in present if name not in number]:
        fault = f"class folder '{folder / strange[0]}' has no counterpart in the training folder"
        return FileDataset(folder.name, folder, found.paths, unlabelled(len(found.paths), fault), decoding, remarks)
    numbers = np.repeat(np.array([number[name] for name in present], np.int64), counts)
    labels = numbered(folder.name, numbers, len(numbers), classes)
    if empty:
        remarks.append(f"{_count(len(empty), 'class folder')} without an image, first '{folder / empty[0]}'")
        if train:  # kNN can do with it, a classifier cannot
            labels = replace(labels, fault=f"class folder '{folder / empty[0]}' has no image; fill it or remove it")
    return FileDataset(folder.name, folder, found.paths, labels, decoding, remarks)


def read_flat(root: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read every image in and below a folder, without classes."""
    folder, remarks = split_folder(root, split)
    found = Found()
    gather(str(folder), "", found)
    return FileDataset(
        folder.name, folder, found.paths, unlabelled(len(found.paths)), decoding, remarks + found.remarks()
    )
