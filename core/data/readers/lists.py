"""Datasets whose image files are named by a list: lines of a path and, where it has one, a label."""

from __future__ import annotations

import os
from pathlib import Path

from triport.core.data.readers.columns import Lines, read_lines
from triport.core.data.readers.image_files import FileDataset
from triport.core.data.readers.splits import NAMES, ORDER, meaning
from triport.core.data.readers.tree import SUFFIXES, Paths
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.labels import Labels, unlabelled, worded
from triport.core.errors import UserError

ENDINGS = (".txt", ".lst", ".csv", ".tsv")
BY_SPLIT = ("_list.txt", ".csv", ".tsv")  # after the word of a split, in a folder


def read_list(path: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read a list of images, or a folder with train_list.txt and val_list.txt or test_list.txt (PASSL's), or train.csv.

    A line is "path label", with a blank, tab, comma or semicolon between, or the path alone; labels are numbers from 0
    or words. A first line may name the columns, in any order: of more than two, the label's must be called so, and one
    called split says which images are of which. Lines that begin with "#" and a blank are comments. UTF-8 with or
    without a byte order mark, any line ends. The paths are absolute or relative to the list's folder, or to the split's
    folder in it. Every file is looked for now: a list that names a missing file is an error here and not hours later.
    """
    if path.is_dir():
        path = _in_folder(path, split)
    lines = read_lines(path)
    labels = _labels(path, lines, split == "train")
    folder = path.parent
    if split != "train" and (trained := _in_folder(folder, "train")).is_file() and trained != path and any(lines.words):
        known = _labels(trained, read_lines(trained), True)
        if known.classes:  # the last classes may have no image here
            labels = worded(f"list file '{path}'", lines.words, known.classes)
    paths = lines.paths
    if any(meaning(word) for word in lines.splits):
        kept = _of_split(path, lines.splits, split)
        paths, labels = [paths[at] for at in kept], Labels(labels.numbers[kept], labels.classes, labels.fault)
    bases = (folder, *(folder / name for wanted in ORDER[split] for name in NAMES[wanted]))
    base = next((base for base in bases if os.path.isfile(base / paths[0])), folder)  # noqa: PTH113 no name is too long
    all_there(path, base, paths)
    return FileDataset(path.name, base, Paths(paths), labels, decoding, [lines.remark] if lines.remark else [])


def _of_split(path: Path, words: list[str], split: str) -> list[int]:
    """Return which lines are of a split, by the column that says it."""
    meant = [meaning(word) for word in words]
    for wanted in ORDER[split]:
        if kept := [at for at, word in enumerate(meant) if word == wanted]:
            return kept
    raise UserError(f"list file '{path}' has no line of the {split} split ({', '.join(sorted(set(words))[:9])})")


def _in_folder(folder: Path, split: str) -> Path:
    names = [f"{name}{ending}" for ending in BY_SPLIT for wanted in ORDER[split] for name in NAMES[wanted]]
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _labels(path: Path, lines: Lines, dense: bool) -> Labels:
    words = lines.words
    without = words.count("")
    if without == len(words):
        return unlabelled(len(words), lines.fault)
    if without:
        fault = f"list file '{path}' has lines with and without a label; line {words.index('') + 1} of images has none"
        return unlabelled(len(words), fault)
    return worded(f"list file '{path}'", words, dense=dense)


def all_there(path: Path, base: Path, paths: list[str]) -> None:
    """Look at each folder once: a million single look-ups are slow on a network disk."""
    names: dict[str, set[str]] = {}
    missing: list[str] = []
    for item in paths:
        folder, _, name = item.rpartition("/")
        there = names.get(folder)
        if there is None:
            place = os.path.join(base, folder or ("/" if item.startswith("/") else ""))  # noqa: PTH118
            try:
                with os.scandir(place) as items:
                    there = {entry.name for entry in items}
            except (OSError, ValueError):
                there = set()
            names[folder] = there
        if name not in there:
            missing.append(item)
    if missing:
        told = f"list file '{path}' names {len(missing)} missing files, first '{missing[0]}' (under '{base}')"
        raise UserError(told + _remedy(missing[0], base))


def _remedy(item: str, base: Path) -> str:
    """Return what makes a missing file be found, where that can be told."""
    if "://" in item:
        return "; fetch the images and name their files: nothing is downloaded"
    if "\\" in item:
        return "; write / for \\ in the paths"
    if ending := next((ending for ending in SUFFIXES if os.path.isfile(base / f"{item}{ending}")), ""):  # noqa: PTH113
        return f"; write the paths with their ending, '{item}{ending}'"
    if any(separator in item for separator in ",;\t"):
        return "; the path must be the first column, or the first line must name the columns (path,label)"
    return ""
