"""A fingerprint of a data set: the list of its samples, so that a run does not go on with others unnoticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from triport.core.data.datasets import ArrayDataset, Dataset, FileDataset
from triport.core.data.readers.parquet import ParquetDataset
from triport.core.data.readers.shards import ShardDataset
from triport.core.data.sample import npy

SIZES = 100_000  # files whose size is looked at; a million look-ups take minutes on a network disk
ROWS = 256  # images of a mapped array whose pixels are looked at; all of them may be terabytes


def fingerprint(dataset: Dataset) -> str:
    """Return a digest of the list of samples, 32 hexadecimal digits; where the data lies does not enter.

    Of every kind: number of samples, class names, labels. Of image files also their paths below the data set's folder
    and sizes (of at most SIZES, evenly spaced). Of arrays in memory all pixels; of mapped ones shape, number type and
    the pixels of at most ROWS images, evenly spaced. Of shards their names and where in them each image lies, how
    long. Of parquet files their names, sizes, and where their row groups begin.
    """
    whole = hashlib.blake2b(digest_size=16)
    whole.update(repr((len(dataset), list(dataset.classes))).encode("utf-8", "surrogatepass"))
    for part in _parts(dataset):
        whole.update(part)
    return whole.hexdigest()


def _parts(dataset: Dataset) -> Iterator[bytes | memoryview]:
    """What tells a list of samples from another."""
    if isinstance(dataset, FileDataset):
        yield dataset.listing()
        yield dataset.labels.tobytes()
        sizes = [_size(dataset.path(index)) for index in _spread(len(dataset), SIZES)]
        yield np.array(sizes, np.int64).tobytes()
        return
    if isinstance(dataset, ArrayDataset):
        yield repr(tuple(dataset.images.shape)).encode()
        if isinstance(dataset.images, npy.Mapped):
            yield dataset.images.dtype.str.encode()
            for index in _spread(len(dataset), ROWS):
                yield np.ascontiguousarray(dataset.images[index]).tobytes()
        else:
            yield np.ascontiguousarray(dataset.images).reshape(-1).view(np.uint8).data
        yield dataset.labels.tobytes()
        return
    if isinstance(dataset, ShardDataset):
        yield _names(dataset.shards)
        for column in (dataset.index.shard, dataset.index.offset, dataset.index.size):
            yield np.asarray(column, np.int64).tobytes()
    elif isinstance(dataset, ParquetDataset):
        yield _names(dataset.files)
        yield np.array([_size(file) for file in dataset.files], np.int64).tobytes()
        yield np.asarray(dataset.groups, np.int64).tobytes()
    yield np.array([dataset.label(index) for index in range(len(dataset))], np.int64).tobytes()


def _spread(length: int, most: int) -> list[int]:
    """Places evenly spread over 0..length - 1, at most so many."""
    return np.linspace(0, length - 1, min(most, length)).astype(int).tolist()


def _names(files: list[str]) -> bytes:
    """The names of files, without the folders that they lie in."""
    return repr([Path(file).name for file in files]).encode("utf-8", "surrogatepass")


def _size(path: str) -> int:
    """Bytes of a file; -1 where there is none: the loader counts it as broken."""
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a million Paths take seconds
    except OSError:
        return -1
