"""What stands before the first step: the recipe fitted to the data, the batch split up, the first weights found."""

from __future__ import annotations

import zlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.backend.learner import Processes
from triport.core.data.batches import order
from triport.core.data.datasets import Dataset, check_apart, check_labelled, open_dataset
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory, head_name
from triport.core.record import checkpoint
from triport.core.spec import Classifier, Recipe, schema
from triport.core.spec import recipe as recipes

Arrays = dict[str, np.ndarray]
FREE = ("title", "source", "reported", "monitor")  # may differ between a run and its resumption


# ---------------------------------------------------------------- recipe
def read_recipe(options: Namespace, known: Mapping[str, Any] | None) -> Recipe:
    """Return the recipe of the command line, or else of the checkpoint state `known`, and hold it against the task."""
    if options.recipe is not None:
        recipe = recipes.load(options.recipe, options.overrides)
    elif known is not None:
        recipe = recipes.parse(known["recipe"], Path(known["name"]), options.overrides)
    else:
        raise UserError("name a recipe; `triport recipes` lists them.")
    if options.task != "evaluate" and recipe.task != options.task:
        raise UserError(f"the recipe {recipe.name} is for the task '{recipe.task}': use `triport {recipe.task}`.")
    return recipe


def check_same(recipe: Recipe, known: Mapping[str, Any]) -> None:
    """Raise UserError naming the first field in which `recipe` differs from the one a checkpoint was made with."""
    theirs = recipes.parse(known["recipe"], Path(known["name"]))
    found = difference(schema.plain(theirs), schema.plain(recipe))
    if found:
        where, old, new = found
        raise UserError(
            f"the checkpoint was made with another recipe: {where} was {old!r} and is now {new!r}. "
            "Resume with the same recipe and overrides (or with none: the run keeps its own), "
            "or begin anew with another --out."
        )


def difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted field in which two plain recipes differ with both values; FREE fields apart."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: (old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {str(i): pair for i, pair in enumerate(zip(old, new, strict=True))}
    else:
        return None if old == new else (where, old, new)
    for key, (one, other) in pairs.items():
        if where or key not in FREE:
            found = difference(one, other, f"{where}.{key}" if where else key)
            if found:
                return found
    return None


# ---------------------------------------------------------------- data
@dataclass(frozen=True)
class Data:
    """The images of a run; `test` is None where there are none apart from the training images."""

    train: Dataset
    test: Dataset | None
    labelled: bool
    remark: str = ""  # a line about what could not be had


def open_data(options: Namespace, recipe: Recipe) -> Data:
    """Open both splits. Classifiers must have labelled held-out images; pretraining goes without, and says so."""
    channels = recipe.model.encoder.channels
    train = open_dataset(options.data, "train", recipe.data, channels)
    if recipe.task != "pretrain":
        check_labelled(train)
        test = open_dataset(options.data, "test", recipe.data, channels)
        check_apart(train, test)
        check_labelled(test, len(train.classes))
        return Data(train, test, True)
    labelled = bool(train.classes) and train.label(0) >= 0
    try:
        held = open_dataset(options.data, "test", recipe.data, channels)
        check_apart(train, held)
    except UserError as error:
        missed = f"no held-out images ({error}), so no kNN" if recipe.monitor.knn_every else ""
        return Data(train, None, labelled, missed)
    if recipe.monitor.knn_every and not (labelled and len(train.classes) > 1 and held.classes == train.classes):
        return Data(train, held, False, "the images have no labels that kNN could use, so no kNN")
    return Data(train, held, labelled)


def fit_classes(recipe: Recipe, data: Data) -> tuple[Recipe, str]:
    """Return the recipe with as many classes as the data has, and a line that says so where that is a change."""
    objective = recipe.model.objective
    if not isinstance(objective, Classifier) or objective.classes == len(data.train.classes):
        return recipe, ""
    classes = len(data.train.classes)
    said = (
        f"{data.train.name} has {classes} classes, the recipe was written for {objective.classes}: "
        f"the head gets {classes}."
    )
    return replace(recipe, model=replace(recipe.model, objective=replace(objective, classes=classes))), said


def split_batch(recipe: Recipe, options: Namespace, world: int) -> int:
    """Return into how many micro-batches each process splits its share of the batch."""
    batch = recipe.batch
    own, rest = divmod(batch, world)
    if rest or not own:
        raise UserError(
            f"batch {batch} cannot be shared by {world} processes. Set batch={max(own, 1) * world} or another multiple."
        )
    micro = options.micro_batch
    if micro is not None and own % micro:
        raise UserError(
            f"--micro-batch {micro} does not divide the {own} images that each of {world} processes gets "
            f"of a batch of {batch}. Set one that does, or --accumulate K."
        )
    count = own // micro if micro is not None else options.accumulate or 1
    if own % count:
        raise UserError(
            f"--accumulate {count} does not divide the {own} images that each of {world} processes gets "
            f"of a batch of {batch}. Set batch={max(own // count, 1) * count * world} "
            f"or another multiple of {count * world}."
        )
    return count


def check_length(recipe: Recipe, data: Data) -> None:
    """Raise UserError where the data does not fill one batch."""
    images = len(order(recipe.seed, 0, len(data.train), recipe.data.repeats))
    if images < recipe.batch:
        raise UserError(
            f"{data.train.name} has {len(data.train)} images, fewer than one batch of {recipe.batch}. "
            f"Set batch={max(images // 2, 1)} or less."
        )


