"""A checkpoint of the original code, of mmengine, PASSL or LiBai as a run folder here, from which --resume goes on.

Weights, momentum encoder, the optimiser's state, epoch and step go over; the schedule follows from the recipe and the
step. A gradient scaler is left behind: bfloat16 and float32, which are used here, need none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from triport.core.errors import UserError
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.record import checkpoint, journal
from triport.core.selection import EVERYTHING, Selection
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.core.version import VERSION
from triport.weights.commands import agreement
from triport.weights.commands.load import load_model
from triport.weights.model import facts, optimizer_state, provenance
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.reading import AS_IT_SAYS, Reading
from triport.weights.model.report import Report
from triport.weights.writing import whole_file

ORIGIN = "origin.json"  # in the run folder: what it was made of


@dataclass(frozen=True)
class Continued:
    """All that a run needs to go on: groups of arrays and a state, as core.record.checkpoint keeps them."""

    recipe: Recipe
    arrays: checkpoint.Arrays
    state: checkpoint.State
    report: Report


def make_run(
    source: str | Path,
    folder: str | Path,
    how: Reading = AS_IT_SAYS,
    *,
    images: int | None = None,
    force: bool = False,
) -> Report:
    """Write the run folder that goes on from a checkpoint of another project, and say what became of every array.

    how: what the file leaves open; its recipe is a name, a file or a Recipe, and where it is None, the file's own or
    the only shipped one of its architecture; images: of the training data, ImageNet's where that agrees with the
    file's epochs and steps; force: move a run that is in the folder aside. UserError in one line where anything that
    the run needs is not in the file, or where the file's optimiser had other settings than the recipe.
    """
    source, folder = Path(source), Path(folder)
    made = continued(source, how, images=images)
    log, aside = journal.claim(folder, force)
    with log:  # locked until the folder is whole
        _write(folder, made)
    if aside is not None:
        made.report.notes.append(f"the run that was in {folder} is now in {aside}")
    made.report.target, made.report.to_layout = str(folder), "triport-run"
    made.report.notes.append(f"go on with: triport pretrain --resume {folder} --data …")
    return made.report


def _write(folder: Path, made: Continued) -> None:
    """The checkpoint, the recipe, and what they were made of."""
    checkpoint.save(folder / "checkpoints" / "last", made.arrays, made.state)
    for name, text in (
        ("recipe.toml", recipes.to_toml(made.recipe)),
        (ORIGIN, json.dumps(made.report.provenance, indent=1)),
    ):
        with whole_file(folder / name, force=True) as file:
            file.write(text.encode())


def recipe_of(source: Path, selection: Selection = EVERYTHING) -> Recipe:
    """The recipe that a checkpoint notes, or the only shipped one that made such a model; UserError without one."""
    return _recipe(open_model(source, selection=selection), None, source)


def adopt(source: Path, recipe: Recipe, images: int, folder: Path, selection: Selection = EVERYTHING) -> Path:
    """Make `folder` the run that goes on from a checkpoint of another project, and return it.

    A run that was made of this very file goes on where it is; any other run there is a UserError. Every process of a
    job may call this: each makes a folder of its own, and the first to be ready gives its to all.
    """
    if journal.holds_run(folder):
        known = facts.read_json(folder / ORIGIN).get("source_sha256")
        if known != provenance.digest(open_model(source, selection=selection).file.path):
            raise UserError(f"{folder} already holds a run that was not made of {source}. Name another --out.")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        report = make_run(source, own / "run", Reading(recipe=recipe, selection=selection), images=images)
        with suppress(OSError):  # another process was first
            (own / "run").replace(folder)
            print(report.summary(), flush=True)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if not journal.holds_run(folder):
        raise UserError(f"cannot make the run folder {folder} of {source}. Name another --out.")
    return folder


def continued(source: str | Path, how: Reading = AS_IT_SAYS, *, images: int | None = None) -> Continued:
    """Read a checkpoint of another project as the state of a run here; see `make_run`."""
    source = Path(source)
    opened = open_model(source, replace(how, recipe=None, only="all"))
    chosen = _recipe(opened, how.recipe, source)
    layout = opened.candidate.layout.name
    arrays, report = load_model(source, chosen.model, from_=layout, selection=how.selection)
    agreement.check_arrays(report, source)
    model = replace(opened.model, heads=opened.model.heads or report.heads)
    model.decoder_heads = model.decoder_heads or report.decoder_heads
    noted = Report(source=str(source))
    trained = groups(inventory(chosen.model), chosen.optimizer)
    found = optimizer_state.read(replace(opened, model=model), noted, trained)
    if found is None:
        why = dict(noted.dropped).get("optimizer", "it is not there")
        raise UserError(f"{source} has no optimiser's state to go on with ({why}); its weights alone: triport convert")
    agreement.check_options(found, chosen, source)
    agreement.check_decays(found, trained, chosen, source)
    step, closed, images = agreement.place(opened, found, chosen, images, source)
    state = agreement.optimizer_arrays(found, chosen, step, source)
    report.notes += agreement.notes(found, chosen, step, closed, images)
    report.notes += agreement.rate(opened, found, chosen, step, images)
    report.provenance = {
        "version": VERSION,
        "source": source.absolute().name,
        "source_sha256": provenance.digest(opened.file.path),
        "from_layout": opened.candidate.layout.name,
        "recipe": chosen.name,
        "epoch": closed,
        "step": step,
        "licence": provenance.notice(opened.candidate.layout, opened.facts, opened.file.path),
    }
    about = {
        "name": chosen.name, "recipe": recipes.to_toml(chosen), "backend": opened.file.form, "processes": 1,
        "micro_batches": 1, "precision": "float32", "images": images, "epoch": closed,
        "step": step, "closed": closed, "rollbacks": 0, "losses": 0.0, "best": None, "metrics": {},
    }  # fmt: skip
    return Continued(chosen, {"model": arrays, "optimizer": state}, about, report)


# ---------------------------------------------------------------- recipe
def _recipe(opened: Opened, asked: str | Recipe | None, source: Path) -> Recipe:
    """The recipe that is asked for, that the file notes, or the only shipped one that made such a model."""
    if asked is not None:
        return recipes.load(asked) if isinstance(asked, str) else asked
    if opened.facts.recipe in recipes.names():
        return recipes.load(str(opened.facts.recipe))
    found = [recipe for recipe in map(recipes.load, recipes.names()) if _fits(opened, recipe)]
    epochs = _argument(opened, "epochs")
    fitting = [recipe for recipe in found if recipe.schedule.epochs == epochs] or found
    if len(fitting) == 1:
        opened.report.notes.append(f"recipe {fitting[0].name}")
        return fitting[0]
    names = ", ".join(recipe.name for recipe in fitting) or "none that is shipped made such a model"
    raise UserError(f"{source} does not say which recipe it was trained with ({names}): name it with --recipe")


def _fits(opened: Opened, recipe: Recipe) -> bool:
    """Whether a recipe trains models of these names and shapes, with these heads where the file tells them."""
    if recipe.task != "pretrain" or recipe.model.objective.kind != opened.model.architecture.method:
        return False
    heads = getattr(recipe.model.encoder, "heads", None)
    if opened.facts.heads and heads and opened.facts.heads != heads:
        return False
    shapes = {name: piece.shape for name, piece in opened.model.pieces.items()}
    return all(shapes.get(p.name) == p.shape for p in inventory(recipe.model))


def _argument(opened: Opened, name: str) -> object:
    tree = opened.file.tree
    arguments = tree.get("args") if isinstance(tree, Mapping) else None
    return arguments.get(name) if isinstance(arguments, Mapping) else None
