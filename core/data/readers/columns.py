"""The lines of a list as paths, labels and splits: how they are divided, and which column is which."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from triport.core.data.readers.tree import is_image
from triport.core.errors import UserError

# names of columns in a first line, the likeliest first; blanks stand for "_", in any case
PATHS = (
    *("path", "filepath", "file_path", "image_path", "img_path", "filename", "file_name", "image_name", "img_name"),
    *("file", "image", "img", "filenames", "images", "image_id", "img_id", "id"),
)
LABELS = (
    *("label", "class", "category", "target", "labels", "label_name", "class_name", "classname", "category_name"),
    *("label_id", "class_id", "category_id", "y", "species", "breed", "diagnosis"),
)
SPLITS = ("split", "set", "subset", "partition", "data_set")


@dataclass
class Lines:
    """What a list says of each image; "" where it says nothing."""

    paths: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # labels
    splits: list[str] = field(default_factory=list)  # empty where no column is called so
    fault: str = ""  # why no column can be the label
    remark: str = ""  # which of many is


@dataclass(frozen=True)
class _Columns:
    separator: str = ""  # "": the label stands after the last blank
    path: int = 0
    label: int | None = 1
    split: int | None = None
    named: bool = False  # the first line names the columns
    fault: str = ""
    remark: str = ""


def read_lines(path: Path) -> Lines:
    """Read a list. UserError where it is no text, or names no image."""
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            lines = _lines(_told(file), f"list file '{path}'")
    except FileNotFoundError:
        raise UserError(f"list file '{path}' is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"list file '{path}' is not UTF-8 text; save it as UTF-8 (in Excel: CSV UTF-8)") from None
    except csv.Error as error:
        raise UserError(f"list file '{path}' cannot be divided into columns: {error}") from None
    if lines.paths and _plain(lines.paths[0]) in PATHS:  # the name of a single column
        del lines.paths[0], lines.words[0]
    if not lines.paths:
        raise UserError(f"list file '{path}' names no image")
    if any("\0" in name for name in lines.paths):
        raise UserError(f"list file '{path}' is not text: it has zero bytes")
    return lines


def _told(file: Iterator[str]) -> Iterator[str]:
    """Yield the lines that are neither empty nor comments."""
    for line in file:
        text = line.strip()
        if text and text != "#" and not (text[0] == "#" and (text[1].isspace() or text[1] == "#")):
            yield line.strip("\r\n") if text[0] in ",;" or line[0] == "\t" else text


def _lines(told: Iterator[str], name: str) -> Lines:
    found, columns = Lines(), None
    shared: dict[str, str] = {}  # one copy of each label and split
    for line in told:
        if columns is None:
            columns = _columns(line, name)
            found.fault, found.remark = columns.fault, columns.remark
            if columns.named:
                continue
        if columns.separator:
            cells = _cells(line, columns.separator)
            path, word, split = (
                cells[at] if at is not None and at < len(cells) else ""
                for at in (columns.path, columns.label, columns.split)
            )
        else:
            (path, word), split = _by_last_blank(line.strip()), ""
        if path:
            found.paths.append(path)
            found.words.append(shared.setdefault(word, word))
            if columns.split is not None:
                found.splits.append(shared.setdefault(split, split))
    return found


def _cells(line: str, separator: str) -> list[str]:
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")


def _columns(line: str, name: str) -> _Columns:
    """Return the columns by the first line: its names, or an image and a label."""
    for separator in "\t,;":
        cells = _cells(line, separator)
        if len(cells) < 2:
            continue
        if not any(map(is_image, cells)) and any(_plain(cell) in PATHS for cell in cells):
            return _by_names(cells, separator, name)
        if is_image(cells[0]) and not is_image(cells[-1]):
            if len(cells) == 2:
                return _Columns(separator)
            fault = f"{name} has {len(cells)} columns and no line that names them; begin it with path, label and so on"
            return _Columns(separator, label=None, fault=fault)
    return _Columns()


def _by_names(cells: list[str], separator: str, name: str) -> _Columns:
    names = [_plain(cell) for cell in cells]

    def first(wanted: tuple[str, ...]) -> int | None:
        return next((names.index(word) for word in wanted if word in names), None)

    path, label, split = first(PATHS), first(LABELS), first(SPLITS)
    assert path is not None
    rest = [at for at, word in enumerate(names) if word and at not in (path, split)]
    if label is None and len(rest) == 1:
        label = rest[0]
    fault = remark = ""
    if label is None and rest:
        fault = f"{name} has the columns {', '.join(cells[:9])}: call the one that is the label so"
    elif label is not None and len(rest) > 1:
        remark = f"{name}: the label of an image is its '{cells[label]}' (columns {', '.join(cells[:9])})"
    return _Columns(separator, path, label, split, True, fault, remark)


def _by_last_blank(line: str) -> tuple[str, str]:
    if is_image(line):
        return line, ""
    path, _, label = line.replace("\t", " ").rpartition(" ")
    path = path.strip()
    return (path, label) if path and (is_image(path) or label.lstrip("-").isdigit()) else (line, "")
