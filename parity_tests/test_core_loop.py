"""The loop, driven by the numpy learner: exact resumption, kills, signals, NaNs, several ranks, monitors, checkpoints."""

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

import numpy as np
import pytest

from core import checkpoint, run, schedule
from core import recipe as recipes
from core.learner import share
from parity_tests import numpy_learner, toy
from parity_tests.together import Threads, together
from parity_tests.toy import EPOCHS, PER_EPOCH, TOTAL, assert_same_run, go, last, metrics

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return toy.make_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Uninterrupted runs, made once each: whole(kind, *options) -> folder."""
    done: dict[tuple[str, ...], Path] = {}

    def make(kind: str, *more: str) -> Path:
        if (kind, *more) not in done:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert go(kind, data, folder, *more) == 0
            done[kind, *more] = folder
        return done[kind, *more]

    return make


# ---------------------------------------------------------------- a run from beginning to end
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_every_step_and_epoch_is_recorded(whole, kind):
    folder = whole(kind)
    steps, epochs = metrics(folder), metrics(folder, "epoch")
    assert [line["step"] for line in steps] == list(range(1, TOTAL + 1))
    assert [line["epoch"] for line in steps] == [step / PER_EPOCH for step in range(1, TOTAL + 1)]
    recipe = recipes.load(str(folder / "recipe.toml"))
    for index, line in enumerate(steps):
        values = schedule.at(recipe, index, PER_EPOCH)
        assert (line["lr"], line["momentum"]) == values
        assert line["gradient_norm"] > 0 and line["extra"] == 1.0
        assert 0 < line["first_layer_gradient"] <= line["gradient_norm"]
    first = 1 if kind == "finetune" else 0  # features are scored before the first step, a fresh head is not
    assert [line["epoch"] for line in epochs] == list(range(first, EPOCHS + 1))
    assert [line["step"] for line in epochs] == [n * PER_EPOCH for n in range(first, EPOCHS + 1)]
    for line in epochs[1 - first :]:
        mine = [step["loss"] for step in steps if np.ceil(step["epoch"]) == line["epoch"]]
        assert line["loss"] == pytest.approx(np.mean(mine), rel=1e-12)
    wanted = {"top1", "top5", "mean_per_class"} if kind == "finetune" else {"knn", "spread", "effective_rank"}
    assert all(wanted <= line.keys() for line in epochs)


def test_the_learner_learns(whole):
    """Otherwise equal losses would say nothing."""
    for kind in ("moco", "mae", "finetune"):
        losses = [line["loss"] for line in metrics(whole(kind), "epoch") if line["epoch"]]
        assert losses[-1] < 0.97 * losses[0], kind
    assert len({line["loss"] for line in metrics(whole("moco"))}) == TOTAL


def test_checkpoints_of_a_finished_run(whole):
    folder = whole("moco")
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best", "epoch_1", "epoch_2", "epoch_3", "last"]
    _, state = last(folder)
    assert (state["step"], state["epoch"], state["closed"]) == (TOTAL, EPOCHS, EPOCHS)
    assert (state["name"], state["backend"], state["format"]) == ("tiny/test_moco_vit", "numpy", 1)
    scores = {line["epoch"]: line["knn"] for line in metrics(folder, "epoch")}
    best = checkpoint.read_state(folder / "checkpoints" / "best")
    trained = {epoch: score for epoch, score in scores.items() if epoch}
    assert best["epoch"] == max(trained, key=trained.__getitem__)  # the earliest of the best
    assert best["best"] == state["best"] == max(trained.values())


def test_keeping_and_saving_follow_the_recipe(data, tmp_path):
    assert go("mae", data, tmp_path / "run", "epochs=6", "monitor.save_every=2", "monitor.keep=2") == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best", "epoch_4", "epoch_6", "last"]


def test_scores_come_when_the_recipe_says(data, tmp_path):
    assert go("mae", data, tmp_path / "a", "epochs=5", "monitor.knn_every=2") == 0
    assert [line["epoch"] for line in metrics(tmp_path / "a", "epoch") if "knn" in line] == [0, 2, 4, 5]
    assert [line["epoch"] for line in metrics(tmp_path / "a", "epoch") if "spread" in line] == [0, 1, 2, 3, 4, 5]
    assert go("finetune", data, tmp_path / "b", "epochs=5", "monitor.evaluate_every=2") == 0
    assert [line["epoch"] for line in metrics(tmp_path / "b", "epoch") if "top1" in line] == [2, 4, 5]


# ---------------------------------------------------------------- resume
@pytest.mark.parametrize("accumulate", ["1", "4"])
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
@pytest.mark.parametrize("stops", [[1], [5, 6, 7], [8, 13, 17], [12]])
def test_a_run_in_parts_is_the_run_in_one(whole, data, tmp_path, kind, accumulate, stops):
    """In the middle of an epoch, at its end, after it, several times, with momentum buffers and accumulation."""
    more = ["--accumulate", accumulate]
    assert go(kind, data, tmp_path / "run", *more, "--stop-after-steps", str(stops[0])) == 0
    for stop in [*stops[1:], TOTAL]:
        assert last(tmp_path / "run")[1]["step"] < stop
        assert go(kind, data, tmp_path / "run", *more, "--resume", "--stop-after-steps", str(stop)) == 0
    assert_same_run(whole(kind, *more), tmp_path / "run")


def test_a_resumed_run_needs_no_recipe_and_finds_its_folder(whole, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert go("mae", data, None, "--stop-after-steps", "4") == 0
    assert (
        run.pretrain(["--resume", "runs/tiny-test_mae_vit-1", "--data", str(data)], backend=numpy_learner.BACKEND) == 0
    )
    assert_same_run(whole("mae"), tmp_path / "runs" / "tiny-test_mae_vit-1")
    assert go("mae", data, None, "--stop-after-steps", "4") == 0  # a second folder, which the next line finds
    assert go("mae", data, None, "--resume") == 0
    assert_same_run(whole("mae"), tmp_path / "runs" / "tiny-test_mae_vit-2")


def test_an_older_checkpoint_can_be_gone_on_from(whole, data, tmp_path):
    folder = tmp_path / "run"
    assert go("mae", data, folder) == 0
    task = ["--resume", str(folder / "checkpoints" / "epoch_1"), "--data", str(data)]
    assert run.pretrain(task, backend=numpy_learner.BACKEND) == 0
    assert_same_run(whole("mae"), folder)


def test_resuming_a_finished_run_does_nothing_new(whole, data, tmp_path):
    folder = tmp_path / "run"
    assert go("mae", data, folder) == 0
    (folder / "encoder.safetensors").unlink()
    assert go("mae", data, folder, "--resume") == 0
    assert_same_run(whole("mae"), folder)
    assert (folder / "encoder.safetensors").is_file()


def test_accumulation_is_the_same_gradient_for_mae_and_says_that_moco_has_fewer_negatives(
    whole, data, tmp_path, capsys
):
    one, four = metrics(whole("mae")), metrics(whole("mae", "--accumulate", "4"))
    np.testing.assert_allclose([line["loss"] for line in four], [line["loss"] for line in one], rtol=1e-5)
    capsys.readouterr()
    assert go("moco", data, tmp_path / "a", "--micro-batch", "4", "--stop-after-steps", "1") == 0
    said = capsys.readouterr().out
    assert "batch 16 = 1 processes x 4 micro-batches x 4" in said and "4 T ln(4)" in said
    assert "accumulation does not add negatives" in said
    assert go("moco", data, tmp_path / "b", "--stop-after-steps", "1") == 0
    said = capsys.readouterr().out
    assert "4 T ln(16)" in said and "negatives" not in said


def test_checkpoints_in_the_middle_of_an_epoch(data, tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save

    def note(folder, arrays, state):
        saved.append(state["step"])
        save(folder, arrays, state)

    monkeypatch.setattr(checkpoint, "save", note)
    assert go("mae", data, tmp_path / "a", "--save-steps", "4") == 0
    assert saved == [0, 4, 6, 8, 12, 16, 18]
    saved.clear()
    assert go("mae", data, tmp_path / "b", "--save-minutes", "0") == 0
    assert saved == [0, 6, 12, 18]
    saved.clear()
    assert go("mae", data, tmp_path / "c", "--save-minutes", "1e-9") == 0
    assert saved == list(range(TOTAL + 1))


# ---------------------------------------------------------------- kills and signals
def begin(kind: str, data: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "parity_tests.numpy_learner", *toy.command(kind, data, out, *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
def test_kill_9_at_any_moment(whole, data, tmp_path, kind, accumulate):
    """Killed again and again, at random moments, it still comes to the same numbers."""
    dice, folder, kills = random.Random(f"{kind} kills"), tmp_path / "run", 0
    more = ["--accumulate", accumulate, "--save-steps", "2"]
    resume: list[str] = []
    for _ in range(100):
        process = begin(kind, data, folder, *more, *resume, NUMPY_LEARNER_SLEEP="0.01")
        with ended(process):
            if kills < 6:
                done = last(folder)[1]["step"] if resume else 0
                wait_for_step(process, folder, done + dice.randint(1, 4))
                time.sleep(dice.random() * 0.03)  # into a step, a checkpoint, a scoring
                process.kill()
            _, errors = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors
            kills += 1
        if checkpoint.listed(folder / "checkpoints"):
            resume = ["--resume"]
        else:  # killed before the very first checkpoint: there is nothing to resume
            resume = ["--overwrite"]
    assert kills == 6
    assert_same_run(whole(kind, "--accumulate", accumulate), folder)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(whole, data, tmp_path, number, code):
    folder = tmp_path / "run"
    process = begin("moco", data, folder, NUMPY_LEARNER_SLEEP="0.1")
    with ended(process):
        wait_for_step(process, folder, 3)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
    state = last(folder)[1]
    assert 3 <= state["step"] < TOTAL and metrics(folder)[-1]["step"] == state["step"]
    wanted = rf"triport: stopped at step {state['step']} of {TOTAL}; go on with the same command and --resume \S+\n"
    assert re.fullmatch(wanted, errors), errors
    assert "Traceback" not in out + errors
    assert go("moco", data, folder, "--resume") == 0
    assert_same_run(whole("moco"), folder)


def test_a_signal_while_scoring_stops_at_once_and_the_epoch_is_scored_on_resume(whole, data, tmp_path):
    folder = tmp_path / "run"
    seen = []

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
    assert go("moco", data, folder, backend=backend) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    state = last(folder)[1]
    assert (state["step"], state["closed"]) == (2 * PER_EPOCH, 1)
    assert go("moco", data, folder, "--resume") == 0
    assert_same_run(whole("moco"), folder)


# ---------------------------------------------------------------- what is not finite
def test_a_nan_stops_with_the_tensors_name_and_the_last_good_checkpoint(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    folder = tmp_path / "run"
    assert go("moco", data, folder, "--save-steps", "4") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "step 10 (epoch 2): base_encoder.head.0.weight is not finite" in errors
    assert "last (step 8)" in errors and "--on-nonfinite=rollback" in errors
    arrays, state = last(folder)
    assert state["step"] == 8
    assert all(np.isfinite(array).all() for array in checkpoint.load(checkpoint.latest(folder))[0]["model"].values())


def test_a_loss_that_is_not_finite_stops_too(data, tmp_path, capsys):
    class Broken(numpy_learner.Learner):
        def step(self, batches, values):
            result = super().step(batches, values)
            return result if self.steps != 3 else type(result)(float("inf"), 1.0, 1.0)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Broken(r, a, processes))
    assert go("mae", data, tmp_path / "run", backend=backend) == 2
    assert "step 3 (epoch 1): loss is not finite" in capsys.readouterr().err


def test_weights_that_overflow_never_reach_a_checkpoint(data, tmp_path, capsys):
    class Broken(numpy_learner.Learner):
        def step(self, batches, values):
            result = super().step(batches, values)
            if self.steps == PER_EPOCH:
                self.values["decoder_pred.bias"] = self.values["decoder_pred.bias"] * np.float32(np.inf)
            return result

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Broken(r, a, processes))
    assert go("mae", data, tmp_path / "run", "--save-steps", "4", backend=backend) == 2
    assert "decoder_pred.bias is not finite" in capsys.readouterr().err
    assert last(tmp_path / "run")[1]["step"] == 4


def test_weights_that_are_not_finite_at_the_start(data, tmp_path, capsys):
    def make(recipe, arrays, *, processes, **rest):
        return numpy_learner.Learner(recipe, {**arrays, "norm.bias": arrays["norm.bias"] * np.nan}, processes)

    assert go("mae", data, tmp_path / "run", backend=run.Backend("numpy", numpy_learner.start, make)) == 2
    assert "norm.bias is not finite before the first step" in capsys.readouterr().err


def test_a_rollback_goes_back_and_on_with_other_batches(whole, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    folder, again = tmp_path / "run", tmp_path / "again"
    assert go("moco", data, folder, *more) == 0
    assert "base_encoder.head.0.weight is not finite; rollback 1 of 3 to step 8" in capsys.readouterr().out
    steps, clean = metrics(folder), metrics(whole("moco"))
    assert [line["step"] for line in steps] == list(range(1, TOTAL + 1))
    assert steps[:8] == clean[:8]
    for mine, other in zip(steps[8:], clean[8:], strict=True):
        assert mine["loss"] != other["loss"], "the batches after the rollback are others"
        assert mine["lr"] == other["lr"], "and the schedule goes on"
    assert last(folder)[1]["rollbacks"] == 1
    assert go("moco", data, again, *more) == 0
    assert_same_run(folder, again)


def test_a_resume_after_a_rollback_is_exact(data, tmp_path, monkeypatch):
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    assert go("moco", data, tmp_path / "whole", *more) == 0
    assert go("moco", data, tmp_path / "parts", *more, "--stop-after-steps", "11") == 0
    monkeypatch.delenv("NUMPY_LEARNER_FAULTS")
    assert go("moco", data, tmp_path / "parts", *more, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_rollback_outlives_a_kill_right_after_it(data, tmp_path, monkeypatch):
    """The number of rollbacks is on the disk before training goes on."""
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    assert go("moco", data, tmp_path / "whole", *more) == 0

    class Dies(numpy_learner.Learner):
        def load(self, arrays, optimizer_arrays):
            super().load(arrays, optimizer_arrays)
            self.born = getattr(self, "born", -1) + 1

        def step(self, batches, values):
            if self.born:
                raise KeyboardInterrupt
            return super().step(batches, values)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Dies(r, a, processes, [9]))
    assert go("moco", data, tmp_path / "parts", *more, backend=backend) == 130
    monkeypatch.delenv("NUMPY_LEARNER_FAULTS")
    assert go("moco", data, tmp_path / "parts", *more, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_rollbacks_have_an_end(data, tmp_path, capsys):
    class Hopeless(numpy_learner.Learner):
        def step(self, batches, values):
            self.faults = {7}
            return super().step(batches, values)

    backend = run.Backend("numpy", numpy_learner.start, lambda r, a, *, processes, **_: Hopeless(r, a, processes))
    more = ["--on-nonfinite=rollback", "--max-rollbacks", "2"]
    assert go("mae", data, tmp_path / "run", *more, backend=backend) == 2
    said = capsys.readouterr()
    assert said.out.count("rollback") == 2 and "after 2 rollbacks" in said.err
    assert last(tmp_path / "run")[1]["step"] == PER_EPOCH


# ---------------------------------------------------------------- several ranks
def run_together(world: int, kind: str, data: Path, out: Path, *more: str, make=None) -> list[int]:
    def one(processes: Threads) -> int:
        backend = run.Backend("numpy", lambda device: processes, make or numpy_learner.make)
        return go(kind, data, out, *more, backend=backend)

    return together(world, one)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_ranks_together_are_one_process(whole, data, tmp_path, world, kind):
    # Mixup's partners are found in the micro-batch, so they change with the number of ranks
    more = ["mix.mixup=0", "mix.cutmix=0"] if kind == "finetune" else []
    assert run_together(world, kind, data, tmp_path / "run", *more) == [0] * world
    one, many = metrics(whole(kind, *more)), metrics(tmp_path / "run")
    assert [line["step"] for line in many] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose([line["loss"] for line in many], [line["loss"] for line in one], rtol=1e-4)
    for mine, other in zip(metrics(tmp_path / "run", "epoch"), metrics(whole(kind, *more), "epoch"), strict=True):
        assert mine.keys() == other.keys()
        for name in ("top1", "top5", "mean_per_class", "knn"):
            if name in mine:
                assert mine[name] == pytest.approx(other[name], abs=1.01 / 40), name  # roundings may turn one image


def test_ranks_resume_exactly_from_the_middle_of_an_epoch(data, tmp_path):
    assert run_together(2, "moco", data, tmp_path / "whole", "--accumulate", "2") == [0, 0]
    assert run_together(2, "moco", data, tmp_path / "parts", "--accumulate", "2", "--stop-after-steps", "8") == [0, 0]
    assert run_together(2, "moco", data, tmp_path / "parts", "--accumulate", "2", "--resume") == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_number_of_ranks_may_go_on_and_it_is_said(data, tmp_path, capsys):
    assert go("mae", data, tmp_path / "run", "--stop-after-steps", "8") == 0
    capsys.readouterr()
    assert run_together(2, "mae", data, tmp_path / "run", "--resume") == [0, 0]
    said = capsys.readouterr().out
    assert "resumed from" in said and "processes 1 -> 2" in said and said.count("resumed from") == 1


def test_ranks_roll_back_together(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    assert run_together(2, "moco", data, tmp_path / "run", *more) == [0, 0]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, TOTAL + 1))
    assert last(tmp_path / "run")[1]["rollbacks"] == 1


def test_weights_that_overflow_turn_all_ranks_back(data, tmp_path):
    """Rank 0 finds it while it saves, the others are told."""

    class Broken(numpy_learner.Learner):
        broken = 0

        def step(self, batches, values):
            result = super().step(batches, values)
            if self.steps == PER_EPOCH and not self.broken:
                self.broken = 1
                self.values["decoder_pred.bias"] = self.values["decoder_pred.bias"] * np.float32(np.nan)
            return result

    def make(recipe, arrays, *, processes, **rest):
        return Broken(recipe, arrays, processes)

    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    assert run_together(2, "mae", data, tmp_path / "run", *more, make=make) == [0, 0]
    assert last(tmp_path / "run")[1]["rollbacks"] == 1


def test_text_is_shared():
    def one(processes: Threads) -> list[str]:
        return [share(processes, text if processes.rank == 0 else "mine") for text in ("", "a", "größer\n")]

    assert together(3, one) == [["", "a", "größer\n"]] * 3
