"""Accuracy in whole numbers: counts that add up over batches and processes without rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def top_k(logits: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)) -> np.ndarray:
    """Count the rows whose label is among the k largest logits.

    logits (n, classes), labels (n,) -> int64 (len(ks),). Ties count for the smaller class index, so a
    constant output scores what always answering class 0 scores. A k above the number of classes counts every row.
    """
    if not len(labels):
        return np.zeros(len(ks), np.int64)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    index = np.arange(logits.shape[1])[None]
    ahead = (logits > own) | ((logits == own) & (index < labels[:, None]))
    # A NaN is never ahead of anything, so a row with one would pass for right.
    rank = np.where(np.isnan(logits).any(axis=1), logits.shape[1], ahead.sum(axis=1))
    return np.array([(rank < k).sum() for k in ks], np.int64)


def confusion(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (classes, classes): how often the true class (row) was answered as the other (column)."""
    table = np.zeros((classes, classes), np.int64)
    if len(labels):
        np.add.at(table, (labels, logits.argmax(axis=1)), 1)
    return table


class Counts:
    """Answers counted by class: `seen` and `hits` int64 (classes,), and the confusion table up to `LARGEST` classes.

    `table` is int64 (classes, classes), how often the true class (row) was answered as the other (column); None with
    more classes, of which it would be gigabytes.
    """

    LARGEST = 1000

    def __init__(self, classes: int) -> None:
        self.seen, self.hits = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        self.table = np.zeros((classes, classes), np.int64) if classes <= self.LARGEST else None

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count the answers of a batch, logits (n, classes) and labels (n,), where they fall and nowhere else."""
        if not len(labels):
            return
        answers = logits.argmax(axis=1)
        np.add.at(self.seen, labels, 1)
        np.add.at(self.hits, labels[answers == labels], 1)
        if self.table is not None:
            np.add.at(self.table, (labels, answers), 1)


def mean_per_class(seen: np.ndarray, hits: np.ndarray) -> float:
    """Return the mean over the classes that occur of the share answered rightly."""
    known = seen > 0
    return float((hits[known] / seen[known]).mean()) if known.any() else 0.0
