"""Datasets whose image files are named by a list: lines of a path and, where it has one, a label."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from triport.core.data.readers.image_files import FileDataset, Paths, is_image
from triport.core.data.readers.splits import NAMES, ORDER
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.labels import Labels, unlabelled, worded
from triport.core.errors import UserError

ENDINGS = (".txt", ".lst", ".csv", ".tsv")
HEADERS = {"path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"}
Line = tuple[str, str]  # path, label ("" where there is none)


def read_list(path: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read a list of images, or a folder with train_list.txt and val_list.txt or test_list.txt (PASSL's).

    A line is "path label", with a blank, tab, comma or semicolon between, or the path alone; labels are numbers from 0
    or words. Lines that begin with "#" and a blank are comments. UTF-8 with or without a byte order mark, any line
    ends. The paths are absolute or relative to the list's folder, or to the split's folder in it. Every file is looked
    for now: a list that names a missing file is an error here and not hours later.
    """
    if path.is_dir():
        path = _in_folder(path, split)
    paths, words = _columns(path)
    folder = path.parent
    bases = (folder, *(folder / name for wanted in ORDER[split] for name in NAMES[wanted]))
    first = next(iter(paths))
    base = next((base for base in bases if os.path.isfile(base / first)), folder)  # noqa: PTH113 no name is too long
    all_there(path, base, paths)
    stored = Paths(paths)
    labels = _labels(path, words, split == "train")
    if split != "train" and (trained := _in_folder(folder, "train")).is_file() and trained != path and words:
        known = _labels(trained, _columns(trained)[1], True)
        if known.classes:  # the last classes may have no image here
            labels = worded(f"list file '{path}'", words, known.classes)
    return FileDataset(path.name, base, stored, labels, decoding)


def _in_folder(folder: Path, split: str) -> Path:
    names = [f"{name}_list.txt" for wanted in ORDER[split] for name in NAMES[wanted]]
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _labels(path: Path, words: list[str], dense: bool) -> Labels:
    without = words.count("")
    if without == len(words):
        return unlabelled(len(words))
    if without:
        fault = f"list file '{path}' has lines with and without a label; line {words.index('') + 1} of images has none"
        return unlabelled(len(words), fault)
    return worded(f"list file '{path}'", words, dense=dense)


def _columns(path: Path) -> tuple[list[str], list[str]]:
    """Return the paths and the labels of a list."""
    paths: list[str] = []
    words: list[str] = []
    shared: dict[str, str] = {}  # one copy of each label
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for name, word in _pairs(file):
                paths.append(name)
                words.append(shared.setdefault(word, word))
    except FileNotFoundError:
        raise UserError(f"list file '{path}' is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"list file '{path}' is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"list file '{path}' cannot be divided into columns: {error}") from None
    if paths and paths[0].casefold() in HEADERS:
        del paths[0], words[0]
    if not paths:
        raise UserError(f"list file '{path}' names no image")
    if any("\0" in name for name in paths):
        raise UserError(f"list file '{path}' is not text: it has zero bytes")
    return paths, words


def _pairs(file: Iterable[str]) -> Iterator[Line]:
    """Yield (path, label) of each line that is neither empty nor a comment; the first one says how they are divided."""
    divide: Callable[[str], Line] | None = None
    for line in file:
        text = line.strip()
        if not text or text == "#" or (text[0] == "#" and (text[1].isspace() or text[1] == "#")):
            continue
        divide = divide or _divider(text)
        pair = divide(text)
        if pair[0]:
            yield pair


def _divider(text: str) -> Callable[[str], Line]:
    """Return how a line is divided: by the separator after which something stands that is not an image."""
    for separator in "\t,;":
        head, found, last = text.partition(separator)
        if found and (is_image(head.strip().strip('"')) or head.strip().casefold() in HEADERS) and not is_image(last):
            return lambda line: _by_separator(line, separator)
    return _by_last_blank


def _by_separator(line: str, separator: str) -> Line:
    row = next(csv.reader([line], delimiter=separator))
    return row[0].strip(), row[1].strip() if len(row) > 1 else ""


def _by_last_blank(line: str) -> Line:
    if is_image(line):
        return line, ""
    path, _, label = line.replace("\t", " ").rpartition(" ")
    path = path.strip()
    return (path, label) if path and (is_image(path) or label.lstrip("-").isdigit()) else (line, "")


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
        raise UserError(f"list file '{path}' names {len(missing)} missing files, first '{missing[0]}' (under '{base}')")
