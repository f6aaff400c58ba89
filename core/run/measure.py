"""Evaluation without training: accuracy of a classifier, kNN accuracy of an encoder, features written to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from triport.core import atomic
from triport.core.backend.learner import Learner, Processes
from triport.core.data.datasets import Dataset, check_apart, check_labelled, open_dataset, remarks
from triport.core.data.loader import Loader
from triport.core.errors import UserError
from triport.core.evaluate.evaluation import accuracy, features, gather, knn, write_accuracy
from triport.core.model.init import initial_values
from triport.core.options import EvaluateOptions
from triport.core.record import checkpoint
from triport.core.record.checkpoint import write_arrays
from triport.core.record.console import show
from triport.core.record.export import averaged
from triport.core.run.images import evaluation_loader
from triport.core.run.initial import Arrays, find_file, load_encoder
from triport.core.run.session import Backend, Session
from triport.core.spec import Classifier, Recipe, ResNet
from triport.core.spec import recipe as recipes


@dataclass(frozen=True)
class Subject:
    """What is measured: a model with all its arrays. The objective is always a classifier."""

    recipe: Recipe
    arrays: Arrays
    has_head: bool  # the head is trained, so its answers mean something
    origin: str


def measure(session: Session, options: EvaluateOptions, backend: Backend) -> None:
    """Do what `triport evaluate` is asked for and print the result."""
    if options.embed and Path(options.embed).suffix not in (".npz", ".safetensors"):
        raise UserError(f"--embed {options.embed}: the file must end in .npz or .safetensors.")
    for word, target in (("--embed", options.embed), ("--out", options.out)):
        if target and Path(target).exists() and not options.overwrite:
            raise UserError(f"{word} {target} exists already: name another file, or say --overwrite.")
    subject = find_subject(
        options.recipe,
        options.overrides,
        weights=options.weights,
        from_scratch=options.from_scratch,
        features_only=options.knn or options.embed is not None,
    )
    scored = subject.has_head and not options.knn and not options.embed
    test = _open(
        options, subject, "val" if options.split == "train" and not (scored or options.embed) else options.split
    )
    train = None if scored or options.embed else _open(options, subject, "train")
    if scored:
        assert isinstance(subject.recipe.model.objective, Classifier)
        check_labelled(test, subject.recipe.model.objective.classes)
    elif train is not None:
        check_labelled(train)
        check_apart(train, test)
        check_labelled(test, len(train.classes))
    processes = session.join(backend.start(options.device))
    for line in remarks(train, test) if processes.rank == 0 else []:
        session.warn(line)
    chosen = {"device": options.device, "precision": options.precision, "compile": options.compile}
    learner = backend.make(subject.recipe, subject.arrays, processes=processes, **chosen)
    work = _Measuring(session, options, subject, learner, processes)
    if options.embed:
        work.embed(test, Path(options.embed))
    elif train is None:
        work.accuracy(test)
    else:
        work.knn(train, test)
    processes.stop()


def _open(options: EvaluateOptions, subject: Subject, split: Literal["train", "val", "test"]) -> Dataset:
    channels = subject.recipe.model.encoder.channels
    return open_dataset(options.data, split, subject.recipe.data, channels, **options.reading)


@dataclass(frozen=True)
class _Measuring:
    session: Session
    options: EvaluateOptions
    subject: Subject
    learner: Learner
    processes: Processes

    def _images(self, dataset: Dataset) -> Loader:
        recipe, batch = self.subject.recipe, self.options.batch
        return evaluation_loader(self.session, self.options, recipe, dataset, self.processes, batch)

    def _report(self, text: str, write: Callable[[Path], object]) -> None:
        if self.processes.rank == 0:
            if self.options.out:
                _written(Path(self.options.out), write)
            show(f"{self.subject.origin}: {text}")

    def accuracy(self, test: Dataset) -> None:
        result = accuracy(self.learner.predict, self._images(test), self.processes, len(test.classes))
        shares = "  ".join(f"{name} {100 * share:.2f} %" for name, share in result.scores.items())
        self._report(
            f"{shares}  ({result.right} of {result.images} right)",
            lambda path: write_accuracy(path, result, test.classes, of=self.subject.origin),
        )

    def knn(self, train: Dataset, test: Dataset) -> None:
        monitor = self.subject.recipe.monitor
        parts = [features(self.learner.embed, self._images(part)) for part in (train, test)]
        score = knn(parts[0], parts[1], self.processes, monitor, len(train.classes))
        words = {"knn": score, "neighbours": monitor.knn_neighbours, "temperature": monitor.knn_temperature}
        self._report(
            f"kNN {100 * score:.2f} % ({monitor.knn_neighbours} neighbours among {len(train)} images)",
            lambda path: path.write_text(json.dumps({"of": self.subject.origin, **words}) + "\n", encoding="utf-8"),
        )

    def embed(self, images: Dataset, out: Path) -> None:
        rows, labels = features(self.learner.embed, self._images(images))
        rows, labels = gather(rows, self.processes), self.processes.gather(labels)
        if self.processes.rank == 0:
            _written(out, lambda path: write_features(path, rows, labels, out.suffix))
            show(f"{self.subject.origin}: features {rows.shape[0]} x {rows.shape[1]} and labels are in {out}")


def write_features(path: Path, rows: np.ndarray, labels: np.ndarray, form: str) -> None:
    """Write "features" (n, width) float32 and "labels" (n,) int64; form: ".npz" or ".safetensors"."""
    if form == ".safetensors":
        write_arrays(path, {"features": rows, "labels": labels})
        return
    with path.open("wb") as file:
        np.savez(file, features=rows, labels=labels)


def _written(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path` and put it there when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as part:
            write(part)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error


# ---------------------------------------------------------------- what is measured
def find_subject(
    named: str | None,
    overrides: Sequence[str] = (),
    *,
    weights: str | None = None,
    from_scratch: bool = False,
    features_only: bool = False,
) -> Subject:
    """Find a model: a run folder, a checkpoint, encoder.safetensors, or a recipe with weights.

    named: one of the first three, or a recipe. weights: a file for a recipe; without one, random weights must be asked
    for (from_scratch). features_only: take the encoder alone, also of a classifier's weights.
    """
    if named is None:
        raise UserError(
            "name what to evaluate: a run folder, a checkpoint, encoder.safetensors, or a recipe with --weights FILE."
        )
    path = Path(named)
    if path.is_dir():
        return _of_checkpoint(path, overrides)
    if path.suffix == ".safetensors" and path.is_file():
        return _of_file(path, overrides)
    if path.is_file() and path.suffix != ".toml":
        raise UserError(f"{path} does not say which recipe it is of: name a recipe, and the file with --weights.")
    recipe = recipes.load(named, overrides)
    if weights is None:
        if not from_scratch:
            raise UserError("say what to evaluate: --weights FILE, or --from-scratch for random weights.")
        model = _as_classifier(recipe)
        return Subject(model, initial_values(model.model, model.seed), False, f"random weights of {recipe.name}")
    if features_only or not isinstance(recipe.model.objective, Classifier):
        return _of_encoder(recipe, weights)
    return _of_classifier(recipe, weights)


def _of_checkpoint(path: Path, overrides: Sequence[str]) -> Subject:
    best = path / "checkpoints" / "best"
    folder = checkpoint.find(best) if checkpoint.exists(best) else checkpoint.latest(path)
    groups, known = checkpoint.load(folder)
    recipe = recipes.parse(known["recipe"], Path(known["name"]), overrides)
    if isinstance(recipe.model.objective, Classifier):
        return Subject(recipe, averaged(groups["model"], groups["optimizer"]), True, str(folder))
    return _of_encoder(recipe, str(folder))


def _of_file(path: Path, overrides: Sequence[str]) -> Subject:
    try:
        with safe_open(path, framework="np") as file:
            words = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if "recipe_toml" not in words:
        raise UserError(f"{path} does not say which recipe it is of: name a recipe, and the file with --weights.")
    recipe = recipes.parse(words["recipe_toml"], Path(words.get("recipe", path.name)), overrides)
    return _of_encoder(recipe, str(path))


def _of_classifier(recipe: Recipe, weights: str) -> Subject:
    from triport.weights import load_model  # only here: most runs need no file formats

    path = find_file(weights)
    arrays, report = load_model(path, recipe.model)
    if report.faults():
        raise UserError(f"{path} does not fit the recipe {recipe.name}: {report.faults()}.")
    return Subject(recipe, arrays, True, str(path))


def _of_encoder(recipe: Recipe, where: str) -> Subject:
    recipe = _as_classifier(recipe)
    arrays, _ = load_encoder(recipe, where, initial_values(recipe.model, recipe.seed))
    return Subject(recipe, arrays, False, where)


def _as_classifier(recipe: Recipe) -> Recipe:
    """The recipe with a classifier for objective, so that only the encoder is built, not a decoder or its twin."""
    if isinstance(recipe.model.objective, Classifier):
        return recipe
    pooling: Literal["mean", "token"] = "mean" if isinstance(recipe.model.encoder, ResNet) else "token"
    head = Classifier(classes=2, pooling=pooling, head_std=0.01, frozen_encoder=True)
    return replace(recipe, task="linear", model=replace(recipe.model, objective=head))
