"""The training loop, once for all backends: epochs, schedule, journal, checkpoints, resume, what to do with a NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from triport.core.backend.learner import Pending, StepResult, settled, share
from triport.core.errors import UserError
from triport.core.evaluate.monitors import first_bad
from triport.core.model import schedule
from triport.core.record import checkpoint
from triport.core.record.console import duration, score
from triport.core.record.writer import Writer
from triport.core.run.setup import Setup, state_from
from triport.core.signals import Interrupted, Signals

if TYPE_CHECKING:
    from triport.core.data.loader import Batch

Ending = Literal["finished", "stopped"]
LINES = 100_000  # steps that a run records; some 30 MB
APART = 1_000_000  # epochs between the orders of a run before and after a rollback: more than any run has


class NonFinite(Exception):
    """A tensor that is not finite, by name, and the step that made it so."""

    def __init__(self, name: str, step: int) -> None:
        super().__init__(name)
        self.step = step


@dataclass(frozen=True)
class Taken:
    """A step that was taken; its result may still be on the device."""

    step: int
    values: schedule.Values
    result: StepResult | Pending
    waited: float  # seconds, for data
    labels: np.ndarray | None  # (n,) of this rank's images, for a probe


class Training:
    """A run and the straight line through it: `run()`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.recipe, self.learner, self.source = setup.recipe, setup.learner, setup.source
        self.journal, self.processes, self.limits = setup.journal, setup.processes, setup.limits
        self.state = setup.state
        self.late = getattr(setup.learner, "late", False)  # whether results come a step later
        self._divided = getattr(setup.learner, "divided", False)
        self._whole = getattr(setup.learner, "whole", nullcontext)
        self._signals = Signals()
        self._writer = Writer()
        self._taken: Taken | None = None  # the step whose result nobody has looked at yet
        self._flags: tuple[int, ...] = (0, 0)  # see _pause, of all ranks
        self._saved = 0.0  # when, on the monotonic clock
        self._ended = 0.0  # when the last step ended
        self._pace = 0.0  # seconds per step, recent mean

    @property
    def per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.source.steps_per_epoch

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.schedule.epochs * self.per_epoch

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.setup.folder / "checkpoints" / "last"

    def run(self) -> Ending:
        """Train from the state to the end; raises Interrupted after saving, UserError where nothing can be done."""
        with self._signals:
            try:
                self._begin()
            except NonFinite as bad:
                raise UserError(
                    f"{bad} is not finite before the first step. Check the weights the run begins with."
                ) from None
            while not self._enough() and not self._complete():
                try:
                    self._epoch()
                except NonFinite as bad:
                    self._recover(bad)
        self._writer.wait()
        self.processes.barrier("end of training")
        return "finished" if self._complete() else "stopped"

    def _complete(self) -> bool:
        return self.state.closed == self.recipe.schedule.epochs

    def _begin(self) -> None:
        state = self.state
        # At step 0 the untrained model's scores are made again, also by a run that was killed just after them.
        self.journal.begin(state.step, state.closed if state.step else -1)
        self._saved = time.monotonic()
        if state.step == 0:
            # Before any work: a folder that cannot hold a checkpoint is found out now, and a NaN has a way back.
            self._save()
            with self._signals.at_once(), self._whole():
                self.setup.prepare()
            self._score(0)

    def _epoch(self) -> None:
        """Train to the end of the running epoch and close it, unless the run shall stop before."""
        state = self.state
        if state.closed == state.step // self.per_epoch:
            epoch, start = divmod(state.step, self.per_epoch)
            self._ended = time.monotonic()
            with closing(_stream(self.source.epoch(epoch + APART * state.rollbacks, start))) as stream:
                ahead = getattr(self.learner, "ahead", iter)
                for batches in ahead(stream):
                    self._step(batches, time.monotonic())
                    if self._pause():
                        return
        self._close_epoch()

    def _enough(self) -> bool:
        return 0 < self.limits.stop_after_steps <= self.state.step

    def _step(self, batches: Sequence[Batch], ready: float) -> None:
        state = self.state
        values = schedule.at(self.recipe, state.step, self.per_epoch)
        flags = [self._wishes()] if self.late else []
        labels = None if self.setup.probe is None else np.concatenate([batch.labels for batch in batches])
        result = self.learner.step(batches, values, *flags)
        taken: Taken | None = Taken(state.step + 1, values, result, ready - self._ended, labels)
        if self.late:
            taken, self._taken = self._taken, taken  # the device works on, and this process on what it did before
        if taken is not None:
            self._note(taken)
        state.step += 1
        self._ended = time.monotonic()

    def _settle(self) -> None:
        """Look at the result that is still out."""
        taken, self._taken = self._taken, None
        if taken is not None:
            self._note(taken)

    def _note(self, taken: Taken) -> None:
        """Record a step. Raises NonFinite."""
        state, recipe, step = self.state, self.recipe, taken.step
        result = settled(taken.result)
        bad = result.bad or (None if math.isfinite(result.loss) else "loss")
        if bad:
            raise NonFinite(bad, step)
        probed = self._probe(taken, result)
        state.losses += result.loss
        self._flags = result.flags
        seconds = time.monotonic() - self._ended
        self._pace = 0.9 * self._pace + 0.1 * seconds if self._pace else seconds
        rate = recipe.batch / max(self._pace, 1e-9)
        done = step / self.per_epoch
        numbers = {
            "loss": result.loss,
            **taken.values._asdict(),
            "gradient_norm": result.gradient_norm,
            "first_layer_gradient": result.first_layer_gradient,
            "images_per_second": rate,
            "data_seconds": taken.waited,
            **result.extras,
            **probed,
        }
        if step % (self.limits.log_steps or max(self.total // LINES, 1)) == 0:
            self.journal.scalars(step, done, numbers)
        left = duration((self.total - step) * self._pace)
        self.journal.progress(
            step,
            f"epoch {math.ceil(done)}/{recipe.schedule.epochs}  step {step}/{self.total}  "
            f"loss {result.loss:.4f}  lr {taken.values.lr:.3g}  {rate:.0f} images/s  {left} left",
        )

    def _wishes(self) -> tuple[int, int]:
        """The signal that this process caught, and whether it is time to save."""
        minutes = self.limits.save_minutes
        return self._signals.caught, int(minutes > 0 and time.monotonic() - self._saved > 60 * minutes)

    def _probe(self, taken: Taken, result: StepResult) -> dict[str, float]:
        """Let the probe learn from the features of the step, of all ranks; {} where there is none."""
        probe = self.setup.probe
        if probe is None or result.features is None or taken.labels is None:
            return {}
        rows, labels = self.processes.gather(result.features), self.processes.gather(taken.labels)
        return probe.learn(rows, labels, (taken.step - 1) / self.total)

    def _pause(self) -> bool:
        """Save where it is time to; True where the run shall stop in the middle of an epoch."""
        state, limits = self.state, self.limits
        # a late learner has carried the wishes of all ranks with its numbers
        stop, overdue = (self._flags or (0, 0)) if self.late else self._agree(*self._wishes())
        if stop:
            self._save()
            self._writer.wait()
            raise Interrupted(stop)
        if state.step % self.per_epoch == 0:
            return False  # closing the epoch saves
        enough = self._enough()
        if enough or overdue or (limits.save_steps and state.step % limits.save_steps == 0):
            self._save()
        return enough

    def _agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of each number over the ranks: signals and clocks differ between them."""
        if self.processes.world == 1:
            return numbers
        return tuple(self.processes.gather(np.array([numbers], np.int64)).max(axis=0).tolist())

    # ------------------------------------------------------------ epochs
    def _close_epoch(self) -> None:
        state = self.state
        epoch = state.step // self.per_epoch
        self._save()  # a run killed while it evaluates evaluates again, and trains nothing twice
        scores = self._score(epoch)
        state.closed, state.losses = epoch, 0.0
        better = self._better(scores)
        if self.processes.rank == 0:
            self._keep(epoch, better)
        self.processes.barrier("end of epoch")

    def _score(self, epoch: int) -> dict[str, float]:
        state = self.state
        begun = time.monotonic()
        with self._signals.at_once(), self._whole():
            scores = dict(self.setup.evaluate(epoch))
        spent = duration(time.monotonic() - begun)
        if epoch:
            mean = state.losses / self.per_epoch
            scores = {"loss": mean, **scores, "memory_gb": self.learner.memory() / 1e9}
        if scores:
            self.journal.scalars(state.step, epoch, scores, "epoch")
            shown = "  ".join(score(name, value) for name, value in scores.items())
            self.journal.say(f"epoch {epoch}/{self.recipe.schedule.epochs}  {shown}  (scored in {spent})")
        state.metrics = scores
        return scores

    def _better(self, scores: dict[str, float]) -> bool:
        """Say whether the score that the run is judged by is the best yet, and remember it."""
        judged = scores.get("top1", scores.get("knn", scores.get("probe")))
        if judged is None or (self.state.best is not None and judged <= self.state.best):
            return False
        self.state.best = judged
        return True

    def _keep(self, epoch: int, better: bool) -> None:
        monitor, checkpoints, about = self.recipe.monitor, self.last.parent, self._about()
        self._writer.wait()
        if better:
            checkpoint.copy(self.last, checkpoints / "best", about)
        if monitor.keep and (epoch % max(monitor.save_every, 1) == 0 or epoch == self.recipe.schedule.epochs):
            checkpoint.copy(self.last, checkpoints / f"epoch_{epoch}", about)
            if self.setup.on_checkpoint is not None:
                self.setup.on_checkpoint(checkpoints / f"epoch_{epoch}")
            checkpoint.prune(self.setup.folder, monitor.keep)
        # Last of all: a run killed before this closes the epoch again.
        checkpoint.restate(self.last, about)

    # ------------------------------------------------------------ checkpoints
    def _about(self) -> dict[str, Any]:
        return {**self.setup.about, "epoch": self.state.step // self.per_epoch, **asdict(self.state)}

    def _save(self) -> None:
        bad = ""
        self._settle()
        if self.processes.rank == 0 or self._divided:
            groups = {"model": self.learner.arrays(), "optimizer": self.learner.optimizer_arrays()}
        if self.processes.rank == 0:
            bad = first_bad(groups["model"]) or ""
            if not bad:
                self.journal.sync()
                if self.setup.probe is not None:
                    groups["probe"] = self.setup.probe.arrays()
                self._writer.begin(partial(checkpoint.save, self.last, groups, self._about()))
                if not self.late:
                    self._writer.wait()  # processors that write cannot train
        self._saved = time.monotonic()
        bad = share(self.processes, bad)  # all go back together, or none
        if bad:
            raise NonFinite(bad, self.state.step)

    def _recover(self, bad: NonFinite) -> None:
        """Go back to the last good checkpoint, or stop with a line that names the tensor."""
        limits, rollbacks = self.limits, self.state.rollbacks + 1
        self._taken = None  # it went on from what was bad
        self._writer.wait()
        where = f"step {bad.step} (epoch {math.ceil(bad.step / self.per_epoch)}): {bad} is not finite"
        if limits.on_nonfinite == "stop" or rollbacks > limits.max_rollbacks:
            known = checkpoint.read_state(self.last)["step"]
            tried = f", after {rollbacks - 1} rollbacks" if rollbacks > 1 else ""
            more = f" --max-rollbacks {rollbacks}" if rollbacks > limits.max_rollbacks else ""
            raise UserError(
                f"{where}{tried}. The last good checkpoint is {self.last} (step {known}). Lower optimizer.lr, "
                f"or go on with other batches: --resume {self.setup.folder} --on-nonfinite=rollback{more}."
            )
        arrays, known_state = checkpoint.load(self.last)
        self.state = self.setup.state = state_from(known_state)
        self.state.rollbacks = rollbacks
        self.learner.load(arrays["model"], arrays["optimizer"])
        if self.setup.probe is not None and "probe" in arrays:
            self.setup.probe.load(arrays["probe"])
        self.processes.barrier("rollback")  # all ranks have read before rank 0 writes
        if self.processes.rank == 0:
            checkpoint.restate(self.last, self._about())
        self.journal.begin(self.state.step, self.state.closed)
        self.journal.say(
            f"{where}; rollback {rollbacks} of {limits.max_rollbacks} to step {self.state.step}, "
            "and on with the epoch in another order"
        )


def _stream(batches: Iterable[Sequence[Batch]]) -> Generator[Sequence[Batch], None, None]:
    """Make a generator of any iterable, so that leaving the loop early ends the loader's work on it."""
    yield from batches
