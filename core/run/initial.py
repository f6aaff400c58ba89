"""The arrays that a run begins with: drawn from the seed, or an encoder from a file, a run folder or a checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from triport.core.backend.learner import Processes
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory, head_name
from triport.core.record import checkpoint
from triport.core.selection import EVERYTHING, Selection, no_choice
from triport.core.spec import Classifier, MoCo, Recipe

Arrays = dict[str, np.ndarray]


def initial_arrays(
    recipe: Recipe, weights: str | None, from_scratch: bool = False, selection: Selection = EVERYTHING
) -> tuple[Arrays, list[str]]:
    """Return every array that training begins with, and lines about where they come from.

    selection: which arrays of the file `weights` are the encoder's, where it holds more than one model.
    """
    if weights is None:
        no_choice(selection, "a run without --weights")
        if recipe.task == "linear" and not from_scratch:
            raise UserError(
                "a linear probe needs an encoder: --weights FILE, or --from-scratch to probe random weights."
            )
        if recipe.task == "finetune" and not from_scratch:
            raise UserError(
                "fine-tuning needs an encoder: --weights FILE, or --from-scratch to train from random weights."
            )
        return initial_values(recipe.model, recipe.seed), []
    drawn = initial_values(recipe.model, recipe.seed)
    load = load_pretraining if recipe.task == "pretrain" else load_encoder
    return load(recipe, weights, drawn, selection)


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


def load_encoder(
    recipe: Recipe, where: str, drawn: Arrays, selection: Selection = EVERYTHING
) -> tuple[Arrays, list[str]]:
    """Put the encoder of a file, run folder or checkpoint into a classifier's `drawn` arrays; say what happened.

    The file's projector, decoder, momentum encoder and head stay behind, its position table is resampled to the
    recipe's image size. Only the head may stay drawn, and `fc_norm`, which pretraining has not; any other name that
    is missing or left over is a UserError.
    """
    from triport import weights  # only here: most runs need no file formats

    path = find_file(where)
    loaded, report = weights.load_encoder(path, recipe.model, selection=selection)
    head = head_name(recipe.model.encoder)
    fresh = (f"{head}.", "fc_norm.")
    missing = [name for name in drawn if name not in loaded and not name.startswith(fresh)]
    strange = [*report.unknown, *(name for name in loaded if name not in drawn)]
    for names, fault in ((missing, "lacks"), (strange, "holds what the encoder does not have:")):
        if names:
            raise UserError(f"{path} {fault} {_first_three(names)}. `triport inspect {path}` shows what it is.")
    arrays = {name: _typed(loaded.get(name, array), array) for name, array in drawn.items()}
    return arrays, [f"encoder from {path}", *report.summary().splitlines()]


def load_pretraining(
    recipe: Recipe, where: str, drawn: Arrays, selection: Selection = EVERYTHING
) -> tuple[Arrays, list[str]]:
    """Put the encoder of a file, run folder or checkpoint into a pretraining model's `drawn` arrays; say what happened.

    MoCo's base and momentum encoder both begin with it; projectors and predictor, or the decoder, stay as drawn.
    """
    moco = isinstance(recipe.model.objective, MoCo)
    prefixes = ("base_encoder.", "momentum_encoder.") if moco else ("",)
    names = [p.name for p in encoder_inventory(recipe.model.encoder)]
    found, lines = load_encoder(recipe, where, {name: drawn[prefixes[0] + name] for name in names}, selection)
    arrays = {**drawn, **{prefix + name: array.copy() for prefix in prefixes for name, array in found.items()}}
    rest = "projectors and predictor" if moco else "the decoder"
    return arrays, [*lines, f"{rest} begin{'' if moco else 's'} with random values"]


def licence(where: str) -> str:
    """The licence notice of the weights that a path means."""
    from triport import weights

    return weights.licence(find_file(where))


def _typed(array: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """An array in the number type that was drawn; float64 stays, for a run in that precision."""
    return np.asarray(array, array.dtype if array.dtype == np.float64 else drawn.dtype)


def _first_three(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_equal(arrays: Mapping[str, np.ndarray], processes: Processes) -> None:
    """Raise UserError where a process begins with other weights than the rest: nothing would ever make them equal."""
    own = 0
    for name in sorted(arrays) if processes.world > 1 else []:
        own = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data, own)
    if len(set(processes.gather(np.array([own])).tolist())) > 1:
        raise UserError("the processes begin with different weights: give all of them the same --weights and seed")


def check_frozen(recipe: Recipe, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Raise RuntimeError unless the encoder after a linear probe is bit-equal to the one before.

    Batch norm's statistics are left out where the frozen encoder runs in training mode, which updates them.
    """
    objective = recipe.model.objective
    assert isinstance(objective, Classifier)
    frozen = [
        p.name for p in encoder_inventory(recipe.model.encoder) if not p.buffer or objective.frozen_mode != "train"
    ]
    for name in frozen:
        if name in before and np.asarray(before[name], after[name].dtype).tobytes() != after[name].tobytes():
            raise RuntimeError(f"the frozen encoder has changed: {name} differs from its file")
