"""What lies in and below a folder: the paths of its images, and what was left out."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".gif", ".npy"),
)
# hidden names that systems and programs leave; any other hidden picture is named
LEFT = ("._", ".DS_Store", ".ipynb_checkpoints", ".git", ".svn", ".dvc", ".cache", ".thumb", ".Trash", ".@", ".Apple")
JUNK = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}


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


@dataclass
class Found:
    """Images below a folder, and what was left out."""

    paths: Paths = field(default_factory=Paths)
    dangling: list[str] = field(default_factory=list)  # links that lead nowhere
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by their ending
    odd: Counter[str] = field(default_factory=Counter)  # endings that are read here and not by torchvision
    hidden: list[str] = field(default_factory=list)  # pictures and folders whose names begin with a dot

    def remarks(self) -> list[str]:
        """Return a line for each kind of thing that was left out."""
        lines = []
        if self.dangling:
            lines.append(f"{count(len(self.dangling), 'link')} to nowhere left out, first '{self.dangling[0]}'")
        if self.hidden:
            hidden = f"{count(len(self.hidden), 'hidden picture or folder', 'hidden pictures or folders')} left out"
            lines.append(f"{hidden}, first '{self.hidden[0]}': its name begins with a dot")
        for endings, what in (
            (self.others, "left out: not images by their ending"),
            (self.odd, "read, which torchvision's ImageFolder leaves out"),
        ):
            if endings:
                kinds = ", ".join(f"{number} {ending or 'without one'}" for ending, number in endings.most_common(5))
                lines.append(f"{count(endings.total(), 'file')} {what} ({kinds})")
        return lines


def count(number: int, what: str, several: str = "") -> str:
    """Return the number with the word, in the plural where that is due."""
    return f"{number} {what}" if number == 1 else f"{number} {several or what + 's'}"


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def subfolders(folder: Path | str) -> list[str]:
    """Return the names of the folders in `folder`, sorted; hidden ones, what systems leave and links upwards apart."""
    with os.scandir(folder) as items:
        found = [item for item in items if not _hidden(item.name) and item.is_dir()]
    return sorted(item.name for item in found if not (item.is_symlink() and _leads_up(item.path)))


def is_image(name: str) -> bool:
    """Say whether a file is an image by its name."""
    return name.lower().endswith(SUFFIXES) and not _hidden(name)


def loose_images(folder: Path | str) -> list[str]:
    """Return the images directly in `folder`, sorted."""
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if is_image(item.name) and item.is_file())


def _leads_up(link: str) -> bool:
    """Say whether a link leads to a folder that it lies in, by the way it was come to or by its true place."""
    target = Path(link).resolve()
    return any(target == parent.resolve() for parent in Path(link).absolute().parents)


def hidden_folders(folder: Path) -> list[str]:
    """Return the folders in `folder` whose names begin with a dot and that hold pictures; not what systems leave."""
    with os.scandir(folder) as items:
        names = [item.name for item in items if item.name.startswith(".") and item.is_dir()]
    return sorted(name for name in names if not name.startswith(LEFT) and loose_images(folder / name))


def gather(folder: str, prefix: str, found: Found) -> None:
    """Add the images in `folder` and all folders below it, sorted, named from `prefix` on. Links that loop are cut."""
    with os.scandir(folder) as items:
        entries = sorted(items, key=lambda item: item.name)
    for item in entries:
        name = item.name
        if _hidden(name):
            if name.startswith(".") and not name.startswith(LEFT) and name.lower().endswith(SUFFIXES):
                found.hidden.append(prefix + name)
            continue
        try:
            folder_too, file_too = item.is_dir(), item.is_file()
        except OSError:  # links that lead to each other
            folder_too = file_too = False
        if folder_too:
            if item.is_symlink() and _leads_up(item.path):
                continue
            gather(item.path, f"{prefix}{name}/", found)
        elif not file_too:
            found.dangling.append(prefix + name)
        elif name.lower().endswith(SUFFIXES):
            found.paths.add(prefix + name)
            if name.lower().endswith((".jfif", ".jpe", ".npy")):
                found.odd[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122 a Path for each file costs a second
        else:
            found.others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122
