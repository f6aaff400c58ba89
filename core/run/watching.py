"""What a run is watched by: scores, online probe, baselines, pictures for its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

from triport.core import atomic
from triport.core.backend.learner import Autoencoder, Learner, Processes
from triport.core.data.datasets import Dataset
from triport.core.data.loader import Loader
from triport.core.evaluate import baselines
from triport.core.evaluate.baselines import Baselines
from triport.core.evaluate.evaluation import evenly_spaced
from triport.core.evaluate.online_probe import OnlineProbe
from triport.core.evaluate.scoring import Scoring
from triport.core.model.inventory import feature_width
from triport.core.options import RunOptions
from triport.core.run.drawing import Drawing
from triport.core.run.images import Splits, evaluation_loader
from triport.core.run.session import Session
from triport.core.spec import MAE, Classifier, Recipe

BASELINES = "baselines.json"


def online_probe(recipe: Recipe, splits: Splits, precision: str) -> OnlineProbe | None:
    """The probe that learns while an encoder is pretrained; None where none is asked for, or no image has a label."""
    classes = len(splits.train.classes)
    if recipe.task != "pretrain" or not recipe.monitor.probe or not splits.labelled or classes < 2:
        return None
    return OnlineProbe(feature_width(recipe.model.encoder), classes, precision)


def watching(
    session: Session,
    options: RunOptions,
    recipe: Recipe,
    splits: Splits,
    learner: Learner,
    processes: Processes,
    micro: int,
    probe: OnlineProbe | None,
) -> tuple[Scoring, Callable[[], None]]:
    """What scores the run, and what is done once before its first step: a classifier is scored by its accuracy, an
    encoder by kNN, by its probe, and by the spread of its features."""
    train, test, monitor = splits.train, splits.test, recipe.monitor
    batch = max(recipe.batch // processes.world // micro, 1)

    def images(dataset: Dataset) -> Loader:
        return evaluation_loader(session, options, recipe, dataset, processes, batch)

    classifier = isinstance(recipe.model.objective, Classifier)
    by_features = not classifier and (monitor.knn_every > 0 or probe is not None)
    scored = test is not None and splits.labelled and (classifier or by_features)
    held_out = test if test is not None else train
    drawing = None
    if monitor.pictures and processes.rank == 0:
        assert session.folder is not None
        autoencoder = cast(Autoencoder, learner) if isinstance(recipe.model.objective, MAE) else None
        drawing = Drawing(session.folder, recipe, train, held_out, list(train.classes), autoencoder, session.warn)
    scoring = Scoring(
        learner=learner,
        processes=processes,
        monitor=monitor,
        epochs=recipe.schedule.epochs,
        classes=train.classes,
        train=images(train) if scored and not classifier and monitor.knn_every > 0 else None,
        test=images(test) if scored and test is not None else None,
        held_out=None if classifier else images(evenly_spaced(held_out)),
        classifier=classifier,
        folder=session.folder,
        probe=probe,
        watcher=drawing,
    )

    def measured() -> None:
        """Write baselines.json."""
        assert test is not None and session.folder is not None
        parts = [images(evenly_spaced(part, most)) for part, most in zip((train, test), baselines.MOST)]
        embed = learner.embed if classifier else None
        work = Baselines(processes, monitor, recipe.evaluate, len(train.classes), parts[0], parts[1], embed)
        found = work()
        if processes.rank == 0:
            try:
                atomic.write_text(session.folder / BASELINES, json.dumps(found, indent=1) + "\n", durable=False)
            except OSError as error:
                session.warn(f"{BASELINES} was left out: {error.strerror}")

    def prepare() -> None:
        if drawing is not None:
            drawing.begin()
        if scored and monitor.baselines:
            measured()

    return scoring, prepare
