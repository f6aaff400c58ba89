"""What a score is to be compared with: chance, the raw pixels, an encoder before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from triport.core.augment import pixels
from triport.core.backend.learner import Processes
from triport.core.evaluate.evaluation import Images, features, gather, knn
from triport.core.spec import AugmentSpec, MonitorSpec

SIDE = 32  # pixels to which larger pictures are shrunk
MOST = (20_000, 5_000)  # training and held-out images that are looked at, evenly spaced
APART = 0.01  # by which the largest class's share must exceed an even one to be told of


def shrunk(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return uint8 (height, width, channels) at most `side` high and wide."""
    if max(image.shape[:2]) <= side:
        return image
    planes = [Image.fromarray(np.ascontiguousarray(image[..., at])) for at in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize((side, side), Image.Resampling.BOX)) for plane in planes], axis=-1)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Return uint8 (n, height, width, channels) as rows float32 (n, values) from 0 to 1, shrunk to SIDE."""
    small = np.stack([shrunk(image) for image in images])
    return small.reshape(len(small), -1).astype(np.float32) / 255


def chance(labels: np.ndarray, classes: int) -> dict[str, float]:
    """Return the accuracy of guessing, and of always naming the largest class where that is more."""
    counts = np.bincount(labels, minlength=classes)
    largest = float(counts.max() / max(counts.sum(), 1))
    even = 1 / classes
    return {"chance": even, **({"largest class": largest} if largest > even + APART else {})}


@dataclass
class Baselines:
    """Measures them once, before training; all ranks call it."""

    processes: Processes
    monitor: MonitorSpec
    evaluate: AugmentSpec  # how the images are normalised
    classes: int
    train: Images  # some of the labelled images, and some held-out ones
    test: Images
    embed: Callable[[np.ndarray], np.ndarray] | None = None  # of an encoder that is scored by other means later

    def __call__(self) -> dict[str, Any]:
        """Return accuracies by name, and under "about" how they were measured."""
        try:
            train, test = (features(self._rows, images) for images in (self.train, self.test))
        finally:
            self.train.close()
            self.test.close()
        labels = self.processes.gather(test[1])
        width = max(train[0].shape[1], test[0].shape[1]) - self._width
        found: dict[str, Any] = chance(labels, self.classes)
        parts = {"raw pixels": slice(None, width), "the encoder before training": slice(width, None)}
        for name, part in parts.items() if self.embed is not None else [("raw pixels", slice(None))]:
            rows = [(split[0][:, part], split[1]) for split in (train, test)]
            found[name] = knn(rows[0], rows[1], self.processes, self.monitor, self.classes)
        counts = [len(gather(split[1][:, None], self.processes)) for split in (train, test)]
        about = f"kNN accuracy, {self.monitor.knn_neighbours} neighbours among {counts[0]} training images, "
        return {**found, "about": about + f"of {counts[1]} held-out images"}

    _width = 0  # of the encoder's features

    def _rows(self, images: np.ndarray) -> np.ndarray:
        pictures = pixels.to_bytes(images, self.evaluate.mean, self.evaluate.std)
        if self.embed is None:
            return raw_pixels(pictures)
        made = np.asarray(self.embed(images), np.float32)
        self._width = made.shape[1]
        return np.hstack([raw_pixels(pictures), made])
