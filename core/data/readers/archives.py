"""Archives as they are downloaded: CIFAR is read in place, others are unpacked once where the user says."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from triport.core.data.readers.arrays import ArrayDataset
from triport.core.data.readers.cifar import LARGEST, from_files
from triport.core.data.readers.sizes import ALWAYS, GROWTH
from triport.core.data.sample.decode import Decoding
from triport.core.errors import UserError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip", ".tar.bz2", ".tar.xz")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Published:
    """A file as its makers publish it."""

    md5: str
    address: str


_CIFAR, _FLOWERS = "https://www.cs.toronto.edu/~kriz/", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
PUBLISHED = {
    "cifar-10-python.tar.gz": Published("c58f30108f718f92721af3b95e74349a", f"{_CIFAR}cifar-10-python.tar.gz"),
    "cifar-10-binary.tar.gz": Published("c32a1d4ab5d03f1284b67883e8d87530", f"{_CIFAR}cifar-10-binary.tar.gz"),
    "cifar-100-python.tar.gz": Published("eb9058c3a382ffc7106e4002c42a8d85", f"{_CIFAR}cifar-100-python.tar.gz"),
    "cifar-100-binary.tar.gz": Published("03b5dce01913d631647c71ecec9e9cb8", f"{_CIFAR}cifar-100-binary.tar.gz"),
    "102flowers.tgz": Published("52808999861908f626f3c1f4e79d11fa", f"{_FLOWERS}102flowers.tgz"),
    "imagelabels.mat": Published("e0620be6f572b9609742df49c70aed4d", f"{_FLOWERS}imagelabels.mat"),
    "setid.mat": Published("a5357ecc9cb78c4bef273ce3793fc85c", f"{_FLOWERS}setid.mat"),
    "images.tar.gz": Published("5c4f3ee8e5d25df40f4fd59a7f44e54c", f"{_PETS}images.tar.gz"),
    "annotations.tar.gz": Published("95a8c909bbe2e81eed6a22bccdf3f68f", f"{_PETS}annotations.tar.gz"),
}
# files that are one data set: an archive means little without the others
SETS = (("102flowers.tgz", "imagelabels.mat", "setid.mat"), ("images.tar.gz", "annotations.tar.gz"))


def is_archive(path: Path) -> bool:
    """Say whether a file is an archive by its name."""
    return path.name.lower().endswith(SUFFIXES)


def checksum_line(path: Path) -> str:
    """Return a line that holds a file's MD5 against the published one, "" where none is known by that name."""
    known = PUBLISHED.get(path.name.lower())
    if known is None:
        return ""
    own = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            own.update(block)
    if own.hexdigest() == known.md5:
        return f"{path.name} is the published file (MD5 {known.md5}, {known.address})"
    return (
        f"{path.name} is not the published file: MD5 {own.hexdigest()}, not {known.md5}; that one is at {known.address}"
    )


# ---------------------------------------------------------------- in place
def read_archive(path: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read CIFAR from its archive; of others say how to unpack them."""
    files = _small_files(path)
    kind = None
    if any(name.startswith(("data_batch_1", "test_batch")) for name in files):
        kind = "cifar10"
    elif "train.bin" in files or {"train", "test", "meta"} <= files.keys():
        kind = "cifar100"
    if kind is None:
        names = " ".join(str(other) for other in (path, *_others(path)))
        raise UserError(
            f"'{path}' is an archive that cannot be read in place; unpack it once: "
            f"triport data {names} --unpack DIR, then --data DIR"
        )
    dataset = from_files(files, str(path), kind, split, decoding)
    dataset.remarks += tuple(filter(None, [checksum_line(path)]))
    return dataset


def _small_files(path: Path) -> dict[str, bytes]:
    """Return the files of an archive by their own names; of one that is not CIFAR's only the first few."""
    files: dict[str, bytes] = {}
    left = max(ALWAYS, GROWTH * path.stat().st_size)
    with _members(path) as members:
        for number, (name, size, file) in enumerate(members):
            if number >= 32:
                break
            left -= size
            if size > LARGEST or left < 0:
                break  # nothing of CIFAR; and nothing that may fill the memory
            files[PurePosixPath(name).name] = file.read(size)
    return files


Member = tuple[str, int, IO[bytes]]


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    """Give the regular files of an archive in turn: name, size, content."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                yield _of_zip(opened)
        else:
            with tarfile.open(path) as archive:
                yield _of_tar(archive)
    except UserError:
        raise
    except _DAMAGE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{path}' is not an archive that can be read: {why}") from None


def _of_zip(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        if not info.filename:
            raise zipfile.BadZipFile("it has a file without a name")
        if not info.is_dir():
            with opened.open(info) as file:
                yield info.filename, info.file_size, file


def _of_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isreg() and (file := archive.extractfile(info)) is not None:
            yield info.name, info.size, file


# ---------------------------------------------------------------- unpacking
def unpack(paths: Sequence[Path], target: Path) -> list[str]:
    """Unpack archives, and copy other files, into the new folder `target`; return lines about what was done.

    What belongs to one of them and lies beside it is taken too. The folder is there whole or not at all. Links,
    devices and names that lead out of it are refused.
    """
    if target.exists():
        raise UserError(f"'{target}' exists already: use it with --data {target}, or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    wanted = {path.absolute(): path for path in paths}
    for path in paths:
        for other in _others(path):
            if other.is_file():
                wanted.setdefault(other.absolute(), other)
            elif other.name.lower() not in {given.name.lower() for given in paths}:
                address = PUBLISHED[other.name.lower()].address
                lines.append(f"{other.name} belongs to {path.name} and is not beside it: it is at {address}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        part.mkdir()
        for path in wanted.values():
            if not path.is_file():
                raise UserError(f"no file '{path}'")
            if line := checksum_line(path):
                lines.append(line)
            if is_archive(path):
                count = _unpack_file(path, part)
                lines.append(f"{path.name}: {count} files unpacked into {target}")
            else:
                shutil.copyfile(path, part / path.name)
        part.replace(target)
    return lines


def _others(path: Path) -> list[Path]:
    """The files, beside an archive, that are one data set with it by their published names."""
    own = path.name.lower()
    known = next((names for names in SETS if own in names), ())
    return [path.with_name(name) for name in known if name != own]


def _unpack_file(path: Path, folder: Path) -> int:
    count, left = 0, max(ALWAYS, GROWTH * path.stat().st_size)
    with _members(path) as members:
        for name, size, file in members:
            plain = PurePosixPath(name)
            if plain.is_absolute() or ".." in plain.parts or "\0" in name:
                raise UserError(f"'{path}' wants to write '{name}' outside its folder; it is not to be trusted")
            left -= size
            if left < 0:
                raise UserError(f"'{path}' unpacks to more than {GROWTH} times its size; it looks like a bomb")
            place = folder / plain
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as out:
                shutil.copyfileobj(file, out)
            count += 1
    return count
