"""Which kind of dataset lies at a path, by tell-tale names; nothing is opened for it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from triport.core.data.readers.archives import is_archive
from triport.core.data.readers.arrays import is_named_arrays
from triport.core.data.readers.idx import IDX_IMAGES
from triport.core.data.readers.lists import ENDINGS
from triport.core.data.readers.splits import divided
from triport.core.data.readers.tree import is_image, loose_images, subfolders
from triport.core.errors import UserError

# where the archives of known datasets unpack to, below a folder that the user may name instead
INSIDE = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
    "idx": ("raw", "FashionMNIST/raw", "MNIST/raw"),
    "flowers": ("flowers-102",),
    "pets": ("oxford-iiit-pet",),
}
_FILES = {".npz": "npz", ".npy": "npy", ".parquet": "parquet", ".tif": "pages", ".tiff": "pages"}


def recognise(path: Path) -> tuple[str, Path]:
    """Return the kind of what lies at `path`, and where exactly it lies. UserError where it is none."""
    if path.is_file():
        return _kind_of_file(path), path
    if kind := _kind_of_folder(path):
        return kind, path
    for kind, names in INSIDE.items():
        for name in names:
            if (path / name).is_dir() and _kind_of_folder(path / name) == kind:
                return kind, path / name
    folders, loose = subfolders(path), loose_images(path)
    if inner := _inner(path, folders, loose):
        return recognise(inner)
    if folders and divided(path, folders):
        return "folder", path
    if any((path / name).is_file() for name in ("train.csv", "train.tsv")):
        return "list", path
    for folder in (path, *(path / name for name in folders[:3])):
        for ending, kind in ((".parquet", "parquet"), (".tar", "shards")):
            if any(folder.glob(f"*{ending}")):
                return kind, path
    if not folders and not loose:
        raise UserError(f"folder '{path}' has no image in it{_instead(path)}")
    return ("flat" if loose and len(folders) < 2 else "folder"), path


def _inner(path: Path, folders: list[str], loose: list[str]) -> Path | None:
    """Return the folder that is the data set where `path` only wraps it, as archives do, or lists boxes beside it."""
    names = [name for name in folders if name.casefold() not in ("labels", "annotations")]
    if loose or len(names) != 1 or divided(path, folders):
        return None
    below = subfolders(path / names[0])
    return path / names[0] if len(below) > 1 and divided(path / names[0], below) else None


def _instead(path: Path) -> str:
    """Return what a folder without an image holds, with the way on."""
    with os.scandir(path) as items:
        endings = Counter(Path(item.name).suffix.lower() or item.name for item in items if item.is_file())
    if not endings:
        return ""
    kinds = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(5))
    return f" but {kinds}; convert them to PNG, JPEG or .npy, or to an .npz or .parquet file"


def _kind_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if IDX_IMAGES.search(path.name):
        return "idx"
    if suffix in _FILES:
        return _FILES[suffix]
    if suffix in ENDINGS:
        return "list"
    if suffix == ".tar":
        return "shards"
    if is_archive(path):
        return "archive"
    if is_image(path.name):
        raise UserError(f"'{path}' is one picture; give the folder that it lies in")
    raise UserError(
        f"'{path}' is not a dataset: give a folder, an .npz, .npy, .parquet, .tar or idx file, an archive of CIFAR "
        "or a .txt or .csv list of images"
    )


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
    if has("train.npz", "test.npz", "val.npz"):
        return "npz"
    if is_named_arrays(path):
        return "npy"
    with os.scandir(path) as items:
        return "idx" if any(IDX_IMAGES.search(item.name) for item in items) else None
