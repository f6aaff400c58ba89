"""How a run goes on: which checkpoint, whether recipe and data are still those, what has changed besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triport.core.data.datasets import Dataset
from triport.core.errors import UserError
from triport.core.options import TrainOptions
from triport.core.record import checkpoint, journal
from triport.core.spec import Recipe, schema
from triport.core.spec import recipe as recipes

RUNS = Path("runs")
FREE = ("title", "source", "reported", "monitor")  # may differ between a run and its resumption


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, and its state."""

    checkpoint: Path
    state: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        parent = self.checkpoint.parent
        return parent.parent if parent.name == "checkpoints" else parent


def find(options: TrainOptions) -> Resumed | None:
    """Return the checkpoint that --resume means, or None for a new run."""
    if options.resume is None:
        return None
    if options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite begins a new one: give one of them.")
    where = options.resume or options.out
    if not where:
        if options.recipe is None:
            raise UserError("name the run to resume: --resume DIR.")
        name = recipes.load(options.recipe, options.overrides).name
        newest = journal.newest_folder(name, RUNS)
        if newest is None:
            raise UserError(f"no run of {name} in {RUNS}/ to resume. Name it: --resume DIR.")
        where = str(newest)
    path = checkpoint.latest(Path(where))
    found = Resumed(path, checkpoint.read_state(path))
    if options.out and Path(options.out).resolve() != found.folder.resolve():
        raise UserError(
            f"a resumed run goes on in its own folder {found.folder}; leave out --out, or copy the folder first."
        )
    return found


def check_recipe(recipe: Recipe, known: Mapping[str, Any]) -> None:
    """Raise UserError naming the first field in which `recipe` differs from the one a checkpoint was made with."""
    before = recipes.parse(known["recipe"], Path(known["name"]))
    found = difference(schema.plain(before), schema.plain(recipe))
    if found:
        where, old, new = found
        raise UserError(
            f"the checkpoint was made with another recipe: {where} was {old!r} and is now {new!r}. "
            "Resume with the same recipe and overrides (or with none: the run keeps its own), "
            "or begin a new run with another --out."
        )


def difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted field in which two plain recipes differ with both values; FREE fields apart."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: (old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {str(i): pair for i, pair in enumerate(zip(old, new, strict=True))}
    else:
        return None if old == new else (where, old, new)
    for key, (a, b) in pairs.items():
        if where or key not in FREE:
            found = difference(a, b, f"{where}.{key}" if where else key)
            if found:
                return found
    return None


def check_images(known: Mapping[str, Any], train: Dataset) -> None:
    """Raise UserError where a run would go on with another number of images: its order would be another."""
    if known["images"] != len(train):
        raise UserError(
            f"the run was trained on {known['images']} images, {train.name} has {len(train)}. "
            "Resume with the same --data."
        )


def changes(known: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return what differs in how the run is made, as the end of a sentence; empty where nothing does."""
    changed = [
        f"{key.replace('_', '-')} {known[key]} -> {about[key]}"
        for key in ("backend", "processes", "micro_batches", "precision")
        if known[key] != about[key]
    ]
    return f" with {', '.join(changed)}: the numbers may differ from here on as roundings do" if changed else ""
