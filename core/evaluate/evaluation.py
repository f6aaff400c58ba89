"""Scores on held-out images: kNN, spread and effective rank of features, accuracy of a classifier; over all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from triport.core import atomic
from triport.core.backend.learner import Processes
from triport.core.data.datasets import Dataset
from triport.core.evaluate import metrics, monitors
from triport.core.spec import MonitorSpec

if TYPE_CHECKING:
    from triport.core.data.loader import Batch

PROBE = 1024  # held-out images whose features are watched after every epoch


class Images(Protocol):
    """What is asked of a loader in evaluation: each rank's own part of the images, in order."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[Sequence[Batch]]:
        """Batches of one pass."""

    def close(self) -> None:
        """End what works on them."""


@dataclass
class Subset:
    """Images of a dataset, by index; a Dataset itself."""

    whole: Dataset
    indices: tuple[int, ...]
    name: str
    classes: list[str]
    channels: int

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, /) -> Image.Image | np.ndarray:
        """Image `index` of the subset."""
        return self.whole.image(self.indices[index])

    def label(self, index: int, /) -> int:
        """Its label."""
        return self.whole.label(self.indices[index])


def evenly_spaced(dataset: Dataset, count: int = PROBE) -> Dataset:
    """Return at most `count` images, evenly spaced, as folders come sorted by class."""
    if len(dataset) <= count:
        return dataset
    indices = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
    return Subset(dataset, tuple(indices), dataset.name, dataset.classes, dataset.channels)


# ---------------------------------------------------------------- features
def features(embed: Callable[[np.ndarray], np.ndarray], images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return this rank's features (n, width) and labels (n,); `embed` is any function of images (n, C, H, W)."""
    rows, labels = [np.zeros((0, 0), np.float32)], [np.zeros(0, np.int64)]
    for batches in images.epoch(0):
        for batch in batches:
            if not len(batch.labels):  # all of its images are broken
                continue
            made = np.asarray(embed(batch.images[0]))
            made = made if made.dtype == np.float64 else made.astype(np.float32, copy=False)
            rows.append(made.reshape(len(batch.labels), -1))
            labels.append(batch.labels)
    return _stack(rows), np.concatenate(labels)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    full = [part for part in rows if len(part)]
    return np.concatenate(full) if full else rows[0]


def gather(rows: np.ndarray, processes: Processes) -> np.ndarray:
    """Return all ranks' rows; a rank without rows learns their width and type from the others."""
    if processes.world == 1:
        return rows
    width, size = processes.gather(np.array([[rows.shape[1], rows.dtype.itemsize]], np.int64)).max(axis=0).tolist()
    return processes.gather(rows.reshape(len(rows), width).astype(f"f{size}"))


def knn(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    processes: Processes,
    monitor: MonitorSpec,
    classes: int,
) -> float:
    """Return kNN accuracy; each rank holds its part of both, searches its training part, and the finds are merged."""
    rows, labels = gather(test[0], processes), processes.gather(test[1])
    count = monitor.knn_neighbours
    found = np.full((len(rows), count), -np.inf, np.float32)
    whose = np.zeros((len(rows), count), np.int64)
    if len(train[0]):
        own = monitors.neighbours(train[0], train[1], rows, count)
        found[:, : own[0].shape[1]], whose[:, : own[1].shape[1]] = own
    if processes.world > 1:
        found, whose = (
            processes.gather(part).reshape(processes.world, len(rows), count).transpose(1, 0, 2).reshape(len(rows), -1)
            for part in (found, whose)
        )
        found, whose = monitors.merge(found, whose, count)
    answers = monitors.vote(found, whose, monitor.knn_temperature, classes).argmax(axis=1)
    return float((answers == labels).mean())


# ---------------------------------------------------------------- accuracy
@dataclass(frozen=True)
class Accuracy:
    """Counts over the whole held-out set; every share is a division of whole numbers."""

    images: int
    right: int
    right5: int
    seen: np.ndarray  # int64 (classes,), images of each class
    hits: np.ndarray  # int64 (classes,), those answered rightly
    table: np.ndarray | None  # confusion, int64 (classes, classes), rows are the truth; None for over 1,000 classes

    @property
    def scores(self) -> dict[str, float]:
        """Shares from 0 to 1: top1, top5 where there are more than 5 classes, mean_per_class."""
        share = {"top1": self.right / max(self.images, 1)}
        if len(self.seen) > 5:
            share["top5"] = self.right5 / max(self.images, 1)
        return {**share, "mean_per_class": metrics.mean_per_class(self.seen, self.hits)}


def accuracy(
    predict: Callable[[np.ndarray], np.ndarray],
    images: Images,
    processes: Processes,
    classes: int,
    among: np.ndarray | None = None,
) -> Accuracy:
    """Count right answers over the images of all ranks.

    among: rows of the only classes that an answer may be; None for all of them.
    """
    closed = np.zeros(classes, bool)
    if among is not None:
        closed = ~np.isin(np.arange(classes), among)
    counts = np.zeros(3, np.int64)
    answers = metrics.Counts(classes)
    for batches in images.epoch(0):
        for batch in batches:
            if not len(batch.labels):
                continue
            logits = np.where(closed, np.float32(-np.inf), np.asarray(predict(batch.images[0])))
            counts += [len(logits), *metrics.top_k(logits, batch.labels, (1, 5))]
            answers.add(logits, batch.labels)
    seen, hits, table = answers.seen, answers.hits, answers.table
    if processes.world > 1:
        counts, seen, hits = (processes.gather(part[None]).sum(axis=0) for part in (counts, seen, hits))
        table = None if table is None else processes.gather(table[None]).sum(axis=0)
    total, right, right5 = counts.tolist()
    return Accuracy(total, right, right5, seen, hits, table)


def write_accuracy(path: Path, result: Accuracy, names: Sequence[str], **more: Any) -> None:
    """Write counts, shares, class names and the confusion table as JSON."""
    counted = zip(result.hits.tolist(), result.seen.tolist(), strict=True)
    per_class = [hit / seen if seen else None for hit, seen in counted]
    content = {
        **more,
        "images": result.images,
        "right": result.right,
        **result.scores,
        "classes": list(names),
        "per_class": per_class,
    }
    if result.table is not None:
        content["confusion"] = result.table.tolist()
    atomic.write_text(path, json.dumps(content) + "\n")
