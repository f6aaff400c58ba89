"""Options, recipe, data and weights become one `Setup`, from which the training loop starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from triport.core import machine, reading
from triport.core.backend.base_learner import OWNERS
from triport.core.backend.build import lowered
from triport.core.backend.learner import Learner, Processes, Source, share
from triport.core.data.fingerprint import fingerprint
from triport.core.data.loader_checks import check_colours
from triport.core.errors import UserError
from triport.core.evaluate.online_probe import OnlineProbe
from triport.core.model.inventory import inventory
from triport.core.options import Limits, TrainOptions
from triport.core.record import environment, journal
from triport.core.record.console import show
from triport.core.record.journal import Journal
from triport.core.run import lengthen, resume
from triport.core.run.fitting import check_length, fit_classes, in_precision, split_batch
from triport.core.run.images import Splits, in_classes, open_splits, train_loader
from triport.core.run.initial import Arrays, check_equal, initial_arrays, licence
from triport.core.run.opening import opening
from triport.core.run.reading import how_read
from triport.core.run.resume import Resumed
from triport.core.run.session import Backend, Session
from triport.core.run.watching import online_probe, watching
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes


@dataclass
class State:
    """Where a run is. With the arrays this is all that going on needs."""

    step: int = 0  # optimiser steps done
    closed: int = 0  # epochs that were evaluated and saved
    rollbacks: int = 0
    losses: float = 0.0  # sum over the steps of the running epoch
    best: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of the last closed epoch


def state_from(known: Mapping[str, Any]) -> State:
    """Return the State that a checkpoint's state.json tells of."""
    return State(**{name: known[name] for name in State.__dataclass_fields__})


@dataclass(kw_only=True)
class Setup:
    """A run that is ready to begin or to go on."""

    recipe: Recipe
    processes: Processes
    learner: Learner
    source: Source
    journal: Journal
    evaluate: Callable[[int], dict[str, float]]  # epochs done -> scores; all ranks call it; {} where none is due
    prepare: Callable[[], None] = lambda: None  # before the first step of a new run; all ranks call it
    probe: OnlineProbe | None = None
    limits: Limits = field(default_factory=Limits)
    state: State = field(default_factory=State)
    about: Mapping[str, Any] = field(default_factory=dict)  # goes into every checkpoint: recipe, backend, classes ...
    frozen: Mapping[str, Any] = field(default_factory=dict)  # a probe's first arrays, which it must not change
    on_checkpoint: Callable[[Path], None] | None = None  # called with every checkpoint that stays, on rank 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.journal.folder


