"""A trial: what every framework is asked to compute. A recipe, initial values, batches, and the schedule's values.

All of it is made here, by `core`, and sent to the frameworks; so what they answer may be held against each other.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triport.core.backend.probe import DEVICE
from triport.core.data.batches import Batch
from triport.core.data.datasets import SHIPPED, open_dataset
from triport.core.data.loader import Loader
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.schedule import Values, at
from triport.core.options import Parser, positive_number
from triport.core.run import fitting, initial
from triport.core.spec import Classifier, Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool.precision import PRECISIONS

COARSE = 32  # last bits that move where ReLUs shall switch, as they may in any implementation: rarely, but by a lot
FEW_PIXELS = 64 * 64  # images up to this size come 32 at a time, larger ones 8


@dataclass(frozen=True, eq=False)
class Trial:
    """One training run of a few steps, all inputs given."""

    recipe: Recipe
    arrays: dict[str, NDArray]  # initial values, canonical names
    batches: list[list[Batch]]  # of each step its one micro-batch
    values: list[Values]  # of each step
    images: str  # the data set's name
    precision: str = "float32"  # in which the arrays are and a framework shall compute

    @property
    def steps(self) -> int:
        """How many optimiser steps it has."""
        return len(self.batches)

    @property
    def batch(self) -> int:
        """How many samples a step sees."""
        return len(self.batches[0][0].indices)

    def inputs(self, step: int = 0) -> dict[str, NDArray]:
        """A step's batch as named inputs (see reference_objectives)."""
        return named(self.batches[step][0], self.recipe)


def named(batch: Batch, recipe: Recipe) -> dict[str, NDArray]:
    """A batch of the loader as the named inputs that the reference takes."""
    inputs = {"images": batch.images[0], "indices": batch.indices}
    if len(batch.images) > 1:
        inputs |= {"view1": batch.images[0], "view2": batch.images[1]}
    if isinstance(recipe.model.objective, Classifier):
        inputs["labels"] = batch.labels
    more = {"targets": batch.targets, "mask_noise": batch.mask_noise, "drop_path": batch.drop_path}
    return inputs | {name: array for name, array in more.items() if array is not None}


def add_options(parser: argparse.ArgumentParser, steps: int) -> None:
    """Add the options that say what a trial is."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe's fields")
    parser.add_argument("--steps", type=positive_number, default=steps, metavar="N", help=f"optimiser steps ({steps})")
    parser.add_argument("--batch", type=positive_number, metavar="N", help="images of a step (32; 8 if they are large)")
    parser.add_argument("--data", metavar="PATH", help="images; default: the recipe's own if they are shipped, else "
                        f"{SHIPPED}")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="begin with this encoder, not with drawn values")
    parser.add_argument(
        "--epoch", type=float, metavar="E", help="read the schedule from this epoch on (end of warm-up)"
    )
    parser.add_argument("--precision", choices=tuple(reversed(PRECISIONS)), default="float64", help="(float64)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, which takes effect at once: frameworks are asked in processes that inherit this one's variables."""

    def chosen(name: str) -> str:
        if name not in ("cpu", "cuda", "mps"):
            raise argparse.ArgumentTypeError(f"unknown device '{name}': take cpu, cuda or mps")
        os.environ[DEVICE] = name
        return name

    parser.add_argument("--device", type=chosen, metavar="NAME", help="where the frameworks compute (cpu)")


def parser(command: str, purpose: str) -> Parser:
    """The parser of a command of `triport parity`."""
    return Parser(prog=f"triport parity {command}", description=purpose, allow_abbrev=False)


def check_out(path: Path, replaces: Callable[[Path], bool] | None = None, what: str = "") -> None:
    """Make the folder of a file that will be written, before any work. Raises UserError where that cannot be.

    replaces: whether a file that is there is one of those that are written here, `what`; no other is replaced.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {path.parent}: {error.strerror}.") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it.")
    if replaces is not None and path.exists() and not replaces(path):
        raise UserError(f"{path} is there and is not {what}: move it aside first, it would be replaced.")


def make(name: str, options: argparse.Namespace) -> Trial:
    """The trial that a command line describes. Raises UserError."""
    recipe = recipes.load(name, options.overrides)
    where = options.data
    if where is None and recipe.data.name != SHIPPED:
        where = SHIPPED
    return assemble(
        recipe,
        steps=options.steps,
        batch=options.batch,
        data=where,
        weights=options.weights,
        epoch=options.epoch,
        precision=options.precision,
    )


def assemble(
    recipe: Recipe,
    *,
    steps: int,
    batch: int | None = None,
    data: str | None = None,
    weights: str | None = None,
    epoch: float | None = None,
    precision: str = "float32",
) -> Trial:
    """A trial of a recipe: its own initial values and batches, its schedule from `epoch` on (None: the end of warm-up).

    batch: images of a step; the learning rate stays that of the recipe's batch. Raises UserError.
    """
    dataset = open_dataset(data, "train", recipe.data, recipe.model.encoder.channels)
    recipe, _ = fitting.fit_classes(recipe, dataset)
    height, width = recipe.model.encoder.image
    batch = batch or min(recipe.batch, 32 if height * width <= FEW_PIXELS else 8)
    arrays = initial_values(recipe.model, recipe.seed)
    if weights is not None:
        if recipe.task == "pretrain":
            raise UserError("pretraining begins with drawn values; --weights is for linear and finetune recipes.")
        arrays, _ = initial.load_encoder(recipe, weights, arrays)
    per_epoch = max(len(dataset) // recipe.batch, 1)
    start = recipe.schedule.warmup_epochs if epoch is None else epoch
    first = min(round(start * per_epoch), max(recipe.schedule.epochs * per_epoch - steps, 0))
    values = [at(recipe, first + i, per_epoch) for i in range(steps)]
    if precision == "float64":
        arrays = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()}
    return Trial(recipe, arrays, draw(recipe, dataset, batch, steps), values, dataset.name, precision)


def draw(recipe: Recipe, dataset: object, batch: int, steps: int) -> list[list[Batch]]:
    """The first `steps` training batches of a recipe with `batch` images each, epoch after epoch."""
    objective = recipe.model.objective
    with Loader(
        dataset,  # type: ignore[arg-type]
        recipe.train,
        batch=batch,
        seed=recipe.seed,
        workers=0,
        train=True,
        mix=recipe.mix,
        classes=objective.classes if isinstance(objective, Classifier) else None,
        model=recipe.model,
        repeats=recipe.data.repeats,
    ) as loader:
        every = (step for epoch in range(steps) for step in loader.epoch(epoch))
        return list(islice(every, steps))


# ---------------------------------------------------------------- the last bit
def shake(array: NDArray, rng: np.random.Generator, bits: int = 1) -> NDArray:
    """Each float32 value moved by up to `bits` last bits or left as it was; 0 and other types stay."""
    if array.dtype != np.float32:
        return array
    move = np.float32(2.0**-23) * rng.integers(-bits, bits, array.shape, endpoint=True).astype(np.float32)
    return np.asarray(array + array * move, np.float32)
