"""The images of a run: both splits of a data set, and loaders of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from triport.core.backend.learner import Processes
from triport.core.data.classes import by_name
from triport.core.data.datasets import Dataset, check_apart, check_labelled, check_readable, open_dataset
from triport.core.data.loader import Loader
from triport.core.data.loader_checks import stays_bytes
from triport.core.errors import UserError
from triport.core.options import RunOptions, TrainOptions
from triport.core.run.session import Session
from triport.core.spec import Classifier, Recipe


@dataclass(frozen=True)
class Splits:
    """The images of a run; `test` is None where there are none apart from the training images."""

    train: Dataset
    test: Dataset | None
    labelled: bool
    remark: str = ""  # a line about what could not be had


def open_splits(where: str | None, recipe: Recipe, **reading: Any) -> Splits:
    """Open both splits of the data set at `where` (None: the one the recipe is made for, where it is shipped).

    reading: keywords of `open_dataset`. The held-out images are the val split's; those of test where there is no other.
    Classifiers must have labelled held-out images; pretraining goes without, and says so.
    """
    channels = recipe.model.encoder.channels
    train = open_dataset(where, "train", recipe.data, channels, **reading)
    check_readable(train)
    test: Dataset
    if recipe.task != "pretrain":
        check_labelled(train)
        test = open_dataset(where, "val", recipe.data, channels, **reading)
        check_apart(train, test)
        check_labelled(test)
        check_readable(test)
        return Splits(train, by_name(test, train.classes), True)
    labelled = bool(train.classes) and train.label(0) >= 0
    scored = recipe.monitor.knn_every or recipe.monitor.probe
    try:
        test = open_dataset(where, "val", recipe.data, channels, **reading)
        check_apart(train, test)
        check_readable(test)
    except UserError as error:
        missed = f"no held-out images ({error}), so no kNN" if scored else ""
        return Splits(train, None, labelled, missed)
    try:
        test = by_name(test, train.classes) if labelled else test
    except UserError as error:
        return Splits(train, test, False, f"no kNN: {error}" if scored else "")
    if scored and not (labelled and len(train.classes) > 1 and test.classes == train.classes):
        return Splits(train, test, False, "the images have no labels that kNN could use, so no kNN")
    return Splits(train, test, labelled)


def in_classes(splits: Splits, trained: Sequence[str]) -> Splits:
    """Return the splits with the classes that a model was trained on, found by name."""
    test = splits.test
    return replace(splits, train=by_name(splits.train, trained), test=None if test is None else by_name(test, trained))


def train_loader(
    session: Session,
    options: TrainOptions,
    recipe: Recipe,
    dataset: Dataset,
    processes: Processes,
    micro: int,
    raw: bool = False,
) -> Loader:
    """Return a loader of training batches, `micro` to a step on each process; raw: as bytes where they stay so."""
    objective = recipe.model.objective
    loader = Loader(
        dataset,
        recipe.train,
        batch=recipe.batch,
        rank=processes.rank,
        world=processes.world,
        micro=micro,
        seed=recipe.seed,
        workers=options.workers,
        train=True,
        mix=recipe.mix,
        classes=objective.classes if isinstance(objective, Classifier) else None,
        model=recipe.model,
        repeats=recipe.data.repeats,
        max_broken=options.max_broken,
        raw=raw and stays_bytes(recipe.train, recipe.mix),
        epochs=recipe.schedule.epochs,
        warn=session.warn,
    )
    session.closing.append(loader.close)
    return loader


def evaluation_loader(
    session: Session, options: RunOptions, recipe: Recipe, dataset: Dataset, processes: Processes, batch: int
) -> Loader:
    """Return a loader of a whole split in evaluation order; `batch` images at once on each process."""
    loader = Loader(
        dataset,
        recipe.evaluate,
        batch=batch * processes.world,
        rank=processes.rank,
        world=processes.world,
        micro=1,
        seed=recipe.seed,
        workers=options.workers,
        train=False,
        max_broken=options.max_broken,
        warn=session.warn,
    )
    session.closing.append(loader.close)
    return loader
