"""What stops a run: kills at any moment, signals, values that are not finite; and how it goes on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core import signals
from triport.core.record import checkpoint
from triport.core.run import run
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.toy import PER_EPOCH, TOTAL, assert_same_run, go, last, metrics, whole

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- kills and signals
def begin(kind: str, out: Path, *more: str, hangup: Any = signal.SIG_DFL, **environment: str) -> subprocess.Popen[str]:
    """Start a toy run; `hangup` is what it inherits for SIGHUP, whatever these tests run under."""
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "triport.parity_tests.fixtures.numpy_learner", *toy.command(kind, out, *more)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind, whatever fails."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until a run has written so many steps, or is over."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count('"kind": "step"') >= step:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("kind, accumulate", [("moco", "1"), ("mae", "2"), ("finetune", "2")])
def test_kill_9_at_any_moment(tmp_path, kind, accumulate):
    """Killed again and again, at random moments, it still comes to the same numbers."""
    rng, folder, kills = random.Random(f"{kind} kills"), tmp_path / "run", 0
    more = ["--accumulate", accumulate, "--save-steps", "2"]
    resume: list[str] = []
    for _ in range(100):
        process = begin(kind, folder, *more, *resume, NUMPY_LEARNER_SLEEP="0.05")
        with ended(process):
            if kills < 6:
                done = last(folder)[1]["step"] if resume else 0
                wait_for_step(process, folder, done + rng.randint(1, 4))
                time.sleep(rng.random() * 0.03)  # into a step, a checkpoint, a scoring
                process.kill()
            _, errors = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors
            kills += 1
        # Killed before the very first checkpoint there is nothing to resume.
        resume = ["--resume"] if checkpoint.listed(folder / "checkpoints") else ["--overwrite"]
    assert kills == 6
    assert_same_run(whole(kind, "--accumulate", accumulate), folder)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path, number, code):
    folder = tmp_path / "run"
    process = begin("moco", folder, NUMPY_LEARNER_SLEEP="0.1")
    with ended(process):
        wait_for_step(process, folder, 3)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
    state = last(folder)[1]
    assert 3 <= state["step"] < TOTAL and metrics(folder)[-1]["step"] == state["step"]
    wanted = rf"triport: stopped at step {state['step']} of {TOTAL}; to resume: the same command with --resume \S+\n"
    assert re.fullmatch(wanted, errors), errors
    assert "Traceback" not in out + errors
    assert go("moco", folder, "--resume") == 0
    assert_same_run(whole("moco"), folder)


def test_an_ignored_hangup_stays_ignored(tmp_path):
    """As under nohup."""
    folder = tmp_path / "run"
    process = begin("mae", folder, hangup=signal.SIG_IGN, NUMPY_LEARNER_SLEEP="0.05")
    with ended(process):
        wait_for_step(process, folder, 3)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert_same_run(whole("mae"), folder)


def test_a_second_ctrl_c_stops_at_once_but_not_the_echo_of_the_first(monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with signals.Signals() as received:
        for _ in range(3):  # the terminal and the launcher both tell of one Ctrl-C
            os.kill(os.getpid(), signal.SIGINT)
            clock[0] += 0.2
        assert received.caught == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += 1
        with pytest.raises(signals.Interrupted) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.code == 130
        with pytest.raises(signals.Interrupted), received.at_once():
            raise AssertionError("a signal that came before is obeyed on entering")


def test_a_signal_while_scoring_stops_at_once_and_the_epoch_is_scored_on_resume(tmp_path):
    folder = tmp_path / "run"
    seen: list[int] = []

    class Slow(numpy_learner.Learner):
        def embed(self, images):
            if self.steps == 2 * PER_EPOCH and not seen:
                seen.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
            assert self.steps != 2 * PER_EPOCH or len(seen) < 2, "scoring goes on after the signal"
            seen.extend([1] * (self.steps == 2 * PER_EPOCH))
            return super().embed(images)

    def make(recipe, arrays, *, processes, **rest):
        return Slow(recipe, arrays, processes)

    backend = run.Backend("numpy", numpy_learner.start, make)
    before = signal.getsignal(signal.SIGTERM)
    assert go("moco", folder, backend=backend) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    state = last(folder)[1]
    assert (state["step"], state["closed"]) == (2 * PER_EPOCH, 1)
    assert go("moco", folder, "--resume") == 0
    assert_same_run(whole("moco"), folder)


@pytest.mark.parametrize("point", range(1, 11))
def test_broken_off_anywhere_in_closing_an_epoch(tmp_path, monkeypatch, point):
    """Scores, best, kept and last checkpoints are all there in the end."""
    calls = []

    def dying(work):
        def run(*given):
            calls.append(given)
            if len(calls) == point:
                raise KeyboardInterrupt
            return work(*given)

        return run

    with monkeypatch.context() as patch:
        for name in ("copy", "restate", "prune"):
            patch.setattr(checkpoint, name, dying(getattr(checkpoint, name)))
        assert go("moco", tmp_path / "run", "--quiet") == 130
    assert go("moco", tmp_path / "run", "--quiet", "--resume") == 0
    assert_same_run(whole("moco"), tmp_path / "run")
    for name in ("best", "epoch_1", "epoch_2", "epoch_3", "last"):
        mine, other = (checkpoint.read_state(f / "checkpoints" / name) for f in (tmp_path / "run", whole("moco")))
        assert mine == other, name


# ---------------------------------------------------------------- what is not finite
def test_a_nan_stops_with_the_tensors_name_and_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    folder = tmp_path / "run"
    assert go("moco", folder, "--save-steps", "4") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "step 10 (epoch 2): base_encoder.head.0.weight is not finite" in errors
    assert "last (step 8)" in errors and "--on-nonfinite=rollback" in errors
    assert last(folder)[1]["step"] == 8
    assert all(np.isfinite(array).all() for array in checkpoint.load(checkpoint.latest(folder))[0]["model"].values())


def test_a_loss_that_is_not_finite_stops_too(tmp_path, capsys):
    class Broken(numpy_learner.Learner):
        def step(self, batches, values):
            result = super().step(batches, values)
            return result if self.steps != 3 else type(result)(float("inf"), 1.0, 1.0)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Broken(r, a, processes))
    assert go("mae", tmp_path / "run", backend=backend) == 2
    assert "step 3 (epoch 1): loss is not finite" in capsys.readouterr().err


def test_weights_that_overflow_never_reach_a_checkpoint(tmp_path, capsys):
    class Broken(numpy_learner.Learner):
        def step(self, batches, values):
            result = super().step(batches, values)
            if self.steps == PER_EPOCH:
                self.values["decoder_pred.bias"] = self.values["decoder_pred.bias"] * np.float32(np.inf)
            return result

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Broken(r, a, processes))
    assert go("mae", tmp_path / "run", "--save-steps", "4", backend=backend) == 2
    assert "step 6 (epoch 1): decoder_pred.bias is not finite" in capsys.readouterr().err
    assert last(tmp_path / "run")[1]["step"] == 4


def test_weights_that_are_not_finite_at_the_start(tmp_path, capsys):
    def make(recipe, arrays, *, processes, **rest):
        return numpy_learner.Learner(recipe, {**arrays, "norm.bias": arrays["norm.bias"] * np.nan}, processes)

    assert go("mae", tmp_path / "run", backend=run.Backend("numpy", numpy_learner.start, make)) == 2
    assert "norm.bias is not finite before the first step" in capsys.readouterr().err


def test_a_rollback_goes_back_and_on_with_other_batches(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    folder, again = tmp_path / "run", tmp_path / "again"
    assert go("moco", folder, *more) == 0
    assert "base_encoder.head.0.weight is not finite; rollback 1 of 3 to step 8" in capsys.readouterr().out
    steps, clean = metrics(folder), metrics(whole("moco"))
    assert [line["step"] for line in steps] == list(range(1, TOTAL + 1))
    assert steps[:8] == clean[:8]
    for mine, other in zip(steps[8:], clean[8:], strict=True):
        assert mine["loss"] != other["loss"], "the batches after the rollback are others"
        assert mine["lr"] == other["lr"], "and the schedule goes on"
    assert last(folder)[1]["rollbacks"] == 1
    assert go("moco", again, *more) == 0
    assert_same_run(folder, again)


def test_a_resume_after_a_rollback_is_exact(tmp_path, monkeypatch):
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    assert go("moco", tmp_path / "whole", *more) == 0
    assert go("moco", tmp_path / "parts", *more, "--stop-after-steps", "11") == 0
    monkeypatch.delenv("NUMPY_LEARNER_FAULTS")
    assert go("moco", tmp_path / "parts", *more, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_rollback_outlives_a_kill_right_after_it(tmp_path, monkeypatch):
    """The number of rollbacks is on the disk before training goes on."""
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    assert go("moco", tmp_path / "whole", *more) == 0

    class Dies(numpy_learner.Learner):
        def load(self, arrays, optimizer_arrays):
            super().load(arrays, optimizer_arrays)
            self.born = getattr(self, "born", -1) + 1

        def step(self, batches, values):
            if self.born:
                raise KeyboardInterrupt
            return super().step(batches, values)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Dies(r, a, processes, [9]))
    assert go("moco", tmp_path / "parts", *more, backend=backend) == 130
    monkeypatch.delenv("NUMPY_LEARNER_FAULTS")
    assert go("moco", tmp_path / "parts", *more, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_rollbacks_have_an_end(tmp_path, capsys):
    class Hopeless(numpy_learner.Learner):
        def step(self, batches, values):
            self.faults = {7}
            return super().step(batches, values)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Hopeless(r, a, processes))
    more = ["--on-nonfinite=rollback", "--max-rollbacks", "2"]
    assert go("mae", tmp_path / "run", *more, backend=backend) == 2
    printed = capsys.readouterr()
    assert printed.out.count("; rollback ") == 2
    assert (
        "step 8 (epoch 2)" in printed.err and "after 2 rollbacks" in printed.err and "--max-rollbacks 3" in printed.err
    )
    assert last(tmp_path / "run")[1]["step"] == PER_EPOCH
