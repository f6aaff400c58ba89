"""The model that RUN_OR_FILE means: of a run or of any file of weights, with the recipe that prepares its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from triport.core.errors import UserError
from triport.core.evaluate.monitors import first_bad
from triport.core.model.inventory import head_name, inventory
from triport.core.record import checkpoint
from triport.core.record.export import averaged
from triport.core.run import resume
from triport.core.run.subject import Subject, find_subject
from triport.core.spec import MAE, Recipe, ViT, zoo
from triport.core.spec import recipe as recipes

Arrays = Mapping[str, np.ndarray]
Target = Literal["pixels", "normalised"]
WHOLE = "name a run folder, or a whole pretraining file such as mae_visualize_* or mae_pretrain_*_full"

# widths that models of the field share with another number of heads: arrays alone do not tell which
AMBIGUOUS = {384: "6 (DeiT, timm) or 12 (MoCo v3)"}


@dataclass(frozen=True)
class Autoencoder:
    """A masked autoencoder with its decoder."""

    recipe: Recipe
    arrays: Arrays
    origin: str

    @property
    def objective(self) -> MAE:
        """The recipe's objective, which is MAE."""
        assert isinstance(self.recipe.model.objective, MAE)
        return self.recipe.model.objective


def subject(where: str | Path, recipe: str | None = None, features_only: bool = True) -> Subject:
    """Return the model that a path means, for features or, unless `features_only`, for predictions.

    recipe: of a file that does not say its own; without one the named model with the file's names and shapes is taken.
    UserError where there is none, or the file fits no model.
    """
    path = Path(where).expanduser()
    if not path.exists():
        raise UserError(f"{where} is not there: name a run folder, a checkpoint or a file of weights.")
    if recipe is not None:
        return find_subject(recipe, weights=str(path), features_only=features_only)
    if path.is_dir() and is_run(path):
        return find_subject(str(path), features_only=features_only)
    if path.suffix == ".safetensors" and path.is_file():
        own = find_own(path)
        if own is not None:
            return own
    name, changes = find_recipe(path, features_only)
    return find_subject(name, changes, weights=str(path), features_only=features_only)


def is_run(path: Path) -> bool:
    """Say whether a folder is a run's or a checkpoint of one; LiBai and Hugging Face keep weights in folders, too."""
    return checkpoint.exists(path) or (path / "checkpoints").is_dir() or (path / "recipe.toml").is_file()


def find_own(path: Path) -> Subject | None:
    """Return the model of encoder.safetensors; None where the file does not carry a recipe of its own."""
    try:
        return find_subject(str(path))
    except UserError as error:
        if "does not say which recipe" in str(error):
            return None
        raise


def find_recipe(path: Path, features_only: bool) -> tuple[str, tuple[str, ...]]:
    """Return the recipe, with overrides, of the named model whose arrays have a file's names and shapes."""
    from triport.weights.canonical import architecture
    from triport.weights.model.opening import open_model

    opened = open_model(path)
    shape = opened.model.architecture
    classifies = shape.method == "classifier" and not features_only
    for known in zoo.models():
        spec = known.spec
        own = architecture({p.name: p.shape for p in inventory(spec)})
        encoder = spec.encoder
        heads = encoder.heads if isinstance(encoder, ViT) else None
        if not shape.same_encoder(own) or (opened.facts.heads or heads) != heads:
            continue
        if classifies and (
            own.method != "classifier" or own.pooled != shape.pooled or own.head_norm != shape.head_norm
        ):
            continue
        if shape.method in ("mae", "moco") and own.method != shape.method:
            continue
        if heads and not opened.facts.heads and encoder.width in AMBIGUOUS:
            raise UserError(
                f"{path} does not state its attention heads; a ViT of width {encoder.width} has "
                f"{AMBIGUOUS[encoder.width]}: name its recipe with --recipe."
            )
        changes = (f"model.objective.classes={shape.classes}",) if classifies else ()
        return known.recipes[0], (*known.changes, *changes)
    raise UserError(f"{path} holds a {shape.describe()}, which no named model is: name its recipe with --recipe.")


# ---------------------------------------------------------------- masked autoencoders
def autoencoder(where: str | Path, recipe: str | None = None, target: Target | None = None) -> Autoencoder:
    """Return a masked autoencoder with its decoder, from a run or any file that holds both.

    target: what the decoder predicts, for files that do not say it. UserError in one line where there is no decoder.
    """
    path = Path(where).expanduser()
    if not path.exists():
        raise UserError(f"{where} is not there: {WHOLE}.")
    found = _of_run(path) if path.is_dir() and is_run(path) else _of_file(path, recipe, target)
    bad = first_bad(found.arrays)
    if bad is not None:
        raise UserError(f"{found.origin}: {bad} is not finite, so its reconstructions would mean nothing.")
    return found


def _of_run(path: Path) -> Autoencoder:
    folder = checkpoint.latest(path)
    groups, known = resume.load(folder)
    recipe = recipes.parse(known["recipe"], Path(known["name"]))
    if not isinstance(recipe.model.objective, MAE):
        raise UserError(f"{path} is a run of {recipe.model.objective.kind}, which has no decoder: {WHOLE}.")
    return Autoencoder(recipe, averaged(groups["model"], groups["optimizer"]), str(folder))


def _of_file(path: Path, named: str | None, target: Target | None) -> Autoencoder:
    from triport.weights import load_model
    from triport.weights.model.opening import open_model

    opened = open_model(path)
    shape, facts = opened.model.architecture, opened.facts
    if "decoder" not in shape.parts:
        raise UserError(f"{path} holds no decoder, only {', '.join(shape.parts) or shape.method}: {WHOLE}.")
    recipe = facts.made_by if named is None else recipes.load(named)
    if recipe is None:
        name, changes = find_recipe(path, features_only=True)
        recipe = recipes.load(name, changes)
    if not isinstance(recipe.model.objective, MAE):
        raise UserError(f"{recipe.name} is not a recipe of MAE: name one of MAE with --recipe.")
    normalised = facts.normalised_pixels if target is None else target == "normalised"
    if normalised is None:
        raise UserError(
            f"{path} does not say what its decoder predicts: add --target pixels (the mae_visualize files) or "
            "--target normalised (pretraining with norm_pix_loss)."
        )
    objective = replace(
        recipe.model.objective,
        normalised_pixels=normalised,
        decoder_width=shape.decoder_width,
        decoder_depth=shape.decoder_depth,
        decoder_heads=facts.decoder_heads or recipe.model.objective.decoder_heads,
    )
    recipe = replace(recipe, model=replace(recipe.model, objective=objective))
    arrays, report = load_model(path, recipe.model)
    if report.faults():
        raise UserError(f"{path} does not fit the recipe {recipe.name}: {report.faults()}.")
    return Autoencoder(recipe, arrays, str(path))


def digest(found: Subject) -> str:
    """Return the SHA-256 of a model's arrays but those of its head: names, shapes and values, in the names' order."""
    total = hashlib.sha256()
    head = f"{head_name(found.recipe.model.encoder)}."
    for name in sorted(name for name in found.arrays if not name.startswith(head)):
        array = np.ascontiguousarray(found.arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
