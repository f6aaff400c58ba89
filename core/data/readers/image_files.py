"""Datasets whose images are files, decoded when asked for: class folders and flat folders."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
TRAIN, TEST = ("train",), ("val", "test", "validation", "valid")
MAX_PIXELS = 89_478_485  # above this Pillow itself warns of a decompression bomb
_UNREADABLE = (
    OSError,  # truncated, unknown format, gone, unreadable
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class BrokenImage(Exception):
    """An image that cannot be read. The loader counts these and puts another in its place."""


def read_image(path: str, channels: int) -> Image.Image:
    """Return the image in mode RGB (3 channels) or L (1). BrokenImage says the path and why it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{path}: {image.width}x{image.height} pixels is more than an image should have")
            return image.convert("RGB" if channels == 3 else "L")
    except _UNREADABLE as error:
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise BrokenImage(f"{path}: the file is empty") from None
        if isinstance(error, Image.UnidentifiedImageError):
            raise BrokenImage(f"{path}: not an image") from None
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokenImage(f"{path}: {' '.join(why.split()) or type(error).__name__}") from None


class FileDataset:
    """Images in files, decoded when asked for.

    The paths stand in one array of bytes, so that a million of them cost 50 MB and are shared by all loader processes.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | np.ndarray | None,
        classes: list[str],
        channels: int,
    ) -> None:
        if not len(paths):
            raise UserError(f"no image in '{root}' (looked for {' '.join(SUFFIXES)})")
        if channels not in (1, 3):
            raise UserError(f"image files give 1 or 3 channels, the model has {channels}; use an .npz file of arrays")
        coded = [os.fsencode(path) for path in paths]
        self.name, self.root, self.classes, self.channels = name, str(root), classes, channels
        self.labels = np.full(len(paths), -1) if labels is None else np.asarray(labels, np.int64)
        self._paths = np.frombuffer(b"".join(coded), np.uint8)
        self._ends = np.cumsum([len(path) for path in coded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> str:
        """Return where image `index` lies."""
        start = self._ends[index - 1] if index else 0
        return str(Path(self.root, os.fsdecode(self._paths[start : self._ends[index]].tobytes())))

    def listing(self) -> bytes:
        """Return all paths, relative to `root`, with where each ends."""
        return self._paths.tobytes() + self._ends.tobytes()

    def image(self, index: int) -> Image.Image:
        """Return image `index` in mode RGB or L. Raises BrokenImage."""
        return read_image(self.path(index), self.channels)

    def label(self, index: int) -> int:
        """Return the class of image `index`, or -1 where nobody knows it."""
        return int(self.labels[index])


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, hidden ones left out."""
    return sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def has_images(folder: Path) -> bool:
    """Say whether an image lies directly in `folder`."""
    with os.scandir(folder) as items:
        return any(_is_image(item) for item in items)


def _is_image(item: os.DirEntry[str]) -> bool:
    return item.name.lower().endswith(SUFFIXES) and not item.name.startswith(".") and item.is_file()


def images_below(folder: Path, prefix: str = "", seen: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
    """Return the images in `folder` and all folders below it, sorted, relative to it. Links that loop are cut."""
    state = folder.stat()
    if (state.st_dev, state.st_ino) in seen:
        return []
    seen = seen | {(state.st_dev, state.st_ino)}
    found: list[str] = []
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        if _is_image(item):
            found.append(prefix + item.name)
        elif item.is_dir() and not item.name.startswith("."):
            found += images_below(folder / item.name, f"{prefix}{item.name}/", seen)
    return found


# ---------------------------------------------------------------- class folders and flat folders
def split_folder(root: Path, split: str) -> Path:
    """Return root/train or root/val (or test, validation, valid) where `root` is so divided, else `root` itself."""
    names = subfolders(root)
    divided = "train" in names or (bool(names) and set(names) <= {*TRAIN, *TEST})
    if not divided:
        return root
    wanted = TRAIN if split == "train" else TEST
    for name in wanted:
        if name in names:
            return root / name
    raise UserError(f"'{root}' has {', '.join(names)} but no {' or '.join(wanted[:2])} folder; add one")


def read_folder(root: Path, split: str, channels: int) -> FileDataset:
    """Read root/{train,val|test}/<class>/* or root/<class>/*, classes numbered by sorted name.

    The classes of a test split are numbered as the training split's, so that a class without test images shifts
    nothing. Where images lie directly in the folder they are taken without classes, as `read_flat`.
    """
    folder = split_folder(root, split)
    if has_images(folder) or not subfolders(folder):
        return read_flat(folder, split, channels)
    present = subfolders(folder)
    classes = present
    if folder.parent == root and split != "train" and (root / "train").is_dir():
        classes = subfolders(root / "train") or present
        if strange := sorted(set(present) - set(classes)):
            raise UserError(f"class folder '{folder / strange[0]}' has no counterpart in '{root / 'train'}'")
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = images_below(folder / name, f"{name}/")
        if not found:
            raise UserError(f"class folder '{folder / name}' has no image; fill it or remove it")
        paths += found
        labels += [classes.index(name)] * len(found)
    return FileDataset(folder.name, folder, paths, labels, classes, channels)


def read_flat(root: Path, split: str, channels: int) -> FileDataset:
    """Read every image in and below a folder, without classes."""
    folder = split_folder(root, split)
    return FileDataset(folder.name, folder, images_below(folder), None, [], channels)
