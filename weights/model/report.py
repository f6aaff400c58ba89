"""What a conversion did with every array, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from triport.weights.layouts.layout import shown

MEANING = {
    "transpose": "transposed",
    "-transpose": "transposed",
    "heads": "reordered",
    "-heads": "reordered",
    "decoder heads": "reordered",
    "-decoder heads": "reordered",
    "thirds": "split",
    "-thirds": "joined",
}
KINDS = ("unchanged", "renamed", "transposed", "reordered", "split", "joined", "resampled", "cast", "folded", "made")
SHOWN = 20  # names per list that people are shown
FEW = 3  # of what was dropped or made, mostly many of a kind


@dataclass
class Carried:
    """One array that arrived."""

    name: str  # canonical
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    done: tuple[str, ...]  # of KINDS


@dataclass
class Report:
    """Source, target, and the fate of every array."""

    source: str = ""
    target: str = ""
    from_layout: str = ""
    to_layout: str = ""
    architecture: str = ""
    heads: int | None = None
    decoder_heads: int | None = None
    norm_eps: float | None = None
    arrays: list[str] = field(default_factory=list)  # names of all arrays in the source
    carried: list[Carried] = field(default_factory=list)
    made: list[tuple[str, str]] = field(default_factory=list)  # name, why
    dropped: list[tuple[str, str]] = field(default_factory=list)  # name in the source, why
    missing: list[str] = field(default_factory=list)  # canonical names that a part of the model should have
    unknown: list[str] = field(default_factory=list)  # names in the source that its layout does not have
    notes: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)  # why the target is another function, where that was allowed
    load: str = ""  # a line of Python that loads the target
    verified: dict[str, float] = field(
        default_factory=dict
    )  # output -> largest difference, relative to the largest value
    provenance: dict[str, Any] = field(default_factory=dict)

    def carry(
        self, name: str, sources: tuple[str, ...], targets: tuple[str, ...], rearrangements: Iterable[str]
    ) -> None:
        """Note an array that arrives, with its rearrangements."""
        done = {MEANING.get(step, step) for step in rearrangements}
        if sources != targets and sources:
            done.add("renamed")
        order = [kind for kind in KINDS if kind in done] or ["unchanged"]
        self.carried.append(Carried(name, sources, targets, tuple(order)))

    def names(self, kind: str) -> list[str]:
        """Canonical names of the arrays to which `kind` happened."""
        return [c.name for c in self.carried if kind in c.done]

    def fates(self) -> dict[str, str]:
        """The one fate of every array of the source: what changed it most, or that it is dropped or unknown."""
        fates = dict.fromkeys(self.unknown, "unknown") | {name: "dropped" for name, _ in self.dropped}
        for carried in self.carried:
            kinds = [kind for kind in carried.done if kind != "made"] or ["unchanged"]
            fates |= dict.fromkeys(carried.sources, max(kinds, key=KINDS.index))
        return {name: fates.get(name, "dropped") for name in self.arrays}

    def counts(self) -> dict[str, int]:
        """How many arrays of the source had which fate, and how many of the target were made or are missing."""
        fates = list(self.fates().values())
        counts = {kind: fates.count(kind) for kind in (*KINDS[:-1], "dropped", "unknown")}
        return counts | {"made": len(self.made), "missing": len(self.missing)}

    def faults(self) -> str:
        """What --strict refuses, in one line; "" where there is nothing."""
        faults = [
            f"{len(names)} {kind} ('{shown(names[0])}')"
            for kind in ("missing", "unknown")
            if (names := getattr(self, kind))
        ]
        return " and ".join(faults)

    def lines(self) -> list[str]:
        """The report for people, without the table of counts."""
        lines = [f"{self.source} ({self.from_layout}) -> {self.target} ({self.to_layout})", self.architecture]
        why: dict[str, list[str]] = {}
        for name, reason in self.dropped:
            why.setdefault(reason, []).append(name)
        lines += [f"dropped ({reason}): {_some(names, FEW)}" for reason, names in why.items()]
        why = {}
        for name, reason in self.made:
            why.setdefault(reason, []).append(name)
        lines += [f"made ({reason}): {_some(names, FEW)}" for reason, names in why.items()]
        lines += [f"{kind}: {_some(names)}" for kind in ("missing", "unknown") if (names := getattr(self, kind))]
        return lines + [f"note: {note}" for note in self.notes]

    def summary(self) -> str:
        """A few lines for a log: what was read, and what of it stayed behind."""
        lines = [f"{len(self.carried)} arrays of layout {self.from_layout}: {self.architecture}"]
        for reason in dict.fromkeys(reason for _, reason in self.dropped):
            lines.append(f"dropped {sum(r == reason for _, r in self.dropped)} ({reason})")
        lines += [f"{kind}: {_some(names)}" for kind in ("missing", "unknown") if (names := getattr(self, kind))]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        tree = {
            key: getattr(self, key)
            for key in (
                "source",
                "target",
                "from_layout",
                "to_layout",
                "architecture",
                "heads",
                "decoder_heads",
                "norm_eps",
                "load",
            )
        }
        arrays = [{"name": c.name, "sources": c.sources, "targets": c.targets, "done": c.done} for c in self.carried]
        pairs = {kind: [{"name": n, "why": w} for n, w in getattr(self, kind)] for kind in ("made", "dropped")}
        fields = ("missing", "unknown", "notes", "partial", "verified", "provenance")
        rest = {key: getattr(self, key) for key in fields}
        whole: dict[str, Any] = json.loads(
            json.dumps({**tree, "counts": self.counts(), "arrays": arrays, **pairs, **rest})
        )
        return whole


def _some(names: list[str], limit: int = SHOWN) -> str:
    more = len(names) - limit
    return f"{len(names)}: " + ", ".join(map(shown, names[:limit])) + (f" and {more} more" if more > 0 else "")
