"""The same picture, moved: held-out pictures shifted by a few pixels and mirrored, with the labels that they had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triport.core.augment.pixels import as_array
from triport.core.data.datasets import Dataset, open_dataset
from triport.core.rng import generator
from triport.core.spec import Recipe


@dataclass(frozen=True)
class Change:
    """How held-out pictures are moved: by up to `by` pixels up or down and left or right, and mirrored or not."""

    name: str
    title: str
    by: int
    mirrored: bool


CHANGES = (
    Change("unmoved", "as they are", 0, False),
    Change("moved", "moved by up to 2 pixels", 2, False),
    Change("mirrored", "moved by up to 4 pixels and mirrored", 4, True),
)


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 (n, height, width, channels) and their labels (n,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def flat(self) -> np.ndarray:
        """The pixels as features (n, height * width * channels) float32 in [-0.5, 0.5]."""
        return self.pixels.reshape(len(self.pixels), -1).astype(np.float32) / 255 - np.float32(0.5)


@dataclass(frozen=True)
class Shown:
    """All that the demo scores: training pictures, and held-out ones under each change, by its name."""

    train: Pictures
    tests: dict[str, Pictures]
    classes: list[str]


def load(recipe: Recipe) -> Shown:
    """Return the pictures that the recipe is made for, the held-out ones under every change."""
    channels = recipe.model.encoder.channels
    train, test = (open_dataset(None, split, recipe.data, channels) for split in ("train", "test"))
    own = read(test)
    tests = {change.name: Pictures(moved(own.pixels, change), own.labels) for change in CHANGES}
    return Shown(read(train), tests, list(train.classes))


def read(dataset: Dataset) -> Pictures:
    """Return a whole data set."""
    numbers = range(len(dataset))
    pixels = np.stack([as_array(dataset.image(number)) for number in numbers])
    return Pictures(pixels, np.array([dataset.label(number) for number in numbers], np.int64))


def moved(pixels: np.ndarray, change: Change) -> np.ndarray:
    """Return pictures uint8 (n, height, width, channels), each moved by its own draw; what is uncovered is black."""
    by, (height, width) = change.by, pixels.shape[1:3]
    draws = generator("demo", change.name).integers(0, 2 * by + 1, (len(pixels), 2))
    wide = np.pad(pixels, ((0, 0), (by, by), (by, by), (0, 0)))
    out = np.stack([image[top : top + height, left : left + width] for image, (top, left) in zip(wide, draws.tolist())])
    return np.ascontiguousarray(out[:, :, ::-1]) if change.mirrored else out
