"""How a run goes on: which checkpoint, whether recipe and data are still those, what has changed besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from triport.core import reading
from triport.core.data.batches import order
from triport.core.data.datasets import Dataset
from triport.core.errors import UserError
from triport.core.options import TrainOptions
from triport.core.record import checkpoint, journal
from triport.core.run.images import open_splits
from triport.core.run.lengthen import check_record, shorter
from triport.core.selection import no_choice
from triport.core.spec import Recipe, schema
from triport.core.spec import recipe as recipes

RUNS = Path("runs")
FREE = ("title", "source", "reported", "monitor")  # may differ between a run and its resumption


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, and its state."""

    checkpoint: Path
    state: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        parent = self.checkpoint.parent
        return parent.parent if parent.name == "checkpoints" else parent


def find(options: TrainOptions) -> Resumed | None:
    """Return the checkpoint that --resume means, or None for a new run."""
    if options.resume is None:
        return None
    if options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite begins a new one: give one of them.")
    where = options.resume or options.out
    if not where:
        if options.recipe is None:
            raise UserError("name the run to resume: --resume DIR.")
        name = recipes.load(options.recipe, options.overrides).name
        newest = journal.newest_folder(name, RUNS)
        if newest is None:
            raise UserError(f"no run of {name} in {RUNS}/ to resume. Name it: --resume DIR.")
        where = str(newest)
    path = checkpoint.latest(adopted(options, Path(where)))
    found = Resumed(path, checkpoint.read_state(path))
    check_state(found.state, path)
    if options.out and Path(options.out).resolve() != found.folder.resolve():
        raise UserError(
            f"a resumed run goes on in its own folder {found.folder}; leave out --out, or copy the folder first."
        )
    return found


def adopted(options: TrainOptions, path: Path) -> Path:
    """Return the run folder that goes on from `path`, a checkpoint of another project; `path` itself if it is a run."""
    of_a_run = checkpoint.exists(path) or checkpoint.listed(path) or (path / "checkpoints").is_dir()
    if not path.exists() or of_a_run or (path / "recipe.toml").is_file():
        if not options.weights:
            no_choice(options.selection, path)
        return path
    from triport.weights.commands import to_run  # only here: most runs need no file formats

    if options.recipe is not None:
        recipe = recipes.load(options.recipe, options.overrides)
    else:
        found = to_run.recipe_of(path, options.selection)
        recipe = recipes.parse(recipes.to_toml(found), Path(found.name), options.overrides)
    name = f"{recipe.name.replace('/', '-')}-from-{path.name.partition('.')[0]}"
    images = len(open_splits(options.data, recipe, **options.reading).train)
    return to_run.adopt(path, recipe, images, Path(options.out) if options.out else RUNS / name, options.selection)


FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "recipe": (str,),
    "backend": (str,),
    "processes": (int,),
    "micro_batches": (int,),
    "precision": (str,),
    "images": (int,),
    "step": (int,),
    "closed": (int,),
    "rollbacks": (int,),
    "losses": (float, int),
    "best": (float, int, type(None)),
    "metrics": (dict,),
}


def check_state(known: Mapping[str, Any], where: Path) -> None:
    """Raise UserError unless a state has every field that going on needs, of its kind."""
    for name, kinds in FIELDS.items():
        value = known.get(name)
        if name not in known or not isinstance(value, kinds) or isinstance(value, bool):
            fault = "lacks" if name not in known else "has a wrong"
            raise UserError(
                f"{where / 'state.json'} {fault} '{name}': another version or program wrote it, so it cannot be "
                "resumed. Its encoder may still be used: --weights."
            )
    classes = known.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where / 'state.json'} has wrong 'classes': another version or program wrote it.")
    reading.restored(known.get("reading", {}), where / "state.json")
    check_record(known, where)


