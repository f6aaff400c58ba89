"""Several runs on one page and in one table: what differs in their recipes, their curves, their final numbers.

Runs of one recipe (as frameworks make them) lie over each other, and the page says how far each loss departs from the
first run's. Runs of different recipes are compared as such: what differs between them is listed, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triport.core.errors import UserError
from triport.core.record import chart, health, page, recorded
from triport.core.record.chart import Curve, number
from triport.core.record.console import duration
from triport.core.record.health import ACCURACIES
from triport.core.record.recorded import Run
from triport.core.record.svg import FRAMEWORKS, PALETTE

STYLES = ("-", "--", ":", "-.")  # of runs that have the same colour
EARLY = 10  # steps over which a difference is rounding alone
SHARED = (
    ("loss", "loss", "step", "loss"),
    *((title, key, "epoch", "") for key, title in ACCURACIES.items()),
    ("gradient norm", "gradient_norm", "step", "L2 norm"),
    ("throughput", "images_per_second", "step", "images/s"),
)


@dataclass(frozen=True)
class Comparison:
    """Runs by name, in the order in which they were named, and the fields in which their recipes differ."""

    runs: dict[str, Run]
    differences: list[tuple[str, list[str]]]

    @property
    def same(self) -> bool:
        """Whether all do the same: one recipe, known of each."""
        return not self.differences and all(run.recipe for run in self.runs.values())


def read(folders: Sequence[Path]) -> Comparison:
    """Read the runs; UserError where a folder holds none, or there is nothing to compare."""
    if len(folders) < 2:
        raise UserError(f"a comparison needs two runs or more, not {len(folders)}: name another run folder.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice: name each run folder once.")
    runs = {_name(folder, folders): recorded.read(folder) for folder in folders}
    known = [run.recipe for run in runs.values() if run.recipe]
    different = recorded.differences(*known) if len(known) == len(runs) else []
    return Comparison(runs, different)


def write(folders: Sequence[Path], path: Path) -> Path:
    """Draw the runs in `folders` onto one page; UserError where there is no run, or the page cannot be written."""
    return page.write(path, render(read(folders)), "Name another file.")


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name, or as much of its path as tells it from the others."""
    same = [other for other in folders if other.name == folder.name]
    return folder.name if len(same) == 1 and folder.name else str(folder)


# ---------------------------------------------------------------- in words and numbers
def verdict(found: Comparison) -> tuple[str, str]:
    """Return ("good" or "note", a sentence) about the runs as a whole."""
    if not found.same:
        unknown = sum(run.recipe is None for run in found.runs.values())
        if unknown:
            return (
                "note",
                f"{unknown} of {len(found.runs)} runs have no recipe that can be read: compared by their numbers.",
            )
        count = len(found.differences)
        return (
            "note",
            f"The recipes differ in {count} field{'s' * (count != 1)}; the runs are compared by their numbers.",
        )
    (_, first), *others = found.runs.items()
    apart = [point for _, run in others for point in departures(first, run)]
    if not apart:
        return "note", "One recipe; the runs have no step in common yet."
    early = max(value for step, _, value in apart if step <= max(EARLY, apart[0][0]))
    largest = max(value for *_, value in apart)
    last = max(step for step, *_ in apart)
    return "good", (
        f"One recipe: the losses differ by {early:.1e} of their value at most in the first {EARLY} steps, and by "
        f"{largest:.1e} up to step {last}. Roundings differ between frameworks, and training lets them grow."
    )


def departures(first: Run, other: Run) -> list[tuple[int, float, float]]:
    """Return (step, epoch, difference of the loss as a share of the first run's) of every step that both have."""
    own = {line["step"]: line for line in other.steps if line.get("loss") is not None}
    both = [line for line in first.steps if line.get("loss") and line["step"] in own]
    return [
        (line["step"], line["epoch"], abs(own[line["step"]]["loss"] - line["loss"]) / abs(line["loss"]))
        for line in both
    ]


