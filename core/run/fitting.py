"""The recipe fitted to the data and the processes at hand: classes, micro-batches, length of an epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from triport.core.backend.learner import Processes
from triport.core.data.batches import order
from triport.core.data.datasets import Dataset
from triport.core.errors import UserError
from triport.core.options import RunOptions
from triport.core.spec import Classifier, MoCo, Recipe


def fit_classes(recipe: Recipe, train: Dataset) -> tuple[Recipe, str]:
    """Return the recipe with as many classes as the data has, and a line that says so where that is a change."""
    objective, classes = recipe.model.objective, len(train.classes)
    if not isinstance(objective, Classifier) or objective.classes == classes:
        return recipe, ""
    remark = (
        f"{train.name} has {classes} classes, the recipe was written for {objective.classes}: the head gets {classes}."
    )
    return replace(recipe, model=replace(recipe.model, objective=replace(objective, classes=classes))), remark


def check_length(recipe: Recipe, train: Dataset) -> None:
    """Raise UserError where the data does not fill one batch."""
    images = len(order(recipe.seed, 0, len(train), recipe.data.repeats))
    if images < recipe.batch:
        raise UserError(
            f"{train.name} has {len(train)} images, fewer than one batch of {recipe.batch}. "
            f"Set batch={max(images // 2, 1)} or less."
        )


def split_batch(recipe: Recipe, world: int, micro_batch: int | None = None, accumulate: int | None = None) -> int:
    """Return into how many micro-batches each of `world` processes splits its share of the batch.

    micro_batch: images of each. accumulate: how many there are. Without either there is one.
    """
    batch = recipe.batch
    own, rest = divmod(batch, world)
    if rest or not own:
        raise UserError(
            f"batch {batch} cannot be shared by {world} processes. Set batch={max(own, 1) * world} or another multiple."
        )
    if micro_batch is not None and own % micro_batch:
        raise UserError(
            f"--micro-batch {micro_batch} does not divide the {own} images that each of {world} processes gets "
            f"of a batch of {batch}. Set one that does, or --accumulate K."
        )
    count = own // micro_batch if micro_batch is not None else accumulate or 1
    if own % count:
        raise UserError(
            f"--accumulate {count} does not divide the {own} images that each of {world} processes gets "
            f"of a batch of {batch}. Set batch={max(own // count, 1) * count * world} "
            f"or another multiple of {count * world}."
        )
    check_norms(recipe, count)
    return count


def check_norms(recipe: Recipe, count: int) -> None:
    """Raise UserError where a batch norm of a head or projector would see a single image over all processes.

    Two processes with one image each are as good as one with two: statistics and negatives are those of all of them.
    """
    objective = recipe.model.objective
    if recipe.batch > count:
        return
    norm = isinstance(objective, Classifier) and objective.head_norm
    if isinstance(objective, MoCo) or norm:
        name, compared = ("MoCo", " or compare") if isinstance(objective, MoCo) else ("the norm before the head", "")
        raise UserError(
            f"with one image in a micro-batch {name} has nothing to normalise{compared}. "
            f"Set batch={2 * count} or larger{', or fewer micro-batches' if count > 1 else ''}."
        )


Chosen = TypeVar("Chosen", bound=RunOptions)


def in_precision(options: Chosen, processes: Processes) -> tuple[Chosen, Processes]:
    """Return the options with a precision, and the processes they are for.

    It is the one asked for, else bfloat16 to pretrain where the device has it: the papers used mixed precision too.
    """
    if options.precision != "auto":
        return options, processes
    mixed = options.task == "pretrain" and getattr(processes, "mixed", False)
    return replace(options, precision="bfloat16" if mixed else "float32"), processes
