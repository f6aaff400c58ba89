"""A run that is resumed with more epochs: what that does to its schedule, and what is kept of the shorter run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.model import schedule
from triport.core.record import checkpoint
from triport.core.spec import MoCo, Recipe
from triport.core.spec import recipe as recipes

KEY = "lengthened"  # in a state: a list of `Lengthened`, oldest first


@dataclass(frozen=True)
class Lengthened:
    """What changed, as it stands in every later state of the run."""

    step: int  # steps done when it was lengthened
    epochs: tuple[int, int]  # before and after
    lr: tuple[float, float]  # of the last step before and of the next step
    momentum: tuple[float, float]  # the same of the momentum encoder; 0 where there is none


def shorter(recipe: Recipe, known: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with the epochs of the recipe in a state, where it has more than those; else `recipe` itself."""
    epochs = recipes.parse(known["recipe"], Path(known["name"])).schedule.epochs
    if recipe.schedule.epochs <= epochs:
        return recipe
    return replace(recipe, schedule=replace(recipe.schedule, epochs=epochs))


def lengthened(recipe: Recipe, known: Mapping[str, Any], per_epoch: int) -> Lengthened | None:
    """Return what resuming the state `known` with `recipe` changes; None where the run stays as long as it was.

    per_epoch: optimiser steps of an epoch.
    """
    before = shorter(recipe, known)
    if before is recipe:
        return None
    step = known["step"]
    old, new = schedule.at(before, max(step - 1, 0), per_epoch), schedule.at(recipe, step, per_epoch)
    return Lengthened(
        step,
        (before.schedule.epochs, recipe.schedule.epochs),
        (old.lr, new.lr),
        (old.momentum, new.momentum),
    )


def line(change: Lengthened, recipe: Recipe) -> str:
    """Return what a lengthening does to the schedule, with its figures, in one line."""
    (before, after), (old, new), (slow, slower) = change.epochs, change.lr, change.momentum
    verb = "rises" if new > old else "falls"
    text = (
        f"lengthened from {before} to {after} epochs at step {change.step}: the schedule of {after} epochs applies "
        "from here on, so the learning rate "
    )
    text += f"{verb} from {old:.3g} to {new:.3g}" if new != old else f"stays {old:.3g}"
    if isinstance(recipe.model.objective, MoCo):
        text += f", the momentum goes from {slow:.6g} to {slower:.6g}"
    warmup = recipe.schedule.warmup_epochs
    return text + (f"; the warm-up is {warmup:g} epochs as before" if warmup else "")


def recorded(known: Mapping[str, Any], change: Lengthened | None) -> list[dict[str, Any]]:
    """Return every lengthening of a run, with the one at hand, as it goes into its states."""
    return [*known.get(KEY, []), *([asdict(change)] if change else [])]


def check_record(known: Mapping[str, Any], where: Path) -> None:
    """Raise UserError where a state's record of lengthenings cannot be one."""
    record = known.get(KEY, [])
    if not isinstance(record, list) or not all(isinstance(entry, dict) and "epochs" in entry for entry in record):
        raise UserError(f"{where / 'state.json'} has a wrong '{KEY}': another version or program wrote it.")


def keep(folder: Path, resumed: Path, known: Mapping[str, Any], recipe: Recipe, change: Lengthened) -> list[str]:
    """Put what the shorter run left beside what the longer one will write; return a line about it, if there is any.

    folder: of the run; resumed: the checkpoint it goes on from, known: the state of that one. The end of the shorter
    run, if it came to it, stays as checkpoints/end_<epochs>, encoder.safetensors as encoder_<epochs>.safetensors, and
    recipe.toml as recipe_<epochs>.toml; recipe.toml and the state are those of the longer run from here on.
    """
    epochs, saved = change.epochs[0], list[str]()
    last, end = folder / "checkpoints" / "last", folder / "checkpoints" / f"end_{epochs}"
    if checkpoint.exists(last) and not checkpoint.exists(end) and checkpoint.read_state(last).get("closed") == epochs:
        checkpoint.copy(last, end)
        saved.append(str(end))
    record = recorded(known, change)
    words = [f"# Lengthened from {e['epochs'][0]} to {e['epochs'][1]} epochs at step {e['step']}." for e in record]
    text = recipes.to_toml(recipe)
    try:
        for name in ("encoder.safetensors", "recipe.toml"):
            path = folder / name
            beside = path.with_name(f"{path.stem}_{epochs}{path.suffix}")
            if path.is_file() and not beside.exists():
                atomic.share(path, beside)
                saved.append(str(beside))
        atomic.write_text(folder / "recipe.toml", "\n".join([*words, text]))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}. Free space, then go on with --resume.") from error
    if resumed == last:  # a run killed before its next checkpoint is the longer one already
        checkpoint.restate(last, {**known, "recipe": text, KEY: record})
    return [f"what the run of {epochs} epochs left is kept: {', '.join(saved)}"] if saved else []
