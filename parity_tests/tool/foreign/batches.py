"""`triport parity batches`: writes the very batches that a recipe would train on, for a training loop of one's own.

The file is .npz: `step<i>/images` or `view1` and `view2`, `indices`, and `labels`, `mask_noise`, `targets`, `drop_path`
where the recipe draws them, `step<i>/lr` and `momentum` of the schedule, and `about`, a JSON text.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triport.core import atomic
from triport.core.errors import UserError, room_for
from triport.core.spec import MoCo
from triport.core.spec import recipe as recipes
from triport.core.version import VERSION
from triport.parity_tests.tool import trial
from triport.parity_tests.tool.trial import Trial


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = trial.parser("batches", "Write the very batches of a recipe's first steps.")
    found.add_argument("data", metavar="DATA", help="images, as for --data of a run; `-` takes the recipe's own")
    found.add_argument("--recipe", required=True, metavar="RECIPE", help="a recipe")
    found.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe's fields")
    found.add_argument("--steps", type=trial.positive_number, default=1, metavar="N", help="(1)")
    found.add_argument("--batch", type=trial.positive_number, metavar="N", help="images of a step (the recipe's)")
    found.add_argument("--epoch", type=float, default=0.0, metavar="E", help="read the schedule from this epoch on (0)")
    found.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="the batches, .npz")
    return found


def main(argv: Sequence[str]) -> int:
    """Write the file and return the exit code."""
    options = parser().parse_intermixed_args(list(argv))
    if options.out.suffix != ".npz":
        raise UserError(f"-o {options.out}: the file's name must end in .npz.")
    trial.check_out(options.out, zipfile.is_zipfile, "an .npz file")
    recipe = recipes.load(options.recipe, options.overrides)
    what = trial.assemble(
        recipe,
        steps=options.steps,
        batch=options.batch or recipe.batch,
        data=None if options.data == "-" else options.data,
        epoch=options.epoch,
    )
    arrays = collected(what)
    with room_for(options.out), atomic.replaced(options.out) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    names = sorted({name.partition("/")[2] for name in arrays if "/" in name})
    print(f"{options.out}: {what.steps} x {what.batch} images ({what.images}); of each step {', '.join(names)}")
    return 0


def collected(what: Trial) -> dict[str, NDArray]:
    """Every step's inputs and values by name."""
    arrays: dict[str, NDArray] = {}
    for i in range(what.steps):
        inputs = what.inputs(i)
        if isinstance(what.recipe.model.objective, MoCo):
            inputs.pop("images")  # it is view1
        arrays |= {f"step{i}/{name}": array for name, array in inputs.items()}
        values = what.values[i]
        arrays |= {f"step{i}/{name}": np.array(value) for name, value in values._asdict().items() if value is not None}
    about = {"recipe": what.recipe.name, "seed": what.recipe.seed, "data": what.images, "triport": VERSION}
    return {"about": np.array(json.dumps(about)), **arrays}
