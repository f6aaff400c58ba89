"""The entry points of all backends: a command line in, an exit code out.

`backends/<X>/pretrain.py` calls `pretrain(argv, backend=Backend("X", distributed.start, learner.make))`, and so on.
Exit codes: 0 done, or saved for a scheduler that takes the machine away (SIGUSR1; SIGTERM in a Slurm job); 1 a fault
of the program, 2 a fault that the user can correct; stopped by Ctrl-C 130, by SIGTERM 143, by the end of the terminal
129.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from triport.core import cluster
from triport.core.errors import UserError
from triport.core.options import parse
from triport.core.record import export, report
from triport.core.record.console import tolerate_any_text
from triport.core.run import initial
from triport.core.run.loop import Training
from triport.core.run.measure import measure
from triport.core.run.session import Backend, Session
from triport.core.run.setup import Setup, TrainOptions, set_up
from triport.core.signals import Interrupted, preempts

__all__ = ["Backend", "evaluate", "finetune", "linear", "pretrain"]


def pretrain(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport pretrain` and return its exit code."""
    return guarded(argv, lambda session, words: train(session, parse("pretrain", words), backend))


def linear(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport linear` and return its exit code."""
    return guarded(argv, lambda session, words: train(session, parse("linear", words), backend))


def finetune(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport finetune` and return its exit code."""
    return guarded(argv, lambda session, words: train(session, parse("finetune", words), backend))


def evaluate(argv: Sequence[str] | None = None, *, backend: Backend) -> int:
    """Run `triport evaluate` and return its exit code."""
    return guarded(argv, lambda session, words: measure(session, parse("evaluate", words), backend))


# ---------------------------------------------------------------- training
def train(session: Session, options: TrainOptions, backend: Backend) -> None:
    """Pretrain, probe or fine-tune, as the options say."""
    setup = set_up(session, options, backend)
    training = Training(setup)
    where = f"to resume: the same command with --resume {setup.folder}"
    try:
        ending = training.run()
        if ending == "finished":
            _export(setup)
        else:
            step = f"step {setup.state.step} of {training.total}"
            setup.journal.say(f"stopped at {step} by --stop-after-steps; {where}, without --stop-after-steps")
    except Interrupted as error:
        if preempts(error.number):
            where = f"preempted: {where}{cluster.requeue()}"
        raise Interrupted(error.number, f"stopped at step {setup.state.step} of {training.total}; {where}") from None
    finally:
        _draw(setup)  # also of a run that a NaN has stopped: that is when one looks at the curves
    setup.processes.stop()


def _export(setup: Setup) -> None:
    """Leave the encoder for others, or show that a probe did not touch it."""
    recipe, learner = setup.recipe, setup.learner
    writes = setup.processes.rank == 0
    if recipe.task == "linear" and setup.frozen and writes:
        initial.check_frozen(recipe, setup.frozen, learner.arrays())
        setup.journal.say("the frozen encoder is bit-equal to the one the probe began with")
    elif recipe.task == "pretrain" and (writes or getattr(learner, "divided", False)):
        model, state = learner.arrays(), learner.optimizer_arrays()
        if writes:
            path, arrays = setup.folder / "encoder.safetensors", export.averaged(model, state)
            export.write_encoder(path, recipe, arrays, setup.about)
            setup.journal.say(f"the encoder is in {path}")
    setup.processes.barrier("end of run")


def _draw(setup: Setup) -> None:
    """Draw the run's curves; the run does not fail when this does."""
    if setup.processes.rank == 0:
        try:
            text = f"the curves are in {report.write(setup.folder)}"
        except Exception as error:  # whatever it is: the run is done, and its files are written
            text = f"no curves: {error}"
        with contextlib.suppress(UserError):  # the log may be on a full disk, which is being reported
            setup.journal.say(text)


# ---------------------------------------------------------------- exit codes
def guarded(argv: Sequence[str] | None, work: Callable[[Session, list[str]], None]) -> int:
    """Do `work` and turn whatever happens into one line and an exit code; all processes of a failed job end."""
    words = list(sys.argv[1:] if argv is None else argv)
    session = Session(traceback="--traceback" in words)
    tolerate_any_text()
    code, stopped = 0, False
    try:
        work(session, words)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except Interrupted as error:
        code, stopped = error.code, True
        if session.rank == 0:
            session.complain(str(error))
    except KeyboardInterrupt:
        code = 130
        session.complain("stopped at once; what was saved last is intact.")
    except UserError as error:
        code = 2
        if session.traceback:
            traceback.print_exc()
        session.complain(f"error: {error}")
    except BaseException as error:
        code = 1
        session.complain(f"error: {_first_line(error)}; {session.write_traceback()}.")
    finally:
        session.close()
    if (code or stopped) and session.world > 1:
        # Other ranks may wait for this one inside a collective; an orderly end could wait for them in turn.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
