"""Which folder, file or array is which split, by its name: train, val and test as people write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from triport.core.errors import UserError

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
# where a split is taken from: what `best` is chosen on is never the test split where there is another
ORDER = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}
_SPLIT = {word: split for split, words in NAMES.items() for word in words}
Value = TypeVar("Value")


def meaning(name: str) -> str | None:
    """Return the split that a name means in any case, or None."""
    return _SPLIT.get(name.casefold())


def word_in(name: str) -> str | None:
    """Return the split that a word of a file's name means: "train-00000-of-00002.parquet" is of train."""
    found = {meaning(word) for word in re.split(r"[-_. /]+", name)} - {None}
    return found.pop() if len(found) == 1 else None


def split_of(named: Mapping[str, Value], split: str) -> Value | None:
    """Return what the names give for a split: of test without one the val split's, and the other way about.

    UserError where two names mean the same split.
    """
    for wanted in ORDER[split]:
        found = [name for name in named if meaning(name) == wanted]
        if len(found) > 1:
            raise UserError(f"{' and '.join(sorted(found))} both mean the {wanted} split; rename one of them")
        if found:
            return named[found[0]]
    return None


def divided(root: Path, names: Iterable[str]) -> bool:
    """Say whether the folders `names` in `root` are splits.

    They are where all of them are called so, or a training folder stands beside another split or has folders in it.
    """
    splits = [meaning(name) for name in names]
    if "train" not in splits:
        return bool(splits) and None not in splits
    if len({*splits} - {None}) > 1 or None not in splits:
        return True
    train = next(name for name, split in zip(names, splits, strict=True) if split == "train")
    with os.scandir(root / train) as items:
        return any(item.is_dir() and not item.name.startswith(".") for item in items)
