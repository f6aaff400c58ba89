"""A run from its command line to its exit code: shared by the entry points of all backends.

`backends/<X>/pretrain.py` and its sisters call `pretrain(argv, backend=Backend("X", distributed.start, learner.make))`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import checkpoint, environment, export, journal, prepare
from core import recipe as recipes
from core.assembly import examination, opening, train_loader
from core.errors import UserError
from core.guard import Backend, Session, guarded
from core.journal import Journal
from core.learner import Learner, Processes, share
from core.loop import Limits, State, Training, state_from
from core.spec import Recipe
from core.stopping import Interrupted

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
    from core.measure import measure  # which uses this file

    return guarded("evaluate", argv, backend, measure)


# ---------------------------------------------------------------- training
def train(session: Session, backend: Backend) -> None:
    """Pretrain, probe or fine-tune, as the options say."""
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
    started, origin = prepare.first_arrays(recipe, options) if resumed is None else _restarted(recipe, options)
    folder = session.folder = _folder(options, recipe, resumed, processes)
    about = {
        "name": recipe.name,
        "recipe": recipes.to_toml(recipe),
        "backend": backend.name,
        "processes": processes.world,
        "micro_batches": micro,
        "precision": options.precision,
        "images": len(data.train),
    }
    arrays, optimizer, state = started, None, State()
    if resumed is not None:
        groups, known = checkpoint.load(resumed)
        _check_images(known, len(data.train), data.train.name)
        arrays, optimizer, state = groups["model"], groups["optimizer"], state_from(known)
    learner = backend.make(
        recipe,
        arrays,
        processes=processes,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
    )
    if optimizer is not None:
        learner.load(arrays, optimizer)
    source = train_loader(recipe, data.train, options, processes, micro, session.warn)
    session.closing.append(source.close)
    log = session.journal = Journal(
        folder,
        writes=processes.rank == 0,
        total=recipe.schedule.epochs * source.steps_per_epoch,
        quiet=options.quiet,
    )
    session.closing.append(log.close)
    if processes.rank == 0 and resumed is None:
        (folder / "recipe.toml").write_text(recipes.to_toml(recipe), encoding="utf-8")
    if processes.rank == 0:
        environment.record(
            folder / "environment.json", environment.describe(backend=backend.name, processes=processes.world)
        )
    for line in [*opening(recipe, data, processes, micro, options), *origin, fitted, data.remark]:
        if line:
            log.say(line)
    if known is not None:
        log.say(f"resumed from {resumed} at step {state.step}{_other_split(known, about)}")
    training = Training(
        recipe=recipe,
        learner=learner,
        source=source,
        journal=log,
        processes=processes,
        examine=examination(session, recipe, data, learner, processes, micro),
        limits=_limits(options),
        state=state,
        about=about,
    )
    try:
        ending = training.run()
    except Interrupted as error:
        raise Interrupted(error.number, f"stopped at {_where(training)}") from None
    if ending == "stopped":
        log.say(f"stopped as asked at {_where(training)}")
    else:
        _finish(session, recipe, started, learner, processes)
    processes.stop()


def _where(training: Training) -> str:
    where = f"step {training.state.step} of {training.total}"
    return f"{where}; go on with the same command and --resume {training.journal.folder}"


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
    return checkpoint.latest(Path(where))


def _folder(options: Namespace, recipe: Recipe, resumed: Path | None, processes: Processes) -> Path:
    """The run folder; rank 0 makes it and tells the others."""
    if resumed is not None:
        folder = resumed.parent.parent if resumed.parent.name == "checkpoints" else resumed.parent
        if options.out and Path(options.out).resolve() != folder.resolve():
            raise UserError(
                f"a resumed run goes on in its own folder {folder}; leave out --out, or copy the folder first."
            )
        return folder
    answer = ""
    if processes.rank == 0:
        try:
            folder = Path(options.out) if options.out else journal.next_folder(recipe.name, RUNS)
            aside = journal.claim(folder, options.overwrite)
            if aside is not None and not options.quiet:
                print(f"the run that was in {folder} is now in {aside}", flush=True)
            answer = f"folder {folder}"
        except UserError as error:
            answer = f"error {error}"
    kind, _, text = share(processes, answer).partition(" ")
    if kind == "error":
        raise UserError(text)
    return Path(text)


def _restarted(recipe: Recipe, options: Namespace) -> tuple[prepare.Arrays, list[str]]:
    """The arrays that a resumed run began with: only a linear probe asks for them again, to check them at its end."""
    if recipe.task == "linear" and options.weights:
        return prepare.first_arrays(recipe, options)
    return {}, []


def _check_images(known: dict[str, Any], images: int, name: str) -> None:
    if known["images"] != images:
        raise UserError(
            f"the run was trained on {known['images']} images, {name} has {images}. Resume with the same --data."
        )


def _other_split(known: dict[str, Any], about: dict[str, Any]) -> str:
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


def _finish(session: Session, recipe: Recipe, started: prepare.Arrays, learner: Learner, processes: Processes) -> None:
    """Leave the encoder for others, or show that a probe did not touch it."""
    assert session.folder is not None and session.journal is not None
    if processes.rank == 0:
        arrays = learner.arrays()
        if recipe.task == "linear":
            if started:
                prepare.check_frozen(recipe, started, arrays)
                session.journal.say("the frozen encoder is bit-equal to the one the probe began with")
        elif recipe.task == "pretrain":
            export.write_encoder(session.folder / "encoder.safetensors", recipe, arrays)
            session.journal.say(f"the encoder is in {session.folder / 'encoder.safetensors'}")
    processes.barrier("end of run")