def set_up(session: Session, options: TrainOptions, backend: Backend) -> Setup:
    """Set a run up. Nothing is written before it was found possible."""
    machine.retain_freed_memory()
    resumed = resume.find(options)
    recipe = read_recipe(options, resumed)
    options, processes = in_precision(options, session.join(backend.start(options.device)))
    given = _inputs(options, recipe, processes, resumed)
    recipe, splits, micro = given.recipe, given.splits, given.micro
    arrays: Arrays = {}
    remarks = [splits.remark, *given.remarks]
    if resumed is None or (recipe.task == "linear" and options.weights):
        arrays, origin = initial_arrays(recipe, options.weights, options.from_scratch, options.selection)
        remarks += origin

    session.folder, resumed, train_log = _take_folder(options, recipe, processes, resumed)
    if train_log is not None:
        session.closing.append(train_log.close)
    probe = online_probe(recipe, splits, options.precision)
    learner, state, remark = _learner(options, recipe, processes, backend, arrays, resumed, probe)
    remarks.append(remark)
    if options.shard:
        remarks.append(f"weights, gradients and optimizer state are divided among {processes.world} processes")
    source = train_loader(
        session, options, recipe, splits.train, processes, micro, raw=getattr(learner, "takes_bytes", False)
    )
    if resumed is not None:
        resume.check_place(resumed.state, recipe, source.steps_per_epoch, resumed.checkpoint)
    total = recipe.schedule.epochs * source.steps_per_epoch
    log = Journal(session.folder, writes=processes.rank == 0, total=total, quiet=options.quiet, log=train_log)
    session.journal = log
    session.closing.append(log.close)
    about: dict[str, Any] = {
        **_about(recipe, options, backend, processes, micro),
        "images": len(splits.train),
        "data": given.fingerprint,
        "reading": reading.stored(given.how),
        "classes": list(splits.train.classes),
        **_licence(recipe, options, resumed),
    }
    log.describe(about["recipe"], _made_with(about, given.how))
    if resumed is not None:
        remarks += _goes_on(resumed, recipe, source.steps_per_epoch, about, processes.rank == 0)
    for line in filter(None, [*opening(recipe, splits, processes, micro, options.precision), *remarks]):
        log.say(line)
    evaluate, prepare = watching(session, options, recipe, splits, learner, processes, micro, probe)
    return Setup(
        recipe=recipe,
        processes=processes,
        learner=learner,
        source=source,
        journal=log,
        evaluate=evaluate,
        prepare=prepare,
        probe=probe,
        limits=options.limits,
        state=state,
        about=about,
        frozen=arrays if recipe.task == "linear" else {},  # else they would only take up memory
        on_checkpoint=backend.on_checkpoint,
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run works on: the recipe fitted to the images, the images, how they are read and how a batch is split."""

    recipe: Recipe
    splits: Splits
    how: reading.Reading
    fingerprint: str  # of the training images; of rank 0, on every rank
    micro: int  # micro-batches of a batch
    remarks: list[str]


def _inputs(options: TrainOptions, recipe: Recipe, processes: Processes, resumed: Resumed | None) -> Inputs:
    """Open the images and fit the recipe to them; UserError where the run could not use them, or go on with them."""
    how, remark = how_read(options, None if resumed is None else resumed.state)
    splits = open_splits(options.data, recipe, **how)
    known = share(processes, fingerprint(splits.train) if processes.rank == 0 else "")
    if resumed is not None and recipe.task != "pretrain":
        splits = in_classes(splits, resumed.state.get("classes", splits.train.classes))
    recipe, fitted = fit_classes(recipe, splits.train)
    micro = split_batch(recipe, processes.world, options.micro_batch, options.accumulate)
    check_length(recipe, splits.train)
    check_colours(recipe.train, splits.train.channels, splits.train.name)
    remarks = [fitted, remark]
    if resumed is not None:
        resume.check_recipe(recipe, resumed.state)
        remarks.append(resume.check_images(recipe, resumed.state, splits.train, known, options.data_changed))
    return Inputs(recipe=recipe, splits=splits, how=how, fingerprint=known, micro=micro, remarks=remarks)


def _about(recipe: Recipe, options: TrainOptions, backend: Backend, processes: Processes, micro: int) -> dict[str, Any]:
    """What every checkpoint says of how the run is made."""
    return {
        "name": recipe.name,
        "recipe": recipes.to_toml(recipe),
        "backend": backend.name,
        "processes": processes.world,
        "micro_batches": micro,
        "precision": options.precision + (" at level O2" if options.amp_o2 else ""),
    }


def _made_with(about: Mapping[str, Any], how: reading.Reading) -> dict[str, Any]:
    """What environment.json says of a start."""
    chosen = {name: about[name] for name in ("backend", "processes")}
    return environment.describe(**chosen, reading={**reading.DEFAULTS, **how})


def _licence(recipe: Recipe, options: TrainOptions, resumed: Resumed | None) -> dict[str, str]:
    """The notice of the weights that a pretraining began with, which its own carry on; {} where they were random."""
    if recipe.task != "pretrain" or (resumed is None and options.weights is None):
        return {}
    known = resumed.state.get("licence") if resumed is not None else licence(str(options.weights))
    return {"licence": known} if isinstance(known, str) else {}


# ---------------------------------------------------------------- recipe
def read_recipe(options: TrainOptions, resumed: Resumed | None) -> Recipe:
    """Return the recipe of the command line, or else of the run that goes on; it must be for the task."""
    if options.recipe is not None:
        recipe = recipes.load(options.recipe, options.overrides)
    elif resumed is not None:
        recipe = recipes.parse(resumed.state["recipe"], Path(resumed.state["name"]), options.overrides)
    else:
        raise UserError("name a recipe; `triport recipes` lists them.")
    if recipe.task != options.task:
        raise UserError(f"the recipe {recipe.name} is for the task '{recipe.task}': use `triport {recipe.task}`.")
    return recipe


# ---------------------------------------------------------------- parts
def _take_folder(
    options: TrainOptions, recipe: Recipe, processes: Processes, resumed: Resumed | None
) -> tuple[Path, Resumed | None, TextIO | None]:
    """The run folder, the checkpoint to go on from, and on rank 0, which makes and locks the folder, its train.log."""
    answer, log = "", None
    if processes.rank == 0:
        try:
            if resumed is not None:
                resumed, log = resume.lock(resumed)
                answer = f"from {resumed.checkpoint}"
            else:
                folder = Path(options.out) if options.out else journal.next_folder(recipe.name, resume.RUNS)
                log, aside = journal.claim(folder, options.overwrite)
                if aside is not None and not options.quiet:
                    show(f"the run that was in {folder} is now in {aside}")
                answer = f"in {folder}"
        except UserError as error:
            answer = f"error {error}"
    kind, _, text = share(processes, answer).partition(" ")
    if kind == "error":
        raise UserError(text)
    if resumed is not None:
        resumed = Resumed(Path(text), resumed.state)
        return resumed.folder, resumed, log
    return Path(text), None, log


def _goes_on(resumed: Resumed, recipe: Recipe, per_epoch: int, about: dict[str, Any], writes: bool) -> list[str]:
    """Lines about a resumed run; one that goes on for more epochs says so in its folder and states from here on."""
    step, changes = resumed.state["step"], resume.changes(resumed.state, about)
    lines = [f"resumed from {resumed.checkpoint} at step {step}{changes}"]
    change = lengthen.lengthened(recipe, resumed.state, per_epoch)
    if record := lengthen.recorded(resumed.state, change):
        about[lengthen.KEY] = record
    if change is not None:
        lines.append(lengthen.line(change, recipe))
        if writes:
            lines += lengthen.keep(resumed.folder, resumed.checkpoint, resumed.state, recipe, change)
    return lines


def _learner(
    options: TrainOptions,
    recipe: Recipe,
    processes: Processes,
    backend: Backend,
    arrays: Arrays,
    resumed: Resumed | None,
    probe: OnlineProbe | None,
) -> tuple[Learner, State, str]:
    """The learner as the run begins or goes on, and a line about digits that it leaves out; the probe goes on, too."""
    optimizer, state = None, State()
    if resumed is not None:
        groups, known = resume.load(resumed.checkpoint)
        arrays, optimizer, state = groups["model"], groups["optimizer"], state_from(known)
        if probe is not None and "probe" in groups:  # else it was switched on for the rest of the run
            probe.load(groups["probe"])
        processes.barrier("checkpoint read")  # before rank 0 may write another in its place
        if wrong := {p.name for p in inventory(recipe.model)} ^ set(arrays):
            raise UserError(f"{resumed.checkpoint} does not hold the arrays of its recipe: {min(wrong)} differs.")
    check_equal(arrays, processes)
    chosen = {"device": options.device, "precision": options.precision, "compile": options.compile}
    chosen |= {name: True for name in OWNERS if getattr(options, name)}
    learner = backend.make(recipe, arrays, processes=processes, **chosen)
    learner.gives_features = probe is not None
    if optimizer is not None:
        learner.load(arrays, optimizer)
    return learner, state, lowered(arrays, options.precision)
