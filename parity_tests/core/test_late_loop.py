"""The loop with a learner whose numbers come a step later, as a GPU's do: the same run, the same checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from triport.core.backend.learner import StepResult
from triport.core.run import run
from triport.parity_tests.fixtures import numpy_learner
from triport.parity_tests.fixtures.toy import TOTAL, assert_same_run, failed, go, last, metrics, whole


class Waiting:
    """A result that nobody has looked at."""

    def __init__(self, message: StepResult, log: list[str], number: int) -> None:
        self.reported, self.log, self.number = message, log, number

    def result(self) -> StepResult:
        self.log.append(f"looked at {self.number}")
        return self.reported


class Late(numpy_learner.Learner):
    """Steps at once and tells it late."""

    late = True
    stop_at = 0  # the step at which a signal arrives
    log: ClassVar[list[str]] = []

    def ahead(self, steps: Any) -> Iterator[Any]:
        yield from steps

    def step(self, batches: Sequence[Any], values: Any, flags: Sequence[int] = ()) -> Any:
        message = super().step(batches, values)
        Late.log.append(f"took {self.steps}")
        if self.steps == Late.stop_at:
            signal.raise_signal(signal.SIGUSR1)
        return Waiting(replace(message, flags=tuple(flags)), Late.log, self.steps)


def backend(faults: Sequence[int] = ()) -> run.Backend:
    Late.log, Late.stop_at = [], 0
    return run.Backend(
        "numpy", numpy_learner.start, lambda recipe, arrays, *, processes, **_: Late(recipe, arrays, processes, faults)
    )


@pytest.mark.parametrize("kind", ["moco", "finetune"])
def test_the_same_run_comes_of_it(tmp_path, kind):
    assert go(kind, tmp_path / "run", backend=backend()) == 0
    assert_same_run(whole(kind), tmp_path / "run")
    assert Late.log[:4] == ["took 1", "took 2", "looked at 1", "took 3"]  # no step waits for its own numbers
    assert sum(word.startswith("looked") for word in Late.log) == TOTAL


def test_stopped_and_resumed_it_is_the_same_run(tmp_path):
    assert go("mae", tmp_path / "run", "--stop-after-steps", "4", backend=backend()) == 0
    assert last(tmp_path / "run")[1]["step"] == 4 and [line["step"] for line in metrics(tmp_path / "run")] == [
        1,
        2,
        3,
        4,
    ]
    assert go("mae", tmp_path / "run", "--resume", backend=backend()) == 0
    assert_same_run(whole("mae"), tmp_path / "run")


def test_a_preempted_run_saves_and_exits_with_0(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    made = backend()
    Late.stop_at = 2
    assert go("mae", tmp_path / "run", backend=made) == 0
    assert "preempted: to resume: the same command with --resume" in (printed := capsys.readouterr().err)
    assert "scontrol requeue 77" in printed
    assert 2 <= last(tmp_path / "run")[1]["step"] <= 4
    assert go("mae", tmp_path / "run", "--resume", backend=backend()) == 0
    assert_same_run(whole("mae"), tmp_path / "run")


def test_what_is_not_finite_is_reported_a_step_later_and_named(tmp_path, capsys):
    code = go("mae", tmp_path / "run", backend=backend(faults=[7]))
    assert "step 8 " in failed(capsys, code) and last(tmp_path / "run")[1]["step"] < 8


def test_a_rollback_goes_on_from_the_last_good_checkpoint(tmp_path):
    assert go("mae", tmp_path / "run", "--on-nonfinite=rollback", backend=backend(faults=[7])) == 0
    state = last(tmp_path / "run")[1]
    assert state["step"] == TOTAL and state["rollbacks"] == 1
