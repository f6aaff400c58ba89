"""Class names: a data set's classes found among those that a model was trained on, by name and never by place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from triport.core.errors import UserError, closest

if TYPE_CHECKING:
    from triport.core.data.datasets import Dataset

SHOWN = 5  # names that an error lists


def class_rows(trained: Sequence[str], given: Sequence[str], source: str) -> np.ndarray:
    """Return, for each of the classes `given`, its row among the classes a model was `trained` on: int64 (len(given),).

    source: whose classes are given, for the error. UserError lists the names that the model does not know.
    """
    if list(trained) == list(given):
        return np.arange(len(given))
    for names, whose in ((trained, "the model"), (given, f"'{source}'")):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(
                f"{whose} has two classes named '{twice[0]}', so classes cannot be found by name; rename one."
            )
    rows = {name: row for row, name in enumerate(trained)}
    unknown = [name for name in given if name not in rows]
    if unknown:
        listed = ", ".join(f"'{name}'" for name in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        left = [name for name in trained if name not in set(given)]
        hint = closest(unknown[0], left) or (f" Not found: {', '.join(map(repr, left[:3]))}." if left else "")
        raise UserError(
            f"'{source}' has {len(unknown)} of {len(given)} classes that the model was not trained on: "
            f"{listed}{more}.{hint} Give the classes the names they had in training, or leave these out."
        )
    return np.array([rows[name] for name in given], np.int64)


@dataclass
class Relabelled:
    """A data set whose labels are rows of a model; a Dataset itself."""

    whole: Dataset
    rows: np.ndarray  # int64: of each of the data set's own classes
    classes: list[str]  # the model's
    name: str
    channels: int

    def __len__(self) -> int:
        return len(self.whole)

    def image(self, index: int, /) -> Image.Image | np.ndarray:
        """Image `index`."""
        return self.whole.image(index)

    def label(self, index: int, /) -> int:
        """The model's row of its class, or -1 where nobody knows the class."""
        own = self.whole.label(index)
        return int(self.rows[own]) if own >= 0 else -1


def by_name(dataset: Dataset, trained: Sequence[str]) -> Dataset:
    """Return the data set with the classes `trained` of a model, each of its own found there by name.

    UserError where it has other ones. A data set without classes is returned as it is.
    """
    if not dataset.classes or list(dataset.classes) == list(trained):
        return dataset
    rows = class_rows(trained, dataset.classes, dataset.name)
    return Relabelled(dataset, rows, list(trained), dataset.name, dataset.channels)


def read_class_names(path: Path) -> dict[str, str]:
    """Read names for people: lines "n01440764 tench", or JSON {"n01440764": "tench"} or {"0": ["n01440764", "tench"]}.

    UserError for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("{"):
            entries = json.loads(text).items()
            pairs = [tuple(value) if isinstance(value, list) else (key, value) for key, value in entries]
        else:
            pairs = [tuple(line.replace("\t", " ").strip().split(" ", 1)) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"--class-names {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"--class-names {path} is neither UTF-8 lines nor JSON.") from None
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(word, str) and word for word in pair):
            raise UserError(
                f"--class-names {path} needs a class and its name on each line, not {' '.join(map(str, pair))!r}."
            )
    return {name: readable.strip() for name, readable in pairs}
