"""CIFAR-10 and CIFAR-100, binary or pickled, unpacked or in the archive as it is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.data.readers.arrays import ArrayDataset
from triport.core.data.sample.decode import Decoding
from triport.core.errors import UserError
from triport.core.pickle.machine import Span
from triport.core.pickle.numpy_arrays import Array, Values, array_table, encode
from triport.core.pickle.reader import load
from triport.core.source import Damaged, Source, parsing

LARGEST = 1 << 28  # bytes of a file of CIFAR; the true ones have 31 and 150 MB
MAX_STEPS = 4_000_000  # opcodes and what they cost; CIFAR-100 with its files' names takes some 1 000 000


class Folder(Mapping[str, bytes]):
    """The files of a folder by name, read as they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> bytes:
        path = self.root / name
        if not path.is_file():
            raise KeyError(name)
        if path.stat().st_size > LARGEST:
            raise UserError(f"'{path}' is too large for a file of CIFAR; fetch it again")
        return path.read_bytes()

    def __contains__(self, name: object) -> bool:
        return (self.root / str(name)).is_file()

    def __iter__(self) -> Iterator[str]:
        return (item.name for item in self.root.iterdir())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_cifar10(root: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read CIFAR-10, binary (data_batch_1.bin ...) or pickled (data_batch_1 ...)."""
    return from_files(Folder(root), str(root), "cifar10", split, decoding)


def read_cifar100(root: Path, split: str, decoding: Decoding) -> ArrayDataset:
    """Read CIFAR-100 with its 100 fine labels, binary (train.bin) or pickled (train)."""
    return from_files(Folder(root), str(root), "cifar100", split, decoding)


def from_files(files: Mapping[str, bytes], place: str, kind: str, split: str, decoding: Decoding) -> ArrayDataset:
    """Read a split from files by name, of a folder or an archive `place`."""
    part = "train" if split == "train" else "test"
    if kind == "cifar10":
        names = [f"data_batch_{number}" for number in range(1, 6)] if part == "train" else ["test_batch"]
        title, key, meta, words = "cifar-10", "labels", "batches.meta", "label_names"
    else:
        names, title, key, meta, words = [part], "cifar-100", "fine_labels", "meta", "fine_label_names"
    binary = f"{names[0]}.bin" in files
    images, labels = [], []
    for name in names:
        file = f"{name}.bin" if binary else name
        if file not in files:
            raise UserError(f"{title} needs '{place}/{file}'; unpack the whole archive there")
        where = f"{place}/{file}"
        pixels, numbers = (
            _binary(files[file], where, 1 if kind == "cifar10" else 2) if binary else _pickle(files[file], where, key)
        )
        images.append(pixels)
        labels.append(numbers)
    planes = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = _classes(files, place, binary, meta, words)
    return ArrayDataset(f"{title} {part}", planes, np.concatenate(labels), classes, decoding=decoding)


def _binary(content: bytes, where: str, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(content, np.uint8)
    if not data.size or data.size % (label_bytes + 3072):
        raise UserError(f"'{where}' is cut short or not a CIFAR file; fetch it again")
    rows = data.reshape(-1, label_bytes + 3072)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)  # CIFAR-100: coarse, then fine


def _pickle(content: bytes, where: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    found = unpickled(content, where)
    pixels, numbers = found.get("data"), found.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072 or numbers is None:
        raise UserError(f"'{where}' is not a CIFAR file: it lacks data or {key}")
    if not isinstance(numbers, list) or not numbers or not all(isinstance(number, int) for number in numbers):
        raise UserError(f"'{where}' is not a CIFAR file: its {key} are not whole numbers")
    try:
        return pixels, np.array(numbers, np.int64)
    except OverflowError:
        raise UserError(f"'{where}' is not a CIFAR file: its {key} do not fit 64 bits") from None


def unpickled(content: bytes, where: str) -> dict[str, Any]:
    """Return the dictionary in a pickle: plain values and uint8 arrays, read without running any code from it.

    Keys are text, whether Python 2 or 3 wrote them. UserError where the file asks for anything but plain values and
    arrays (nothing of it has run then), is cut short, or holds no dictionary.
    """
    source = Source.over(content, where)
    with parsing(f"'{where}' is not a CIFAR file that can be read safely"):
        table = array_table(source, lambda values: values) | {"_codecs.encode": _text}
        found, _ = load(source, table, unknown=_refused, steps=MAX_STEPS, python_2=True)
        if not isinstance(found, dict):
            raise Damaged("it holds no dictionary")
        return {str(key): _bytes_of(item) if isinstance(item, Array) else item for key, item in found.items()}


def _refused(name: str) -> Callable[..., Any]:
    """No name is known but those that arrays need."""
    raise Damaged(f"it asks for {name}")


def _text(text: object, coding: object = "latin1") -> str | Span:
    """codecs.encode(text, "latin1"), with which protocol 2 writes bytes: names are text here, long ones stay away."""
    made = encode(text, coding)
    return made.decode("latin-1") if isinstance(made, bytes) else made


def _bytes_of(array: Array) -> np.ndarray:
    """The values of an array, which must be uint8."""
    values = array.finish()
    if not isinstance(values, Values) or values.dtype != np.uint8:
        raise Damaged("an array that is not uint8")
    return values.load()


def _classes(files: Mapping[str, bytes], place: str, binary: bool, meta: str, key: str) -> list[str]:
    if not binary:
        names = unpickled(files[meta], f"{place}/{meta}").get(key) if meta in files else []
        if not isinstance(names, list):
            return []
        if not all(isinstance(item, str) for item in names):
            raise UserError(f"'{place}/{meta}' is not a CIFAR file: its {key} are not names")
        return names
    name = "batches.meta.txt" if meta == "batches.meta" else "fine_label_names.txt"
    return files[name].decode("utf-8", "replace").split() if name in files else []
