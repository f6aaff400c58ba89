"""Evaluation without training: accuracy of a classifier, kNN accuracy of an encoder, features written to a file."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from triport.core.backend.build import lowered
from triport.core.backend.learner import Learner, Processes
from triport.core.data.datasets import Dataset, check_apart, check_labelled, open_dataset
from triport.core.errors import UserError
from triport.core.evaluate.evaluation import accuracy, features, gather, knn, write_accuracy
from triport.core.model.init import initial_values
from triport.core.record import checkpoint
from triport.core.record.checkpoint import write_arrays
from triport.core.record.export import averaged
from triport.core.run import prepare
from triport.core.run.assembly import held_loader
from triport.core.run.guard import Backend, Session
from triport.core.spec import Classifier, Recipe, ResNet
from triport.core.spec import recipe as recipes


@dataclass(frozen=True)
class Subject:
    """What is measured: a model with all its arrays. The objective is always a classifier."""

    recipe: Recipe
    arrays: prepare.Arrays
    has_head: bool  # the head is trained, so its answers mean something
    origin: str


def measure(session: Session, backend: Backend) -> None:
    """Do what `triport evaluate` is asked for and print the result."""
    options = session.options
    for word, target in (("--embed", options.embed), ("--out", options.out)):
        if target and Path(target).exists() and not options.overwrite:
            raise UserError(f"{word} {target} exists already: name another file, or say --overwrite.")
    subject = find_subject(options)
    scored = subject.has_head and not options.knn and not options.embed
    test = _open(options, subject, options.split if scored or options.embed else "test")
    train = None if scored or options.embed else _open(options, subject, "train")
    if scored:
        assert isinstance(subject.recipe.model.objective, Classifier)
        check_labelled(test, subject.recipe.model.objective.classes)
    elif train is not None:
        check_labelled(train)
        check_apart(train, test)
        check_labelled(test, len(train.classes))
    processes = backend.start(options.device)
    session.rank, session.world = processes.rank, processes.world
    remark = lowered(subject.arrays, options.precision)
    if remark and processes.rank == 0:
        session.warn(remark)
    learner = backend.make(
        subject.recipe,
        subject.arrays,
        processes=processes,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
    )
    work = _Measuring(session, subject, learner, processes)
    if options.embed:
        work.embed(test)
    elif train is None:
        work.accuracy(test)
    else:
        work.knn(train, test)
    processes.stop()


def _open(options: Namespace, subject: Subject, split: Any) -> Dataset:
    return open_dataset(options.data, split, subject.recipe.data, subject.recipe.model.encoder.channels)


@dataclass(frozen=True)
class _Measuring:
    session: Session
    subject: Subject
    learner: Learner
    processes: Processes

    def _images(self, dataset: Dataset) -> Any:
        options = self.session.options
        return held_loader(self.subject.recipe, dataset, options, self.processes, options.batch, self.session)

    def _tell(self, text: str, write: Callable[[Path], object]) -> None:
        options = self.session.options
        if self.processes.rank == 0:
            print(f"{self.subject.origin}: {text}", flush=True)
            if options.out:
                _written(Path(options.out), write)

    def accuracy(self, test: Dataset) -> None:
        result = accuracy(self.learner.predict, self._images(test), self.processes, len(test.classes))
        shares = "  ".join(f"{name} {100 * share:.2f} %" for name, share in result.scores.items())
        self._tell(
            f"{shares}  ({result.right} of {result.images} right)",
            lambda path: write_accuracy(path, result, test.classes, of=self.subject.origin),
        )

    def knn(self, train: Dataset, test: Dataset) -> None:
        monitor = self.subject.recipe.monitor
        parts = [features(self.learner.embed, self._images(part)) for part in (train, test)]
        score = knn(parts[0], parts[1], self.processes, monitor, len(train.classes))
        words = {"knn": score, "neighbours": monitor.knn_neighbours, "temperature": monitor.knn_temperature}
        self._tell(
            f"kNN {100 * score:.2f} % ({monitor.knn_neighbours} neighbours among {len(train)} images)",
            lambda path: path.write_text(json.dumps({"of": self.subject.origin, **words}) + "\n", encoding="utf-8"),
        )

    def embed(self, images: Dataset) -> None:
        rows, labels = features(self.learner.embed, self._images(images))
        rows, labels = gather(rows, self.processes), self.processes.gather(labels)
        if self.processes.rank == 0:
            out = Path(self.session.options.embed)
            _written(out, lambda path: write_features(path, rows, labels))
            print(
                f"{self.subject.origin}: features {rows.shape[0]} x {rows.shape[1]} and labels are in {out}", flush=True
            )


def write_features(path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    """Write "features" (n, width) and "labels" (n,) int64 as .npz or .safetensors, by the ending."""
    if path.suffix == ".safetensors":
        write_arrays(path, {"features": rows, "labels": labels})
        return
    np.savez(path, features=rows, labels=labels)


def _written(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path` and put it there when it is whole."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error


# ---------------------------------------------------------------- what is measured
def find_subject(options: Namespace) -> Subject:
    """Find the model that is named: a run folder, a checkpoint, encoder.safetensors, or a recipe with weights."""
    if options.embed and Path(options.embed).suffix not in (".npz", ".safetensors"):
        raise UserError(f"--embed {options.embed}: the file must end in .npz or .safetensors.")
    if options.recipe is None:
        raise UserError(
            "name what to evaluate: a run folder, a checkpoint, encoder.safetensors, or a recipe with --weights FILE."
        )
    path = Path(options.recipe)
    if path.is_dir():
        return _of_checkpoint(path, options)
    if path.suffix == ".safetensors" and path.is_file():
        return _of_file(path, options)
    if path.is_file() and path.suffix != ".toml":
        raise UserError(f"{path} does not say which recipe it is of: name a recipe, and the file with --weights.")
    recipe = recipes.load(options.recipe, options.overrides)
    if options.weights is None:
        if not options.from_scratch:
            raise UserError("say what to evaluate: --weights FILE, or --from-scratch for random weights.")
        model = _as_classifier(recipe)
        return Subject(model, initial_values(model.model, model.seed), False, f"random weights of {recipe.name}")
    return _of_weights(recipe, options)


def _of_checkpoint(path: Path, options: Namespace) -> Subject:
    best = path / "checkpoints" / "best"
    folder = checkpoint.find(best) if checkpoint.exists(best) else checkpoint.latest(path)
    groups, known = checkpoint.load(folder)
    recipe = recipes.parse(known["recipe"], Path(known["name"]), options.overrides)
    if isinstance(recipe.model.objective, Classifier):
        return Subject(recipe, averaged(groups["model"], groups["optimizer"]), True, str(folder))
    return _of_encoder(recipe, str(folder))


def _of_file(path: Path, options: Namespace) -> Subject:
    try:
        with safe_open(path, framework="np") as file:
            words = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if "recipe_toml" not in words:
        raise UserError(f"{path} does not say which recipe it is of: name a recipe, and the file with --weights.")
    recipe = recipes.parse(words["recipe_toml"], Path(words.get("recipe", path.name)), options.overrides)
    return _of_encoder(recipe, str(path))


def _of_weights(recipe: Recipe, options: Namespace) -> Subject:
    if not isinstance(recipe.model.objective, Classifier) or options.knn or options.embed:
        return _of_encoder(recipe, options.weights)
    from triport.weights import load_model  # only here: most runs need no file formats

    path = prepare.find_file(options.weights)
    arrays, report = load_model(path, recipe.model)
    if report.faults():
        raise UserError(f"{path} does not fit the recipe {recipe.name}: {report.faults()}.")
    return Subject(recipe, arrays, True, str(path))


def _of_encoder(recipe: Recipe, where: str) -> Subject:
    recipe = _as_classifier(recipe)
    arrays, _ = prepare.load_encoder(recipe, where, initial_values(recipe.model, recipe.seed))
    return Subject(recipe, arrays, False, where)


def _as_classifier(recipe: Recipe) -> Recipe:
    """The recipe with a classifier for objective, so that only the encoder is built, not a decoder or its twin."""
    if isinstance(recipe.model.objective, Classifier):
        return recipe
    pooling: Any = "mean" if isinstance(recipe.model.encoder, ResNet) else "token"
    head = Classifier(classes=2, pooling=pooling, head_std=0.01, frozen_encoder=True)
    return replace(recipe, task="linear", model=replace(recipe.model, objective=head))
