"""All that a demo found, from which the console, the page and the poster are written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from triport.demo import passage
from triport.demo.moved import CHANGES
from triport.demo.passage import Stop
from triport.demo.resume import Resumed
from triport.demo.scores import Scores

AHEAD = 5.0  # points of kNN accuracy


@dataclass(frozen=True)
class Result:
    """What a finished demo shows."""

    title: str  # of the recipe
    epochs: int
    machine: str
    minutes: float
    tested: int  # held-out pictures
    trained_on: int
    neighbours: int
    scores: Scores
    titles: list[str]  # of the frameworks
    curves: dict[str, dict[int, float]]  # framework -> step -> loss
    resumed: Resumed
    stops: list[Stop]
    answers: str  # the file of features and reconstructions, in the demo's folder
    must: float = AHEAD  # points that training must win over pixels, moved and mirrored
    missing: str = ""  # which frameworks were left out, and what would bring them
    good: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "good", not self.faults())

    @property
    def ahead(self) -> float:
        """Points by which the network beats pixels on pictures moved and mirrored."""
        last = self.scores.scores[CHANGES[-1].name]
        return 100 * (last.trained - last.pixels)

    @property
    def apart(self) -> float:
        """The largest difference of the losses at one step, as a share of them; 0 of a single framework."""
        curves = list(self.curves.values())
        common = set.intersection(*map(set, curves))
        spans = [[curve[step] for curve in curves] for step in common]
        return max((max(span) - min(span)) / abs(min(span)) for span in spans) if len(curves) > 1 and spans else 0.0

    def named(self) -> str:
        """The frameworks in a sentence."""
        return ", ".join(self.titles[:-1]) + (" and " if len(self.titles) > 1 else "") + self.titles[-1]

    def fitting(self, labels: np.ndarray, key: str) -> tuple[int, int]:
        """How many of the shown neighbours, by "pixels" or "trained", have their query's class; and of how many."""
        found = [labels[place] == query.label for query in self.scores.queries for place in getattr(query, key)]
        return int(sum(found)), len(found)

    def faults(self) -> list[str]:
        """What went other than it must; empty where all is well."""
        found = []
        if self.ahead < self.must:
            found.append(f"training won {self.ahead:.1f} points over pixels, less than the {self.must:g} that it must")
        if not self.resumed.equal:
            found.append("the resumed run differs from the undisturbed one")
        if not passage.equal(self.stops):
            found.append("the encoder came back from the other frameworks' files changed")
        return found

    def verdict(self) -> str:
        """The sentence that says how it went."""
        last = self.scores.scores[CHANGES[-1].name]
        if faults := self.faults():
            return f"Something is wrong: {'; '.join(faults)}."
        return (
            f"On pictures {last.title} the network finds the right class for {100 * last.trained:.1f} %, "
            f"raw pixels for {100 * last.pixels:.1f} %."
        )

    def facts(self) -> list[str]:
        """What is worth knowing beside the verdict."""
        first = self.scores.scores[CHANGES[0].name]
        return [
            f"{self.title}: {self.epochs} epochs on {self.trained_on:,} small pictures; all of this page took "
            f"{self.minutes:.1f} minutes on {self.machine}.",
            f"On the pictures {first.title}: {100 * first.trained:.1f} % by the network, {100 * first.pixels:.1f} % by "
            "pixels.",
            self.missing,
        ]
