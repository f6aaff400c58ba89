"""Several runs on one page: their curves over each other, and how far each departs from the first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from triport.core.errors import UserError
from triport.core.record.chart import Curve, number
from triport.core.record.report import STYLE, Line, figure, read, whole_page, write_page

MOST = 4  # runs that can be told apart
# The first run is a broad pale band, and each one after it a narrower line on top, so that equal curves stay visible.
OVER = """
:root { --c2: #2a8a4a; --c3: #8a4ac2; }
@media (prefers-color-scheme: dark) { :root { --c2: #6fd08f; --c3: #c79bf2; } }
.c0 path { stroke-width: 9; opacity: .35; } .c1 path { stroke-width: 4.5; opacity: .8; }
.c2 path { stroke: var(--c2); stroke-width: 1.8; } .c3 path { stroke: var(--c3); stroke-width: 1; }
.c2 circle { fill: var(--c2); } .c3 circle { fill: var(--c3); }
.k2 { background: var(--c2); } .k3 { background: var(--c3); }
circle { opacity: .8; } .key i { height: 5px; }
"""
SHARED = (("loss", "loss", "step"), ("gradient norm", "gradient_norm", "step"), ("kNN accuracy", "knn", "epoch"))


def write(folders: Sequence[Path], path: Path) -> Path:
    """Draw the runs in `folders` onto one page; UserError where there is no run, too many, or no room."""
    return write_page(path, render(folders), "Name another file.")


def render(folders: Sequence[Path]) -> str:
    """Return the page of several runs as HTML that needs no other file."""
    if not 2 <= len(folders) <= MOST:
        raise UserError(f"one page shows two to {MOST} runs, not {len(folders)}: name as many")
    runs = {_name(folder, folders): read(folder) for folder in folders}
    figures = [_figure(title, key, kind, runs) for title, key, kind in SHARED]
    figures.append(_departures(runs))
    title = f"{', '.join(list(runs)[:-1])} and {list(runs)[-1]}: their curves over each other"
    return whole_page(title, "; ".join(_far(name, lines) for name, lines in runs.items()), figures, STYLE + OVER)


def departures(first: Sequence[Line], other: Sequence[Line]) -> list[tuple[float, float]]:
    """Return (epoch, difference of the loss as a share of the first run's) of every step that both have."""
    own = {line["step"]: line for line in other if line["kind"] == "step" and line.get("loss") is not None}
    both = [line for line in first if line["kind"] == "step" and line.get("loss") and line["step"] in own]
    return [(line["epoch"], abs(own[line["step"]]["loss"] - line["loss"]) / abs(line["loss"])) for line in both]


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name, or as much of its path as tells it from the others."""
    same = [other for other in folders if other.name == folder.name]
    return folder.name if len(same) == 1 else str(folder)


def _far(name: str, lines: Sequence[Line]) -> str:
    steps = [line for line in lines if line["kind"] == "step"]
    return f"{name}: {steps[-1]['step'] if steps else 0} steps"


def _figure(title: str, key: str, kind: str, runs: dict[str, list[Line]]) -> str:
    curves = [
        Curve(name, [(line["epoch"], line[key]) for line in lines if line["kind"] == kind and key in line])
        for name, lines in runs.items()
    ]
    last = _shortest(runs)
    curves = [Curve(curve.name, [point for point in curve.points if point[0] <= last]) for curve in curves]
    return figure(title, curves, last, percent=key == "knn")


def _departures(runs: dict[str, list[Line]]) -> str:
    (first, lines), *others = runs.items()
    found = {name: departures(lines, other) for name, other in others}
    curves = [Curve(first, []), *(Curve(name, points) for name, points in found.items())]
    largest = max((value for points in found.values() for _, value in points), default=0.0)
    note = f"as a share of it; {number(largest)} at most. Roundings differ, and training lets them grow."
    return figure(f"loss, difference from {escape(first)}", curves, _shortest(runs), note, log=True)


def _shortest(runs: dict[str, list[Line]]) -> float:
    """The epoch up to which all runs have steps; what only one has says nothing about their being alike."""
    return min(max((line["epoch"] for line in lines if line["kind"] == "step"), default=0.0) for lines in runs.values())