def rows(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and a row for each run: how far it got, its final numbers, its speed."""
    scores = [key for key in ACCURACIES if any(run.values(key, "epoch") for run in found.runs.values())]
    head = ["run", "backend", "steps", "loss", *(f"{key.replace('_', ' ')} %" for key in scores), "images/s", "time"]
    return head, [_row(name, run, scores) for name, run in found.runs.items()]


def _row(name: str, run: Run, scores: Sequence[str]) -> list[str]:
    losses, rates, took = run.values("loss"), sorted(run.values("images_per_second")), run.seconds()[0]
    reached = [f"{100 * values[-1]:.2f}" if (values := run.values(key, "epoch")) else "" for key in scores]
    return [
        name,
        run.backend,
        str(run.steps[-1]["step"] if run.steps else 0),
        f"{health.ends(losses)[1]:.4f}" if losses else "",
        *reached,
        f"{rates[len(rates) // 2]:.0f}" if rates else "",
        duration(took) if took else "",
    ]


# ---------------------------------------------------------------- the page
def render(found: Comparison) -> str:
    """Return the page of several runs as HTML that needs no other file."""
    names = list(found.runs)
    title = f"{', '.join(names[:-1])} and {names[-1]}"
    kind, sentence = verdict(found)
    recipes = {run.recipe.name: run.recipe.title for run in found.runs.values() if run.recipe}
    figures = [_figure(found, *what) for what in SHARED]
    if found.same:
        figures.insert(1, _departures(found))
    versions = [(name, _version(run), str(run.start.get("begun", ""))) for name, run in found.runs.items()]
    body = [
        page.header(title, kind, sentence, [f"{name}: {title}" for name, title in recipes.items()]),
        page.section("In numbers", page.table(*rows(found), "numeric")),
        page.section("Curves", page.charts(figures) or "<p>No step has been recorded yet.</p>"),
        page.section(
            "What differs in the recipes", page.table(("field", *names), ((f, *v) for f, v in found.differences))
        ),
        page.section("Made with", page.table(("run", "packages", "begun"), versions)),
    ]
    return page.document(title, body)


def _version(run: Run) -> str:
    packages = run.start.get("packages")
    return ", ".join(f"{name} {known}" for name, known in packages.items()) if isinstance(packages, dict) else ""


def _curves(found: Comparison, key: str, kind: str) -> list[Curve]:
    """A curve of each run, in its framework's colour where that tells runs apart; equal ones stay visible."""
    backends = [run.backend for run in found.runs.values()]
    own = set(backends) <= set(FRAMEWORKS) and max(map(backends.count, backends)) <= len(STYLES)
    curves = []
    for at, (name, run) in enumerate(found.runs.items()):
        before = backends[:at].count(run.backend) if own else at // PALETTE % len(STYLES)
        width, alpha = ((9.0, 0.35), (4.5, 0.8), (1.8, 1.0))[min(at, 2)] if found.same else (1.6, 1.0)
        colour = run.backend if own else f"c{at % PALETTE}"
        curves.append(Curve(name, run.curve(key, kind), colour, STYLES[before], width, alpha))
    return curves


def _figure(found: Comparison, title: str, key: str, kind: str, unit: str) -> str:
    curves = _curves(found, key, kind)
    last = max(run.last for run in found.runs.values())
    if found.same:  # what only one of equal runs has says nothing about their being alike
        last = min(run.last for run in found.runs.values()) or last
        curves = [
            Curve(c.name, [p for p in c.points if p[0] <= last], c.colour, c.style, c.width, c.alpha) for c in curves
        ]
    drawing = chart.draw(curves, title, y_label=unit, percent=key in ACCURACIES, last=last)
    return page.figure(title, drawing, "", curves)


def _departures(found: Comparison) -> str:
    first, *others = _curves(found, "loss", "step")
    reference = found.runs[first.name]
    curves = [
        Curve(
            c.name, [(epoch, value) for _, epoch, value in departures(reference, found.runs[c.name])], c.colour, c.style
        )
        for c in others
    ]
    largest = max((value or 0.0 for curve in curves for _, value in curve.points), default=0.0)
    drawing = chart.draw(
        curves, f"loss, difference from {first.name}", y_label="share of the loss, logarithmic", log=True
    )
    note = f"as a share of it; {number(largest)} at most"
    if not drawing and any(curve.points for curve in curves):
        return page.figure(f"loss, difference from {first.name}", "<p>Equal to the bit at every common step.</p>", note)
    return page.figure(f"loss, difference from {first.name}", drawing, note, curves)
