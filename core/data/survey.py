"""What a dataset holds: its splits, classes with counts, sizes, channels, and what cannot be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from triport.core.data import datasets
from triport.core.data.sample.decode import BrokenImage, Source
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.spec import DataSpec

SPLITS: tuple[datasets.Split, ...] = ("train", "val", "test")


@dataclass
class SplitSurvey:
    """One split, and a look at some of its images."""

    split: str
    dataset: Samples
    counts: list[int]  # images of each class
    looked: list[int] = field(default_factory=list)  # indices that were decoded
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of those that could be
    channels: Counter[int] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)
    large: dict[int, int] = field(default_factory=dict)  # more pixels than allowed

    def size_line(self) -> str:
        """Return the smallest, middle and largest size, "height x width"."""
        if not self.sizes:
            return "none could be read"
        ordered = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        shown = [f"{height} x {width}" for height, width in (ordered[0], ordered[len(ordered) // 2], ordered[-1])]
        return f"all {shown[0]}" if len(set(ordered)) == 1 else f"{shown[0]} to {shown[2]}, half up to {shown[1]}"


@dataclass
class Survey:
    """A dataset: its kind, the splits that differ, and remarks."""

    where: str
    kind: str
    channels: int
    splits: list[SplitSurvey]
    missing: dict[str, str]  # split -> why there is none
    remarks: list[str]


def survey(where: str, channels: int | None, look: int, **reading: Any) -> Survey:
    """Open every split and decode `look` images of each, evenly spaced; 0 for all of them.

    channels: those of the model; without, those that the images have. reading: keywords of `open_dataset`. Splits that
    are the same images are named once. UserError where there is no split at all.
    """
    found: list[SplitSurvey] = []
    missing: dict[str, str] = {}
    for split in SPLITS:
        try:
            dataset = open_with(where, split, channels, reading)
        except UserError as error:
            missing[split] = str(error)
            continue
        same = next((other.split for other in found if _same(other.dataset, dataset)), None)
        if same:
            missing[split] = f"the same images as {same}"
            continue
        found.append(_look(split, dataset, look))
    if not found:
        raise UserError(missing["train"])
    kind = datasets.kind_of(where)
    remarks = datasets.remarks(*(part.dataset for part in found))
    return Survey(where, kind, found[0].dataset.channels, found, missing, remarks)


def open_with(where: str, split: datasets.Split, channels: int | None, reading: dict[str, Any]) -> Samples:
    """Open a split with the model's channels, or with 3, or else with those that the images are found to have."""
    spec = DataSpec(name="imagenet")
    if channels is not None:
        return datasets.open_dataset(where, split, spec, channels, **reading)
    try:
        dataset = datasets.open_dataset(where, split, spec, 3, **reading)
        dataset.image(0)
    except (datasets.ChannelMismatch, BrokenImage) as error:
        if error.channels:
            return datasets.open_dataset(where, split, spec, error.channels, **reading)
    return dataset


def _same(first: Samples, other: Samples) -> bool:
    try:
        datasets.check_apart(first, other)
    except UserError:
        return True
    return False


def _look(split: str, dataset: Samples, look: int) -> SplitSurvey:
    known = dataset.labels[dataset.labels >= 0]
    made = SplitSurvey(split, dataset, np.bincount(known, minlength=len(dataset.classes)).tolist())
    count = len(dataset) if look == 0 else min(look, len(dataset))
    made.looked = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()
    for index in made.looked:
        try:
            image = dataset.image(index)
        except BrokenImage as error:
            if error.pixels:
                made.large[index] = error.pixels
            else:
                made.broken[index] = str(error)
            continue
        height, width, own = shape_of(image)
        made.sizes.append((height, width))
        made.channels[own] += 1
    return made


def shape_of(image: Source) -> tuple[int, int, int]:
    """Return (height, width, channels) of a decoded image."""
    if isinstance(image, Image.Image):
        return image.height, image.width, len(image.getbands())
    return image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1
