"""Files and folders that appear whole or not at all, and never replace another unasked."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from triport.core.atomic import part_of, settle
from triport.core.errors import UserError
from triport.weights.direct import Blocks

OFTEN = 0.1  # seconds between two times that the system is asked to put onto the disk what was written
SMALL, LARGE = 1 << 16, 1 << 26  # bytes of one write
AT_ONCE = 16  # files settled at once: their waits for the disk's journal become one


class Digest(Protocol):
    """What hashlib gives."""

    def update(self, data: Any, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """Say what they amount to."""


@contextmanager
def whole_file(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends well it takes the place of `path`, else nothing is left of it.

    Raises UserError if `path` exists and `force` is false, if it is a folder, or if the system refuses (full disk).
    """
    with whole_place(path, force) as place, open(place, "xb", buffering=1 << 16) as file:
        with _settling(file.fileno()):
            yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_stream(path: Path, force: bool = False) -> Iterator[Blocks]:
    """The same for what is written from begin to end: large arrays cost a third of the processor time this way."""
    with whole_place(path, force) as place:
        with Blocks(place) as file, nullcontext() if file.direct else _settling(file.fileno()):
            yield file
        settle(place)


@contextmanager
def whole_place(path: Path, force: bool) -> Iterator[Path]:
    """Give the name of a new file, which takes the place of `path` when the block ends well."""
    free(path, force, folder=False)
    place = part_of(path)
    try:
        yield place
        free(path, force, folder=False)
        place.replace(path)
        settle(path.parent)
    except OSError as fault:
        raise UserError(refused(path, fault)) from None
    finally:
        with suppress(OSError):
            place.unlink()


@contextmanager
def whole_files(path: Path, force: bool) -> Iterator[Path]:
    """The same for a file that names others beside it: all stand in a folder first, and `path` moves last."""
    free(path, force, folder=False)
    place, moving = part_of(path), False
    try:
        place.mkdir()
        yield place / path.name
        parts = sorted(place.iterdir(), key=lambda part: (part.name == path.name, part.name))
        for part in parts:
            free(path.with_name(part.name), force, folder=False)
        moving = True
        path.unlink(missing_ok=True)  # where this is cut short, no older index may name the newer shards
        for part in parts:
            part.replace(path.with_name(part.name))
        settle(path.parent)
    except OSError as fault:
        if moving:
            why = fault.strerror or fault
            raise UserError(
                f"{path}: cannot be put in place: {why}; shards beside it are incomplete: write it again"
            ) from None
        raise UserError(refused(path, fault)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def whole_folder(path: Path, force: bool, own: Collection[str]) -> Iterator[Path]:
    """The same for a folder: give an empty one to fill, which takes the place of `path` when the block ends well.

    own: names of the files such a folder consists of; an existing one with any other file in it is never replaced.
    """
    free(path, force, folder=True)
    _only(path, own)
    place, old = part_of(path), part_of(path)
    try:
        place.mkdir()
        yield place
        _settle_all(place)
        free(path, force, folder=True)
        if path.exists():
            path.replace(old)  # a link to a folder moves, the folder stays
        try:
            place.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
        settle(path.parent)
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
    except OSError as fault:
        raise UserError(refused(path, fault)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def hashed(write: Callable[[Any], Any], digest: Digest | None) -> Iterator[Callable[[Any], Any]]:
    """Give a function that writes and, in a thread, feeds a digest with the same bytes; complete when the block ends.

    At most three writes wait for the digest, and none of more than `LARGE` bytes.
    """
    if digest is None:
        yield write
        return
    few, waiting = bytearray(), deque[Future[None]]()
    with ThreadPoolExecutor(1) as thread:

        def both(data: Any) -> None:
            if len(data) < SMALL:
                few.extend(data)
            else:
                thread.submit(digest.update, bytes(few))
                few.clear()
                waiting.append(thread.submit(digest.update, data))
            write(data)
            while len(waiting) > (2 if len(data) <= LARGE else 0):
                waiting.popleft().result()

        yield both
        thread.submit(digest.update, bytes(few)).result()


@contextmanager
def _settling(number: int) -> Iterator[None]:
    """Have an open file put onto the disk while it is written, so that little is left to wait for at the end."""
    done, faults = threading.Event(), list[OSError]()

    def settle_often() -> None:
        while not done.wait(OFTEN):
            try:
                getattr(os, "fdatasync", os.fsync)(number)
            except OSError as fault:  # the system says so once
                faults.append(fault)
                return

    thread = threading.Thread(target=settle_often, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if faults:
        raise faults[0]


def _only(path: Path, own: Collection[str]) -> None:
    """UserError if a folder holds anything that is not part of a checkpoint, for it would be lost with it."""
    for place, _, names in os.walk(path):
        for name in names:
            if name not in own:
                raise UserError(
                    f"{path}: holds {Path(place, name)}, which is not part of a checkpoint; name another target"
                )


def free(path: Path, force: bool, folder: bool) -> None:
    """UserError unless a file (or folder) may be written at `path`."""
    try:
        if not path.parent.is_dir():
            raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as fault:  # a name too long, a folder that may not be looked into
        raise UserError(refused(path, fault)) from None
    if path.is_dir() != folder:
        kinds = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"{path}: is a {kinds[0]}, and a {kinds[1]} would be written; name another target")
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)):
        raise UserError(f"{path}: is neither a file nor a folder, but a device or a pipe; name another target")
    if not force:
        raise UserError(f"{path}: exists already; give --force to replace it")


def _settle_all(folder: Path) -> None:
    """The same for a folder with all that is in it: many files at once, for one by one takes ten times as long."""
    inside = [*folder.rglob("*"), folder]

    def settle_each(paths: list[Path]) -> None:
        for path in paths:
            settle(path)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(
            threads.map(settle_each, (inside[k::AT_ONCE] for k in range(AT_ONCE)))
        )  # which raises what one of them raised


def refused(path: Path, fault: OSError) -> str:
    """The line for what the system refused."""
    return f"{path}: cannot be written: {fault.strerror or fault}; what was there before is unchanged"
