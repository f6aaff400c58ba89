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
# seg_train, train_set, train2017, trainset
_WORDS = "|".join(sorted(_SPLIT, key=len, reverse=True))
_WITHIN = re.compile(rf"((?:.*[-_. ])?)({_WORDS})((?:[-_. ]?\d+|[-_. ].*|set|data|images)?)", re.IGNORECASE)
Value = TypeVar("Value")


def meaning(name: str) -> str | None:
    """Return the split that a name means in any case, or None."""
    return _SPLIT.get(name.casefold())


def word_in(name: str) -> str | None:
    """Return the split that a word of a file's name means: "train-00000-of-00002.parquet" is of train."""
    found = {meaning(word) for word in re.split(r"[-_. /]+", name)} - {None}
    return found.pop() if len(found) == 1 else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each name that means one: train, val; or train2017, val2017; or seg_train, seg_test.

    Names with more than the word mean splits only where a training one stands beside another with the same rest: a
    class may be called bullet_train.
    """
    names = list(names)
    plain = {name: split for name in names if (split := meaning(name))}
    if plain:
        return plain
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        if found := _WITHIN.fullmatch(name):
            before, word, after = found.groups()
            alike.setdefault((before.casefold(), after.casefold()), {})[name] = _SPLIT[word.casefold()]
    whole = [known for known in alike.values() if len(set(known.values())) > 1 and "train" in known.values()]
    return whole[0] if len(whole) == 1 else {}


def split_of(named: Mapping[str, Value], split: str) -> Value | None:
    """Return what the names give for a split: of test without one the val split's, and the other way about.

    UserError where two names mean the same split.
    """
    known = splits_among(named)
    for wanted in ORDER[split]:
        found = [name for name in named if known.get(name) == wanted]
        if len(found) > 1:
            raise UserError(f"{' and '.join(sorted(found))} both mean the {wanted} split; rename one of them")
        if found:
            return named[found[0]]
    return None


def divided(root: Path, names: Iterable[str]) -> bool:
    """Say whether the folders `names` in `root` are splits.

    They are where all of them are called so, or a training folder stands beside another split or has folders in it.
    """
    known = splits_among(names)
    splits = [known.get(name) for name in names]
    if "train" not in splits:
        return bool(splits) and None not in splits
    if len({*splits} - {None}) > 1 or None not in splits:
        return True
    train = next(name for name, split in zip(names, splits, strict=True) if split == "train")
    with os.scandir(root / train) as items:
        return any(item.is_dir() and not item.name.startswith(".") for item in items)
