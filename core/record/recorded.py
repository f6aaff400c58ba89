"""A run as its folder records it, finished or not: metrics, recipe, environment, and what follows from them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec import Recipe, schema
from triport.core.spec import recipe as recipes

Line = dict[str, Any]
PAPERS = ("moco_v3/", "mae/", "transfer/")  # shipped recipes that say what a paper says
FAR = 2**53  # beyond all steps; larger whole numbers are damage
NOT_COMPARED = ("name", "title", "source", "reported")  # what is said of a recipe, not what it does


@dataclass(frozen=True)
class Run:
    """What is known of a run; recipe and start are None and {} where the folder does not say."""

    folder: Path
    steps: list[Line]  # of metrics.jsonl, kind "step"
    epochs: list[Line]  # kind "epoch": the scores
    recipe: Recipe | None
    start: dict[str, Any]  # the last of environment.json
    baselines: dict[str, float]  # what was measured beside it: name -> accuracy, of baselines.json

    @property
    def backend(self) -> str:
        """The framework, or ""."""
        return str(self.start.get("backend", ""))

    @property
    def last(self) -> float:
        """The epoch that the records reach."""
        return float(max((lines[-1]["epoch"] for lines in (self.steps, self.epochs) if lines), default=0.0))

    @property
    def done(self) -> bool:
        """Whether it was trained to its end."""
        return self.recipe is not None and any(e["epoch"] >= self.recipe.schedule.epochs for e in self.epochs)

    @property
    def score(self) -> str:
        """The name of the score that the run is judged by, "" where none was measured."""
        return next(
            (name for name in ("top1", "knn", "probe") if any(e.get(name) is not None for e in self.epochs)), ""
        )

    def curve(self, key: str, kind: str = "step") -> list[tuple[float, float | None]]:
        """Return (epoch, value) where the value was recorded; None where it was not finite."""
        return [(line["epoch"], line[key]) for line in (self.steps if kind == "step" else self.epochs) if key in line]

    def values(self, key: str, kind: str = "step") -> list[float]:
        """Return the finite values in their order."""
        return [value for _, value in self.curve(key, kind) if value is not None]

    def seconds(self) -> tuple[float, float]:
        """Return the seconds that the steps took, and of these the seconds that they waited for images.

        Of steps that are not recorded each took as long as the next one that is.
        """
        took = waited = 0.0
        before = 0
        for line in self.steps:
            rate = line.get("images_per_second")
            if self.recipe is not None and rate:
                took += (line["step"] - before) * self.recipe.batch / rate
                waited += (line["step"] - before) * (line.get("data_seconds") or 0.0)
            before = line["step"]
        return took, waited


def read(folder: Path) -> Run:
    """Read a run's folder; UserError where it holds no run."""
    lines = read_metrics(folder)
    recipe = None
    with contextlib.suppress(UserError):  # its curves are worth drawing all the same
        recipe = recipes.load(str(folder / "recipe.toml"))
    starts = _json(folder / "environment.json").get("starts")
    start = starts[-1] if isinstance(starts, list) and starts and isinstance(starts[-1], dict) else {}
    measured = _json(folder / "baselines.json")
    baselines = {str(name): float(value) for name, value in measured.items() if isinstance(value, (int, float))}
    kinds = {kind: [line for line in lines if line["kind"] == kind] for kind in ("step", "epoch")}
    return Run(folder, kinds["step"], kinds["epoch"], recipe, start, baselines)


def read_metrics(folder: Path) -> list[Line]:
    """Return the lines of metrics.jsonl that are whole; a run that is being written may end in half a line."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise UserError(f"{folder} holds no run: it has no metrics.jsonl. Name a run folder.") from None
    lines = text.splitlines()
    try:
        entries = json.loads(f"[{','.join(lines)}]")  # at once, which is much faster for long runs
    except (ValueError, RecursionError):
        entries = [entry for line in lines for entry in _whole(line)]
    return [
        {name: x for name, x in entry.items() if name == "kind" or _plain(x)} for entry in entries if _is_line(entry)
    ]


def _is_line(entry: Any) -> bool:
    """Whether an entry has what every line has, of its type; a damaged file may hold anything."""
    numbers: tuple[Any, ...] = (entry.get("step"), entry.get("epoch")) if isinstance(entry, dict) else (None,)
    return all(type(x) in (int, float) and abs(x) < FAR for x in numbers) and isinstance(entry.get("kind"), str)


def _plain(value: Any) -> bool:
    """Whether a value is one that a run records: a number, or null for one that is not finite."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < FAR)


def _whole(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


def _json(path: Path) -> dict[str, Any]:
    """Return a file's table, {} where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- recipes
def fields(recipe: Recipe) -> dict[str, str]:
    """Return every field of a recipe as its dotted name and its value as text."""
    found: dict[str, str] = {}

    def walk(node: Any, where: str) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if _nested(node) else ()
        for key, item in items:
            walk(item, f"{where}.{key}" if where else str(key))
        if not isinstance(node, dict) and not _nested(node):
            found[where] = "none" if node is None else json.dumps(node) if not isinstance(node, str) else node

    walk(schema.plain(recipe), "")
    return {name: text for name, text in found.items() if name.partition(".")[0] not in NOT_COMPARED}


def _nested(node: Any) -> bool:
    return isinstance(node, list) and any(isinstance(item, (list, dict)) for item in node)


def differences(*compared: Recipe) -> list[tuple[str, list[str]]]:
    """Return (field, its value in each recipe) of the fields that are not the same in all; "" where one has none."""
    tables = [fields(recipe) for recipe in compared]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "") for table in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def nearest_paper(recipe: Recipe) -> tuple[Recipe, list[tuple[str, list[str]]]] | None:
    """Return the paper's recipe that differs in the fewest fields, with them; None for a paper's recipe itself.

    It is for the same task, objective and kind of encoder.
    """
    if recipe.name.startswith(PAPERS):
        return None
    like = [known for known in _of_papers() if _likeness(known) == _likeness(recipe)]
    compared = [(known, differences(known, recipe)) for known in like]
    return min(compared, key=lambda pair: len(pair[1]), default=None)


@cache
def _of_papers() -> list[Recipe]:
    return [recipes.load(name) for name in recipes.names() if name.startswith(PAPERS)]


def _likeness(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.task, recipe.model.objective.kind, recipe.model.encoder.kind


def shipped(recipe: Recipe) -> Recipe | None:
    """Return the shipped recipe of the same name, or None."""
    return recipes.load(recipe.name) if recipe.name in recipes.names() else None
