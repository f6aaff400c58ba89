"""The model that is measured, found from what a user names: a run, a checkpoint, an encoder, a recipe with weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from triport.core.errors import UserError
from triport.core.evaluate.monitors import first_bad
from triport.core.model.init import initial_values
from triport.core.record import checkpoint
from triport.core.record.export import averaged
from triport.core.run import resume
from triport.core.run.initial import Arrays, find_file, load_encoder
from triport.core.spec import Classifier, Recipe, ResNet
from triport.core.spec import recipe as recipes


@dataclass(frozen=True)
class Subject:
    """What is measured: a model with all its arrays. The objective is always a classifier."""

    recipe: Recipe
    arrays: Arrays
    has_head: bool  # the head is trained, so its answers mean something
    origin: str
    classes: tuple[str, ...] | None = None  # names of the head's rows; None where the weights do not say


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
    UserError where there is none, or its weights are not finite.
    """
    subject = _find(named, overrides, weights, from_scratch, features_only)
    bad = first_bad(subject.arrays)
    if bad is not None:
        raise UserError(f"{subject.origin}: {bad} is not finite, so its features and answers would mean nothing.")
    return subject


def _find(
    named: str | None, overrides: Sequence[str], weights: str | None, from_scratch: bool, features_only: bool
) -> Subject:
    if named is None:
        raise UserError(
            "name what to evaluate: a run folder, a checkpoint, encoder.safetensors, or a recipe with --weights FILE."
        )
    path = Path(named)
    if (weights or from_scratch) and path.exists() and path.suffix != ".toml":
        option = "--weights" if weights else "--from-scratch"
        raise UserError(f"{path} has weights of its own: leave out {option}, or name a recipe instead.")
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
    groups, known = resume.load(folder)
    recipe = recipes.parse(known["recipe"], Path(known["name"]), overrides)
    if isinstance(recipe.model.objective, Classifier):
        arrays = averaged(groups["model"], groups["optimizer"])
        return Subject(recipe, arrays, True, str(folder), _named(known.get("classes"), recipe, folder))
    return _of_encoder(recipe, str(folder))


def _of_file(path: Path, overrides: Sequence[str]) -> Subject:
    words = _words(path)
    if "recipe_toml" not in words:
        raise UserError(f"{path} does not say which recipe it is of: name a recipe, and the file with --weights.")
    recipe = recipes.parse(words["recipe_toml"], Path(words.get("recipe", path.name)), overrides)
    return _of_encoder(recipe, str(path))


def _words(path: Path) -> dict[str, str]:
    """What the head of a safetensors file says."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _named(classes: object, recipe: Recipe, where: Path) -> tuple[str, ...] | None:
    """The names of a head's rows as a checkpoint tells them; None where it does not."""
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where} does not name its classes as a list of names: it was changed after it was written.")
    if len(classes) != head_classes(recipe):
        raise UserError(f"{where} names {len(classes)} classes, its head has {head_classes(recipe)}: it was changed.")
    return tuple(classes)


def _of_classifier(recipe: Recipe, weights: str) -> Subject:
    from triport.weights import load_model  # only here: most runs need no file formats

    path = find_file(weights)
    arrays, report = load_model(path, recipe.model)
    if report.faults():
        raise UserError(f"{path} does not fit the recipe {recipe.name}: {report.faults()}.")
    words = _words(path) if path.suffix == ".safetensors" else {}
    try:
        classes = json.loads(words.get("classes", "null"))
    except (ValueError, RecursionError):
        classes = None
    return Subject(recipe, arrays, True, str(path), _named(classes, recipe, path))


def _of_encoder(recipe: Recipe, where: str) -> Subject:
    recipe = _as_classifier(recipe)
    arrays, _ = load_encoder(recipe, where, initial_values(recipe.model, recipe.seed))
    return Subject(recipe, arrays, False, where)


def _as_classifier(recipe: Recipe) -> Recipe:
    """The recipe with a classifier for objective, so that neither decoder nor momentum encoder is built."""
    if isinstance(recipe.model.objective, Classifier):
        return recipe
    pooling: Literal["mean", "token"] = "mean" if isinstance(recipe.model.encoder, ResNet) else "token"
    head = Classifier(classes=2, pooling=pooling, head_std=0.01, frozen_encoder=True)
    return replace(recipe, task="linear", model=replace(recipe.model, objective=head))


def head_classes(recipe: Recipe) -> int:
    """Return how many rows a classifier's head has."""
    assert isinstance(recipe.model.objective, Classifier)
    return recipe.model.objective.classes
