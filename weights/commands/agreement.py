"""Whether a checkpoint of another project agrees with the recipe that is to go on from it, and what to note of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.core.model import schedule
from triport.core.model.groups import Group, groups
from triport.core.model.inventory import inventory
from triport.core.spec import Recipe
from triport.weights.model.opening import Opened
from triport.weights.model.optimizer_order import number
from triport.weights.model.optimizer_state import State
from triport.weights.model.report import Report

IMAGENET = 1_281_167  # training images
SLOTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lars": ("mu",), "sgd": ("mu",)}
SKIPPED = 0.05  # share of the steps that a gradient scaler may have skipped
OPTIONS = {"adamw": ("weight_decay", "betas", "eps"), "lars": ("weight_decay", "momentum"), "sgd": ("weight_decay",)}
RATE = 0.05  # by which a file's last learning rate may differ from the recipe's without a note


def check_arrays(report: Report, source: Path) -> None:
    """UserError where the file's model is not exactly the recipe's."""
    if report.missing or report.unknown:
        raise UserError(f"{source} is not the whole model that the recipe trains: {report.faults()}")
    if resampled := report.names("resampled"):
        raise UserError(
            f"{source} was trained on images of another size than the recipe's: '{resampled[0]}' would be resampled"
        )


def check_options(found: State, recipe: Recipe, source: Path) -> None:
    """UserError where the file's optimiser was another one, or had other settings, than the recipe's."""
    wanted, own = SLOTS[recipe.optimizer.kind], tuple(found.slots)
    if set(own) != set(wanted):
        raise UserError(
            f"{source} holds {' and '.join(own) or 'no averages'} of its optimiser; "
            f"{recipe.optimizer.kind}, the optimiser of {recipe.name}, has {' and '.join(wanted)}: name another recipe"
        )
    for key in OPTIONS[recipe.optimizer.kind]:
        theirs, ours = found.options.get(key), getattr(recipe.optimizer, key)
        if theirs is not None and not _agree(theirs, ours):
            raise UserError(
                f"the optimiser of {source} had {key} {theirs}, the recipe {recipe.name} has {ours}: "
                f"name a recipe with optimizer.{key} = {list(theirs) if isinstance(theirs, tuple) else theirs}"
            )


def _agree(theirs: object, ours: object) -> bool:
    """Whether two settings, numbers or lists of them, are equal but for rounding."""
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in (theirs, ours)]
    pairs = list(zip(*([number(item) for item in items] for items in lists), strict=False))
    same = len(lists[0]) == len(lists[1])
    return same and all(a is not None and b is not None and np.isclose(a, b, rtol=1e-9, atol=0) for a, b in pairs)


def check_decays(found: State, trained: Mapping[str, Group], recipe: Recipe, source: Path) -> None:
    """UserError where AdamW decayed another parameter than the recipe does; LARS says so by shapes, not by groups."""
    for name, rule in trained.items() if recipe.optimizer.kind == "adamw" else ():
        theirs = found.decays.get(name, rule.weight_decay)
        if not np.isclose(theirs, rule.weight_decay, rtol=1e-9, atol=0):
            raise UserError(
                f"the optimiser of {source} decays '{name}' by {theirs:g}, the recipe {recipe.name} by "
                f"{rule.weight_decay:g}: name a recipe with another optimizer.decays than '{recipe.optimizer.decays}'"
            )


def place(opened: Opened, found: State, recipe: Recipe, images: int | None, source: Path) -> tuple[int, int, int]:
    """Steps done, epochs closed, and training images; UserError where file, recipe and images disagree."""
    epoch, taken = opened.facts.epoch, found.step
    given, images = images, images or IMAGENET
    per_epoch = images // recipe.batch
    if per_epoch < 1:
        raise UserError(f"{images} images do not fill a batch of {recipe.batch}, which {recipe.name} has")
    ask = "say how many training images it had with --images" if given is None else "--images says another number"
    if epoch is None and not taken:
        raise UserError(f"{source} says neither its epoch nor its steps, so nothing can go on from it")
    step = taken if epoch is None else epoch * per_epoch
    if given is None and epoch is not None and not taken:
        raise UserError(f"{source} says its epoch, {epoch}, but not its steps: {ask}")
    if epoch is not None and taken and not (1 - SKIPPED) * step <= taken <= step:
        raise UserError(
            f"{source} has taken {taken} steps in {epoch} epochs; {images} images in batches of {recipe.batch}, "
            f"as {recipe.name} has, make {step}: {ask}, or name a recipe of its batch"
        )
    total = recipe.schedule.epochs * per_epoch
    if step > total:
        raise UserError(f"{source} has taken {step} steps, the whole of {recipe.name} has {total}")
    return step, step // per_epoch, images


def optimizer_arrays(found: State, recipe: Recipe, step: int, source: Path) -> dict[str, np.ndarray]:
    """The optimiser's state as a learner here keeps it: "step", "<slot>/<name>" float32 for every trained parameter."""
    slots = SLOTS[recipe.optimizer.kind]
    arrays: dict[str, np.ndarray] = {"step": np.array(found.step or step, np.int64)}
    for name in groups(inventory(recipe.model), recipe.optimizer):
        for slot in slots:
            array = found.slots[slot].get(name)
            if array is None:
                raise UserError(f"{source} has no {slot} of '{name}', which the recipe {recipe.name} trains")
            arrays[f"{slot}/{name}"] = np.array(array.read(), np.float32)
    return arrays


def notes(found: State, recipe: Recipe, step: int, closed: int, images: int) -> list[str]:
    """What to say of a file that agrees."""
    notes = [
        f"epoch {closed} of {recipe.schedule.epochs}, step {step}, by recipe {recipe.name} on {images} images",
        "its gradient scaler is not needed: float32 and bfloat16, which are used here, do not underflow",
    ]
    if not found.options:
        notes.append("it does not tell the settings of its optimiser: those of the recipe are taken")
    if found.step and found.step != step:
        notes.append(f"its optimiser took {found.step} of {step} steps: the scaler skipped the others")
    return notes


def rate(opened: Opened, found: State, recipe: Recipe, step: int, images: int) -> list[str]:
    """A note where the file's last learning rate is not the one that the recipe has there."""
    theirs = number(found.options.get("lr"))
    if theirs is None or not step or opened.facts.provenance:
        return []  # a conversion writes the recipe's own
    per_epoch = images // recipe.batch
    last, following = (schedule.at(recipe, k, per_epoch).lr for k in (step - 1, step))
    if abs(theirs - last) <= RATE * max(theirs, last):
        return []
    return [
        f"the learning rate was {theirs:.3g} and goes on with {following:.3g}, that of the recipe at step {step}: was "
        "it trained with another length, batch or rate?"
    ]