def check_images(known: Mapping[str, Any], data: Data) -> None:
    """Raise UserError where a run would go on with another number of images: its order would be another."""
    if known["images"] != len(data.train):
        raise UserError(
            f"the run was trained on {known['images']} images, {data.train.name} has {len(data.train)}. "
            "Resume with the same --data."
        )


# ---------------------------------------------------------------- weights
def find_file(where: str) -> Path:
    """Return the weights that a path means: itself, or of a run folder or checkpoint the file with the encoder."""
    path = Path(where).expanduser()
    if path.is_file():
        return path
    last = checkpoint.find(path / "checkpoints" / "last")
    for file in (path / "encoder.safetensors", checkpoint.find(path) / "model.safetensors", last / "model.safetensors"):
        if file.is_file():
            return file
    of_a_run = (path / "checkpoints").is_dir() or (path / "recipe.toml").is_file()
    if path.is_dir() and not of_a_run:
        return path  # OneFlow, LiBai and Hugging Face keep weights in folders
    reason = "holds no encoder.safetensors and no checkpoint" if path.is_dir() else "is not there"
    raise UserError(f"--weights {where}: {reason}. Name a weight file or a run folder.")


def adopted(options: Namespace, path: Path) -> Path:
    """Return the run folder that goes on from `path`, a checkpoint of another project; `path` itself if it is a run."""
    of_a_run = checkpoint.exists(path) or checkpoint.listed(path) or (path / "checkpoints").is_dir()
    if not path.exists() or of_a_run or (path / "recipe.toml").is_file():
        return path
    from triport.weights.commands import to_run  # only here: most runs need no file formats

    if options.recipe is not None:
        recipe = recipes.load(options.recipe, options.overrides)
    else:
        found = to_run.recipe_of(path)
        recipe = recipes.parse(recipes.to_toml(found), Path(found.name), options.overrides)
    name = f"{recipe.name.replace('/', '_')}-from-{path.name.partition('.')[0]}"
    folder = Path(options.out) if options.out else Path("runs") / name
    return to_run.adopt(path, recipe, len(open_data(options, recipe).train), folder)


def first_arrays(recipe: Recipe, options: Namespace) -> tuple[Arrays, list[str]]:
    """Return every array that training begins with, and lines about where they come from."""
    drawn = initial_values(recipe.model, recipe.seed)
    if options.weights is None:
        if recipe.task == "linear" and not options.from_scratch:
            raise UserError(
                "a linear probe needs an encoder: --weights FILE, or --from-scratch to probe random weights."
            )
        if recipe.task == "finetune" and not options.from_scratch:
            raise UserError(
                "fine-tuning needs an encoder: --weights FILE, or --from-scratch to train from random weights."
            )
        return drawn, []
    if recipe.task == "pretrain":
        raise UserError(
            "pretraining begins with random weights; --weights is for linear, finetune and evaluate. "
            "To go on with a run: --resume."
        )
    return load_encoder(recipe, options.weights, drawn)


def check_alike(arrays: Mapping[str, np.ndarray], processes: Processes) -> None:
    """Raise UserError where a process begins with other weights than the rest: nothing would ever make them alike."""
    own = 0
    for name in sorted(arrays) if processes.world > 1 else []:
        own = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data, own)
    if len(set(processes.gather(np.array([own])).tolist())) > 1:
        raise UserError("the processes begin with different weights: give all of them the same --weights and seed")


def load_encoder(recipe: Recipe, where: str, drawn: Arrays) -> tuple[Arrays, list[str]]:
    """Put the encoder of a file, run folder or checkpoint into a classifier's `drawn` arrays; say what happened.

    The file's projector, decoder, momentum encoder and head stay behind, its position table is resampled to the
    recipe's image size. Only the head may stay drawn, and `fc_norm`, which pretraining has not; any other name that
    is missing or left over is a UserError.
    """
    from triport import weights  # only here: most runs need no file formats

    path = find_file(where)
    loaded, report = weights.load_encoder(path, recipe.model)
    head = head_name(recipe.model.encoder)
    fresh = (f"{head}.", "fc_norm.")
    missing = [name for name in drawn if name not in loaded and not name.startswith(fresh)]
    strange = [*report.unknown, *(name for name in loaded if name not in drawn)]
    for names, fault in ((missing, "lacks"), (strange, "holds what the encoder does not have:")):
        if names:
            raise UserError(f"{path} {fault} {_some(names)}. `triport inspect {path}` shows what it is.")
    arrays = {name: np.asarray(loaded.get(name, array), array.dtype) for name, array in drawn.items()}
    return arrays, [f"encoder from {path}", *report.summary().splitlines()]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def frozen_names(recipe: Recipe) -> list[str]:
    """Return what a linear probe must not change: the encoder, without statistics where it runs in training mode."""
    objective = recipe.model.objective
    assert isinstance(objective, Classifier)
    own = encoder_inventory(recipe.model.encoder)
    return [p.name for p in own if not (p.buffer and objective.frozen_mode == "train")]


def check_frozen(recipe: Recipe, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Raise RuntimeError unless the encoder after a linear probe is bit-equal to the one before."""
    for name in frozen_names(recipe):
        if name in before and before[name].tobytes() != np.asarray(after[name], before[name].dtype).tobytes():
            raise RuntimeError(f"the frozen encoder has changed: {name} differs from its file")
