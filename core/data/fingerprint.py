"""A fingerprint of a data set: the list of its samples, so that a run does not go on with others unnoticed."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from triport.core.data.datasets import ArrayDataset, Dataset, FileDataset

SIZES = 100_000  # files whose size is looked at; a million look-ups take minutes on a network disk


def fingerprint(dataset: Dataset) -> str:
    """Return a digest of the list of samples, 32 hexadecimal digits; where the data lies does not enter.

    Files: their paths below the data set's folder, labels, and sizes (of at most SIZES, evenly spaced). Arrays: pixels
    and labels; of mapped files, too large to be read for it, shape and labels. Other kinds: number of samples, class
    names and labels.
    """
    whole = hashlib.blake2b(digest_size=16)
    whole.update(repr((len(dataset), list(dataset.classes))).encode("utf-8", "surrogatepass"))
    if isinstance(dataset, FileDataset):
        whole.update(dataset.listing())
        whole.update(dataset.labels.tobytes())
        indices = np.linspace(0, len(dataset) - 1, min(SIZES, len(dataset))).astype(int).tolist()
        whole.update(np.array([_size(dataset.path(index)) for index in indices], np.int64).tobytes())
    elif isinstance(dataset, ArrayDataset):
        whole.update(repr(dataset.images.shape).encode())
        if isinstance(dataset.images, np.ndarray):
            whole.update(np.ascontiguousarray(dataset.images).data)
        whole.update(dataset.labels.tobytes())
    else:
        whole.update(np.array([dataset.label(index) for index in range(len(dataset))], np.int64).tobytes())
    return whole.hexdigest()


def _size(path: str) -> int:
    """Bytes of a file; -1 where there is none: the loader counts it as broken."""
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a million Paths take seconds
    except OSError:
        return -1
