"""The parts of a run put together: loaders, what it is scored by, and the lines that open it."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable

from triport.core.backend.learner import Learner, Processes
from triport.core.data.datasets import Dataset, remarks
from triport.core.data.loader import Loader
from triport.core.evaluate.evaluation import Scoring, some
from triport.core.model.inventory import inventory
from triport.core.model.schedule import peak_lr
from triport.core.run.guard import Session
from triport.core.run.prepare import Data
from triport.core.spec import Classifier, MoCo, Recipe


def train_loader(
    recipe: Recipe, dataset: Dataset, options: Namespace, processes: Processes, micro: int, warn: Callable[[str], None]
) -> Loader:
    """A loader of training batches, `micro` micro-batches to a step."""
    objective = recipe.model.objective
    return Loader(
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
        epochs=recipe.schedule.epochs,
        warn=warn,
    )


def held_loader(
    recipe: Recipe, dataset: Dataset, options: Namespace, processes: Processes, batch: int, session: Session
) -> Loader:
    """A loader of a whole split in evaluation order; `batch` images at once on each process."""
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


def scoring(
    session: Session, recipe: Recipe, data: Data, learner: Learner, processes: Processes, micro: int
) -> Scoring:
    """What the run is scored by: a classifier by its accuracy, an encoder by kNN and the spread of its features."""
    batch = max(recipe.batch // processes.world // micro, 1)

    def images(dataset: Dataset) -> Loader:
        return held_loader(recipe, dataset, session.options, processes, batch, session)

    classifier = isinstance(recipe.model.objective, Classifier)
    scored = data.test is not None and data.labelled and (classifier or recipe.monitor.knn_every > 0)
    return Scoring(
        learner=learner,
        processes=processes,
        monitor=recipe.monitor,
        epochs=recipe.schedule.epochs,
        classes=data.train.classes,
        train=images(data.train) if scored and not classifier else None,
        test=images(data.test) if scored and data.test is not None else None,
        probe=None if classifier else images(some(data.test if data.test is not None else data.train)),
        classifier=classifier,
        folder=session.folder,
    )


def opening(recipe: Recipe, data: Data, processes: Processes, micro: int, options: Namespace) -> list[str]:
    """What is worth knowing before the first step."""
    parameters = [p for p in inventory(recipe.model) if not p.buffer]
    trained = sum(p.size for p in parameters if p.trainable)
    own = recipe.batch // processes.world // micro
    whole = sum(p.size for p in parameters)
    held = len(data.test) if data.test is not None else 0
    lines = [
        f"{recipe.title} ({recipe.name})",
        f"parameters {trained / 1e6:.2f} M trained, {whole / 1e6:.2f} M in all; {options.precision}",
        f"images {len(data.train)} to train ({data.train.name}), {held} held out",
        *remarks(data.train, data.test),
        f"batch {recipe.batch} = {processes.world} processes x {micro} micro-batches x {own} images; "
        f"peak learning rate {peak_lr(recipe):.4g}",
    ]
    objective = recipe.model.objective
    if isinstance(objective, MoCo):
        seen = own * processes.world
        lines.append(f"the loss begins near {4 * objective.temperature * math.log(seen):.3f} = 4 T ln({seen})")
        if micro > 1:
            lines.append(
                f"accumulation does not add negatives: an image is held against the {seen} of its micro-batch, "
                f"not the {recipe.batch} of the batch"
            )
    return lines
