"""The demo's figures: kNN accuracy of pixels, of the untrained and the trained network, and what is near."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from triport.core.evaluate import representation
from triport.core.evaluate.monitors import normalise
from triport.core.spec import MonitorSpec
from triport.demo.moved import CHANGES, Pictures, Shown

ANSWERS = "answers.npz"  # what `answers` writes
NEAR = 6  # neighbours that are shown


@dataclass(frozen=True)
class Score:
    """kNN accuracies, 0 to 1, of held-out pictures under one change."""

    title: str
    pixels: float
    untrained: float
    trained: float


@dataclass(frozen=True)
class Query:
    """A held-out picture and the training pictures nearest to it, by pixels and by the network's features."""

    place: int  # among the held-out pictures
    label: int
    pixels: list[int]
    trained: list[int]


@dataclass(frozen=True)
class Scores:
    """All figures, by the name of the change; the neighbours are of the pictures changed most."""

    scores: dict[str, Score]
    queries: list[Query]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def from_plain(found: dict[str, Any]) -> Scores:
    """The inverse of `Scores.plain`."""
    scores = {name: Score(**values) for name, values in found["scores"].items()}
    return Scores(scores, [Query(**values) for values in found["queries"]])


def measure(shown: Shown, trained: np.ndarray, untrained: np.ndarray, monitor: MonitorSpec) -> Scores:
    """Score pixels and features alike: cosine kNN with the recipe's neighbours and temperature.

    trained, untrained: features of the training pictures and then of those of every change, as `answers` writes them.
    """
    classes, count = len(shown.classes), len(shown.train.labels)
    ends = [count]
    for test in shown.tests.values():
        ends.append(ends[-1] + len(test.labels))
    rows = {"untrained": untrained, "trained": trained}
    scores = {}
    for at, change in enumerate(CHANGES):
        test = shown.tests[change.name]
        found = {"pixels": accuracy(shown.train, test, shown.train.flat(), test.flat(), classes, monitor)}
        for name, features in rows.items():
            part = features[ends[at] : ends[at + 1]]
            found[name] = accuracy(shown.train, test, features[:count], part, classes, monitor)
        scores[change.name] = Score(change.title, **found)
    last = shown.tests[CHANGES[-1].name]
    places = first_of_each(last.labels)
    by_pixels = nearest(shown.train.flat(), last.flat()[places])
    by_network = nearest(trained[:count], trained[ends[-2] :][places])
    queries = [
        Query(place, int(last.labels[place]), near, own)
        for place, near, own in zip(places, by_pixels.tolist(), by_network.tolist())
    ]
    return Scores(scores, queries)


def accuracy(
    train: Pictures, test: Pictures, rows: np.ndarray, tested: np.ndarray, classes: int, monitor: MonitorSpec
) -> float:
    """The kNN accuracy of features."""
    known, asked = representation.Features(rows, train.labels), representation.Features(tested, test.labels)
    found = representation.knn(known, asked, classes, (monitor.knn_neighbours,), monitor.knn_temperature)
    return next(iter(found.values()))


def first_of_each(labels: np.ndarray) -> list[int]:
    """The place of the first picture of every class: nobody chose them."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]


def nearest(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Places (m, NEAR) of the rows most like each of those asked by cosine, the nearest first."""
    similar = normalise(asked) @ normalise(rows).T
    return np.argsort(-similar, axis=1, kind="stable")[:, :NEAR]
