"""Files and folders that appear whole or not at all, and never replace another unasked."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from core.errors import UserError


@contextmanager
def whole_file(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends well it takes the place of `path`, else nothing is left of it.

    Raises UserError if `path` exists and `force` is false, if it is a folder, or if the system refuses (full disk).
    """
    free(path, force, folder=False)
    beside = _beside(path)
    try:
        with open(beside, "xb", buffering=1 << 16) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        free(path, force, folder=False)
        beside.replace(path)
        _settle(path.parent)
    except OSError as fault:
        raise UserError(_refused(path, fault)) from None
    finally:
        with suppress(OSError):
            beside.unlink()


@contextmanager
def whole_folder(path: Path, force: bool, own: Collection[str]) -> Iterator[Path]:
    """The same for a folder: give an empty one to fill, which takes the place of `path` when the block ends well.

    own: names of the files such a folder consists of; an existing one with any other file in it is never replaced.
    """
    free(path, force, folder=True)
    _only(path, own)
    beside, old = _beside(path), _beside(path)
    try:
        beside.mkdir()
        yield beside
        os.sync()  # one wait for all of it: hundreds of files settled one by one take ten times as long
        free(path, force, folder=True)
        if path.exists():
            path.replace(old)
        try:
            beside.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
        _settle(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as fault:
        raise UserError(_refused(path, fault)) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _only(path: Path, own: Collection[str]) -> None:
    """UserError if a folder holds anything that is not part of a checkpoint, for it would be lost with it."""
    for place, _, names in os.walk(path):
        for name in names:
            if name not in own:
                raise UserError(
                    f"{path}: holds {Path(place, name)}, which is no part of a checkpoint; name another target"
                )


def free(path: Path, force: bool, folder: bool) -> None:
    """UserError unless a file (or folder) may be written at `path`."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.path.lexists(path):
        return
    if path.is_dir() != folder:
        kinds = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"{path}: is a {kinds[0]}, and a {kinds[1]} would be written; name another target")
    if not force:
        raise UserError(f"{path}: exists already; give --force to replace it")


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody has."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")


def _settle(path: Path) -> None:
    """Have the system put a file or folder onto the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _refused(path: Path, fault: OSError) -> str:
    """The line for what the system refused."""
    return f"{path}: cannot be written: {fault.strerror or fault}; what was there before is unchanged"
