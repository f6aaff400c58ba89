"""Files that appear whole or not at all: written beside their place, brought to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def part_of(path: Path) -> Path:
    """Return a new name in the folder of `path`, not too long where the path's own is not."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, its file takes the place of `path`, else nothing is left.

    durable: wait until the content has reached the disk, so that a power cut leaves the old file or the new one.
    Raises OSError as the system does.
    """
    part = part_of(path)
    try:
        yield part
        if durable:
            settle(part)
        part.replace(path)
        if durable:
            settle(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replaced(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


def share(path: Path, other: Path) -> None:
    """Make `other` a file of the same content: a second name where the disk can, else a copy.

    Only for files that are replaced and never changed.
    """
    try:
        os.link(path, other)
    except OSError:
        with replaced(other) as part:
            shutil.copyfile(path, part)


def settle(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network disks cannot sync a folder, and need not
            raise
    finally:
        os.close(handle)


def sweep(folder: Path, *names: str) -> None:
    """Remove what killed processes left of these files. Only their one writer may do this."""
    for name in names:
        for part in folder.glob(f".{name[:40]}.*.part"):
            with suppress(OSError):
                part.unlink()
