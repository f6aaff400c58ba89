"""Labels as classes: numbers or words, checked; a fault is noted, since pretraining goes without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 1 << 20  # classes; a larger label is damage, and a list of so many names would fill the memory


@dataclass(frozen=True)
class Labels:
    """The class of each image, int64 (n,), -1 where nobody knows it; and the names of the classes.

    With a `fault` they cannot serve a classifier, and it says why; most often there are none then.
    """

    numbers: np.ndarray
    classes: list[str]
    fault: str = ""


def unlabelled(length: int, fault: str = "") -> Labels:
    """Return labels of images that have none, or faulty ones."""
    return Labels(np.full(length, -1, np.int64), [], " ".join(fault.split()))


def numbered(
    name: str, values: np.ndarray, length: int, classes: Sequence[str] = (), least: int = 0, dense: bool = False
) -> Labels:
    """Return labels that are whole numbers, (n,) or (n, 1) of any type.

    classes: their names; without, they are called by their numbers, as many as the highest label says and `least` at
    any rate. dense: each class up to the highest must occur.
    """
    values = values.reshape(length) if values.size == length and values.ndim else values
    if values.shape != (length,) or values.dtype.kind not in "iu":
        kind = f"{values.dtype} {values.shape}"
        return unlabelled(length, f"{name}: {length} images need as many whole-number labels, not {kind}")
    if not length:
        return unlabelled(0)
    low, high = int(values.min()), int(values.max())
    limit = len(classes) or MOST
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        index = int(np.argmax(values == wrong))
        return unlabelled(length, f"{name}: label {wrong} of image {index}: labels must lie in 0..{limit - 1}")
    numbers = values.astype(np.int64)
    if dense and (counts := np.bincount(numbers, minlength=high + 1)).min() == 0:
        return unlabelled(length, f"{name} has no image of class {int(counts.argmin())}; labels count from 0")
    return Labels(numbers, list(classes) or [str(number) for number in range(max(high + 1, least))])


def worded(name: str, words: Sequence[str], known: Sequence[str] = (), dense: bool = False) -> Labels:
    """Return labels that are texts: whole numbers where all of them are digits, else names, numbered in sorted order.

    known: the names of the training split, which number these too.
    """
    distinct = set(words)
    if all(word.isascii() and word.isdigit() and len(word) < 19 for word in distinct):
        digits = {word: int(word) for word in distinct}
        values = np.fromiter((digits[word] for word in words), np.int64, len(words))
        return numbered(name, values, len(words), least=len(known), dense=dense)
    if all(word.lstrip("-").isdigit() for word in distinct):
        long = max(distinct, key=len)[:24]
        return unlabelled(len(words), f"{name}: label {long}: labels must lie in 0..{MOST - 1}")
    if len(distinct) > MOST:
        return unlabelled(len(words), f"{name} has {len(distinct)} different labels, more than {MOST}")
    names = list(known) or sorted(distinct)
    place = {word: number for number, word in enumerate(names)}
    if strange := sorted(distinct - place.keys()):
        return unlabelled(len(words), f"{name}: class '{strange[0]}' has no counterpart among the training classes")
    return Labels(np.fromiter((place[word] for word in words), np.int64, len(words)), names)
