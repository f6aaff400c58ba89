"""A run from its command line to its exit code: shared by the entry points of all backends.

`backends/<X>/pretrain.py` and its sisters call `pretrain(argv, backend=Backend("X", distributed.start, learner.make))`.
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triport.core.backend.learner import Learner, Processes, share
from triport.core.errors import UserError
from triport.core.record import checkpoint, environment, export, journal, report
from triport.core.record.journal import Journal
from triport.core.run import prepare
from triport.core.run.assembly import opening, scoring, train_loader
from triport.core.run.guard import Backend, Session, guarded
from triport.core.run.loop import Limits, State, Training, state_from
from triport.core.signals import Interrupted
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes

__all__ = ["Backend", "evaluate", "finetune", "linear", "pretrain"]

RUNS = Path("runs")


# ---------------------------------------------------------------- entry points
def pretrain(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport pretrain` and return its exit code."""
    return guarded("pretrain", argv, backend, train)


def linear(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport linear` and return its exit code."""
    return guarded("linear", argv, backend, train)


def finetune(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport finetune` and return its exit code."""
    return guarded("finetune", argv, backend, train)


def evaluate(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport evaluate` and return its exit code."""
    from triport.core.run.measure import measure  # which uses this file

    return guarded("evaluate", argv, backend, measure)


# ---------------------------------------------------------------- training
@dataclass(frozen=True)
class Plan:
    """A run that was found possible; nothing is written or built yet."""

    recipe: Recipe
    data: prepare.Data
    processes: Processes
    micro: int
    resumed: Path | None  # the checkpoint it goes on from
    known: dict[str, Any] | None  # and its state
    remarks: list[str]


def train(session: Session, backend: Backend) -> None:
    """Pretrain, probe or fine-tune, as the options say."""
    plan, arrays = _plan(session, backend)
    session.folder = _folder(session.options, plan)
    learner, state = _learner(session.options, plan, backend, arrays)
    if plan.recipe.task != "linear":
        arrays = {}  # as large as the model; only a probe is held against what it began with
    training = _training(session, plan, backend, learner, state)
    where = f"go on with the same command and --resume {session.folder}"
    try:
        ending = training.run()
    except Interrupted as error:
        raise Interrupted(error.number, f"stopped at step {training.state.step} of {training.total}; {where}") from None
    finally:
        _draw(training)  # also of a run that a NaN has stopped: that is when one looks at the curves
    if ending == "stopped":
        training.journal.say(f"stopped as asked at step {training.state.step} of {training.total}; {where}")
    else:
        _finish(training, arrays)
    plan.processes.stop()


def _plan(session: Session, backend: Backend) -> tuple[Plan, prepare.Arrays]:
    """Find out whether the run can be. Also returns the arrays it began with; of a resumed one, if need be."""
    options = session.options
    resumed = _resumed(options)
    known = checkpoint.read_state(resumed) if resumed is not None else None
    recipe = prepare.read_recipe(options, known)
    processes = backend.start(options.device)
    session.rank, session.world = processes.rank, processes.world
    data = prepare.open_data(options, recipe)
    recipe, fitted = prepare.fit_classes(recipe, data)
    micro = prepare.split_batch(recipe, options, processes.world)
    prepare.check_length(recipe, data)
    if known is not None:
        prepare.check_same(recipe, known)
        prepare.check_images(known, data)
    arrays: prepare.Arrays = {}
    remarks: list[str] = []
    if resumed is None or (recipe.task == "linear" and options.weights):
        arrays, remarks = prepare.first_arrays(recipe, options)
    return Plan(recipe, data, processes, micro, resumed, known, [*remarks, fitted, data.remark]), arrays


def _learner(options: Namespace, plan: Plan, backend: Backend, arrays: prepare.Arrays) -> tuple[Learner, State]:
    """The learner as the run begins or goes on."""
    optimizer, state = None, State()
    if plan.resumed is not None:
        groups, known = checkpoint.load(plan.resumed)
        arrays, optimizer, state = groups["model"], groups["optimizer"], state_from(known)
        plan.processes.barrier("checkpoint read")  # before rank 0 may write another in its place
    prepare.check_alike(arrays, plan.processes)
    chosen = {"device": options.device, "precision": options.precision, "compile": options.compile}
    learner = backend.make(plan.recipe, arrays, processes=plan.processes, **chosen)
    if optimizer is not None:
        learner.load(arrays, optimizer)
    return learner, state


def _training(session: Session, plan: Plan, backend: Backend, learner: Learner, state: State) -> Training:
    """Put the loop together, and open the journal with what is worth knowing."""
    options, recipe, processes = session.options, plan.recipe, plan.processes
    assert session.folder is not None
    source = train_loader(recipe, plan.data.train, options, processes, plan.micro, session.warn)
    session.closing.append(source.close)
    total = recipe.schedule.epochs * source.steps_per_epoch
    log = Journal(session.folder, writes=processes.rank == 0, total=total, quiet=options.quiet)
    session.journal = log
    session.closing.append(log.close)
    about = {
        "name": recipe.name,
        "recipe": recipes.to_toml(recipe),
        "backend": backend.name,
        "processes": processes.world,
        "micro_batches": plan.micro,
        "precision": options.precision,
        "images": len(plan.data.train),
    }
    log.describe(recipes.to_toml(recipe), environment.describe(backend=backend.name, processes=processes.world))
    lines = [*opening(recipe, plan.data, processes, plan.micro, options), *plan.remarks]
    if plan.known is not None:
        lines.append(f"resumed from {plan.resumed} at step {state.step}{_changed(plan.known, about)}")
    for line in lines:
        if line:
            log.say(line)
    examine = scoring(session, recipe, plan.data, learner, processes, plan.micro)
    return Training(recipe, learner, source, log, processes, examine, _limits(options), state, about, backend.kept)


def _resumed(options: Namespace) -> Path | None:
    """The checkpoint to go on from, or None for a new run."""
    if options.resume is None:
        return None
    if options.overwrite:
        raise UserError("--resume goes on with a run, --overwrite begins one anew: give one of them.")
    where = options.resume or options.out
    if not where:
        if options.recipe is None:
            raise UserError("name the run to resume: --resume DIR.")
        name = recipes.load(options.recipe, options.overrides).name
        found = journal.newest_folder(name, RUNS)
        if found is None:
            raise UserError(f"no run of {name} in {RUNS}/ to resume. Name it: --resume DIR.")
        where = str(found)
    return checkpoint.latest(prepare.adopted(options, Path(where)))


def _folder(options: Namespace, plan: Plan) -> Path:
    """The run folder; rank 0 makes it and tells the others."""
    if plan.resumed is not None:
        parent = plan.resumed.parent
        folder = parent.parent if parent.name == "checkpoints" else parent
        if options.out and Path(options.out).resolve() != folder.resolve():
            raise UserError(
                f"a resumed run goes on in its own folder {folder}; leave out --out, or copy the folder first."
            )
        return folder
    answer = ""
    if plan.processes.rank == 0:
        try:
            folder = Path(options.out) if options.out else journal.next_folder(plan.recipe.name, RUNS)
            aside = journal.claim(folder, options.overwrite)
            if aside is not None and not options.quiet:
                print(f"the run that was in {folder} is now in {aside}", flush=True)
            answer = f"folder {folder}"
        except UserError as error:
            answer = f"error {error}"
    kind, _, text = share(plan.processes, answer).partition(" ")
    if kind == "error":
        raise UserError(text)
    return Path(text)


def _changed(known: dict[str, Any], about: dict[str, Any]) -> str:
    changed = [
        f"{key.replace('_', '-')} {known[key]} -> {about[key]}"
        for key in ("backend", "processes", "micro_batches", "precision")
        if known[key] != about[key]
    ]
    return f" with {', '.join(changed)}: the numbers may differ from here on as roundings do" if changed else ""


def _limits(options: Namespace) -> Limits:
    return Limits(
        save_steps=options.save_steps,
        save_minutes=options.save_minutes,
        stop_after=options.stop_after_steps,
        log_steps=options.log_steps,
        on_nonfinite=options.on_nonfinite,
        rollbacks=options.max_rollbacks,
    )


def _draw(training: Training) -> None:
    """Draw the run's curves; that this fails is no reason for the run to fail."""
    if training.processes.rank == 0:
        try:
            said = f"the curves are in {report.write(training.journal.folder)}"
        except (UserError, OSError) as error:
            said = f"no curves: {error}"
        with contextlib.suppress(UserError):  # the log may be on a full disk, which is being reported
            training.journal.say(said)


def _finish(training: Training, began: prepare.Arrays) -> None:
    """Leave the encoder for others, or show that a probe did not touch it."""
    recipe, log = training.recipe, training.journal
    if training.processes.rank == 0:
        if recipe.task == "linear" and began:
            prepare.check_frozen(recipe, began, training.learner.arrays())
            log.say("the frozen encoder is bit-equal to the one the probe began with")
        elif recipe.task == "pretrain":
            path = log.folder / "encoder.safetensors"
            learner = training.learner
            export.write_encoder(path, recipe, export.averaged(learner.arrays(), learner.optimizer_arrays()))
            log.say(f"the encoder is in {path}")
    training.processes.barrier("end of run")