def check_place(known: Mapping[str, Any], recipe: Recipe, per_epoch: int, where: Path) -> None:
    """Raise UserError unless a state's step and epochs can be those of a run of this recipe and data."""
    step, closed, total = known["step"], known["closed"], recipe.schedule.epochs * per_epoch
    if not (0 <= step <= total and closed in (step // per_epoch, step // per_epoch - 1) and closed >= 0):
        raise UserError(
            f"{where / 'state.json'} says step {step} after {closed} epochs, which a run of {total} steps, {per_epoch} "
            "to an epoch, cannot have: it was changed. Go on from another checkpoint, or begin a new run."
        )


def load(where: Path) -> tuple[checkpoint.Arrays, Mapping[str, Any]]:
    """Return the arrays and the state of a run's checkpoint; UserError unless it has all that a run needs."""
    groups, known = checkpoint.load(where)
    check_state(known, where)
    for group in ("model", "optimizer"):
        if group not in groups:
            raise UserError(f"{where} lacks {group}.safetensors: it is not a checkpoint of a run.")
    return groups, known


def check_recipe(recipe: Recipe, known: Mapping[str, Any]) -> None:
    """Raise UserError naming the first field in which `recipe` differs from the one a checkpoint was made with.

    A run may become longer, not shorter; see core/run/lengthen.py.
    """
    before = recipes.parse(known["recipe"], Path(known["name"]))
    found = difference(schema.plain(before), schema.plain(shorter(recipe, known)))
    if found:
        where, old, new = found
        longer = "; a run can be lengthened but not shortened" if where == "schedule.epochs" else ""
        raise UserError(
            f"the checkpoint was made with another recipe: {where} was {old!r} and is now {new!r}{longer}. "
            "Resume with the same recipe and overrides (or with none: the run keeps its own), "
            "or begin a new run with another --out."
        )


def difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted field in which two plain recipes differ with both values; FREE fields apart."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: (old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {str(i): pair for i, pair in enumerate(zip(old, new, strict=True))}
    else:
        return None if old == new else (where, old, new)
    for key, (a, b) in pairs.items():
        if where or key not in FREE:
            found = difference(a, b, f"{where}.{key}" if where else key)
            if found:
                return found
    return None


def check_images(recipe: Recipe, known: Mapping[str, Any], train: Dataset, data: str, data_changed: bool) -> str:
    """Raise UserError where a run would go on with other images than those with the fingerprint in its state.

    data: the fingerprint of the images at hand. With data_changed that is only remarked on, and the remark returned,
    as long as an epoch has as many steps as before.
    """
    before = known["images"]
    if before == len(train) and known.get("data", data) == data:  # earlier versions kept no fingerprint
        return ""
    changed = f"the run was trained on {before} images, {train.name} has {len(train)}"
    if before == len(train):
        changed = f"{train.name} has other images than the run was trained on (names, sizes or classes differ)"
    if not data_changed:
        raise UserError(f"{changed}. Resume with the same --data, or say --data-changed to go on with these.")
    old, new = (len(order(recipe.seed, 0, n, recipe.data.repeats)) // recipe.batch for n in (before, len(train)))
    if old != new:
        raise UserError(
            f"{changed}: an epoch would have {new} steps and not {old}, so the run cannot go on from where it was. "
            "Begin a new run with another --out."
        )
    return f"{changed}; going on, as --data-changed says"


def changes(known: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return what differs in how the run is made, as the end of a sentence; empty where nothing does."""
    changed = [
        f"{key.replace('_', '-')} {known[key]} -> {about[key]}"
        for key in ("backend", "processes", "micro_batches", "precision")
        if known[key] != about[key]
    ]
    return f" with {', '.join(changed)}: the numbers may differ from here on as roundings do" if changed else ""


def lock(resumed: Resumed) -> tuple[Resumed, TextIO]:
    """Lock the run that goes on and finish what a kill left; return it as it then is, and its locked train.log.

    UserError where another process works in the folder, or has done so since the checkpoint was looked at.
    """
    log = journal.locked_log(resumed.folder)
    checkpoint.tidy(resumed.folder)
    path = resumed.checkpoint
    if path.name.endswith((".new", ".old")):
        path = path.with_name(path.name[:-4])
    if not checkpoint.exists(path) or checkpoint.read_state(path) != resumed.state:
        log.close()
        raise UserError(f"the run in {resumed.folder} was changed by another process just now. Start again.")
    return Resumed(path, resumed.state), log
