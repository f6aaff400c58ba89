"""Datasets whose image files are named by a list: list files, Oxford Pets, Flowers-102."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triport.core.data.readers import mat_file
from triport.core.data.readers.image_files import TEST, TRAIN, FileDataset
from triport.core.errors import UserError


def read_list(path: Path, split: str, channels: int) -> FileDataset:
    """Read a file of lines "path label", or "path" alone, or a folder with train_list.txt and val_list.txt (PASSL).

    The paths are absolute or relative to the list's folder, or to train/ or val/ in it. Every file is looked for
    now: a list that names a missing file is an error here and not hours later.
    """
    if path.is_dir():
        names = [f"{name}_list.txt" for name in (TRAIN if split == "train" else TEST)]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    paths, labels = _read_lines(path)
    folder = path.parent
    bases = (folder, *(folder / name for name in (TRAIN if split == "train" else TEST)))
    base = next((base for base in bases if (base / paths[0]).is_file()), folder)
    _all_there(path, base, paths)
    classes = 0 if labels is None else int(labels.max()) + 1
    if labels is not None and split == "train" and (empty := set(range(classes)) - set(labels.tolist())):
        raise UserError(f"list file '{path}' has no image of class {min(empty)}; labels count from 0")
    trained = folder / "train_list.txt"
    if labels is not None and split != "train" and trained.is_file():
        known = _read_lines(trained)[1]  # the last classes may have no test image
        classes = max(classes, 0 if known is None else int(known.max()) + 1)
    return FileDataset(path.name, base, paths, labels, [str(number) for number in range(classes)], channels)


def _read_lines(path: Path) -> tuple[list[str], np.ndarray | None]:
    """Return the paths and the labels, None where no line has one."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"list file '{path}' is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"list file '{path}' is not UTF-8 text") from None
    pairs = [_list_line(line) for line in lines if line and not line.startswith("#")]
    if not pairs:
        raise UserError(f"list file '{path}' names no image")
    paths, numbers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    known = [number for number in numbers if number is not None]
    if known and len(known) < len(numbers):
        first = paths[numbers.index(None)]
        raise UserError(f"list file '{path}' has lines with and without a label; '{first}' has none")
    return paths, np.array(known, np.int64) if known else None


def _list_line(line: str) -> tuple[str, int | None]:
    path, _, last = line.replace("\t", " ").rpartition(" ")
    return (path.strip(), int(last)) if path and last.isdigit() else (line, None)


def _all_there(path: Path, base: Path, paths: Sequence[str]) -> None:
    """Look at each folder once: a million single look-ups are slow on a network disk."""
    names: dict[str, set[str]] = {}
    missing = []
    for item in paths:
        folder, _, name = item.rpartition("/")
        if folder not in names:
            there = Path(base, folder or ("/" if item.startswith("/") else ""))
            names[folder] = {file.name for file in there.iterdir()} if there.is_dir() else set()
        if name not in names[folder]:
            missing.append(item)
    if missing:
        raise UserError(f"list file '{path}' names {len(missing)} missing files, first '{missing[0]}' (under '{base}')")


# ---------------------------------------------------------------- Oxford Pets and Flowers-102
def read_pets(root: Path, split: str, channels: int) -> FileDataset:
    """Read Oxford-IIIT Pets: annotations/{trainval,test}.txt, lines "name class species breed"; images/<name>.jpg."""
    path = root / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    if not path.is_file():
        raise UserError(f"Oxford Pets needs '{path}'; unpack annotations.tar.gz there")
    rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    if not rows or not all(len(row) == 4 and row[1].isdigit() and int(row[1]) > 0 for row in rows):
        raise UserError(f"'{path}' is not an Oxford Pets list: its lines are 'name class species breed'")
    labels = np.array([int(row[1]) - 1 for row in rows])
    names = {int(label): row[0].rpartition("_")[0] for label, row in zip(labels, rows, strict=True)}
    paths = [f"images/{row[0]}.jpg" for row in rows]
    _all_there(path, root, paths)
    classes = [names.get(number, str(number)) for number in range(max(names) + 1)]
    return FileDataset("oxford-pets", root, paths, labels, classes, channels)


def read_flowers(root: Path, split: str, channels: int) -> FileDataset:
    """Read Flowers-102: jpg/image_%05d.jpg, imagelabels.mat and setid.mat, whose labels and numbers count from 1.

    Training is `trnid` then `valid`, 2,040 images; test is `tstid`, 6,149 (MoCo v3's transfer set, recipes 5.3).
    """
    for name in ("imagelabels.mat", "setid.mat"):
        if not (root / name).is_file():
            raise UserError(f"Flowers-102 needs '{root / name}'; fetch it from the data set's page")
    labels, sets = mat_file.load(root / "imagelabels.mat"), mat_file.load(root / "setid.mat")
    wanted = ("trnid", "valid") if split == "train" else ("tstid",)
    if "labels" not in labels or any(name not in sets for name in wanted):
        raise UserError(f"'{root}' holds .mat files without labels, {', '.join(wanted)}; fetch the originals again")
    numbers = np.concatenate([sets[name].ravel() for name in wanted]).astype(np.int64)
    every = labels["labels"].ravel().astype(np.int64) - 1
    if not len(numbers) or numbers.min() < 1 or numbers.max() > len(every) or every.min() < 0:
        raise UserError(f"'{root / 'setid.mat'}' and imagelabels.mat do not belong together; fetch the originals again")
    paths = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    _all_there(root / "setid.mat", root, paths)
    classes = [str(number) for number in range(int(every.max()) + 1)]
    return FileDataset("flowers-102", root, paths, every[numbers - 1], classes, channels)
