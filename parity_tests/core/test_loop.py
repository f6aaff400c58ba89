"""The loop, driven by the numpy learner: what it records and keeps, exact resumption, several ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triport.core.backend.learner import share
from triport.core.errors import UserError
from triport.core.model import schedule
from triport.core.record import checkpoint
from triport.core.run import initial, loop, run
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.parity_tests.fixtures.toy import EPOCHS, PER_EPOCH, TOTAL, assert_same_run, go, last, metrics, whole

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- a run from beginning to end
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_every_step_and_epoch_is_recorded(kind):
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


def test_the_learner_learns():
    """Otherwise equal losses would say nothing."""
    for kind in ("moco", "mae", "finetune"):
        losses = [line["loss"] for line in metrics(whole(kind), "epoch") if line["epoch"]]
        assert losses[-1] < 0.97 * losses[0], kind
    assert len({line["loss"] for line in metrics(whole("moco"))}) == TOTAL


def test_checkpoints_of_a_finished_run():
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


def test_keeping_and_saving_follow_the_recipe(tmp_path):
    assert go("mae", tmp_path / "run", "epochs=6", "monitor.save_every=2", "monitor.keep=2") == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best", "epoch_4", "epoch_6", "last"]


def test_scores_come_when_the_recipe_says(tmp_path):
    assert go("mae", tmp_path / "a", "epochs=5", "monitor.knn_every=2") == 0
    assert [line["epoch"] for line in metrics(tmp_path / "a", "epoch") if "knn" in line] == [0, 2, 4, 5]
    assert [line["epoch"] for line in metrics(tmp_path / "a", "epoch") if "spread" in line] == [0, 1, 2, 3, 4, 5]
    assert go("finetune", tmp_path / "b", "epochs=5", "monitor.evaluate_every=2") == 0
    assert [line["epoch"] for line in metrics(tmp_path / "b", "epoch") if "top1" in line] == [2, 4, 5]


def test_long_runs_record_fewer_steps(tmp_path, monkeypatch):
    assert go("mae", tmp_path / "a", "--log-steps", "4") == 0
    assert [line["step"] for line in metrics(tmp_path / "a")] == [4, 8, 12, 16]
    monkeypatch.setattr(loop, "LINES", 6)
    assert go("mae", tmp_path / "b", "--stop-after-steps", "8") == 0
    assert go("mae", tmp_path / "b", "--resume") == 0
    assert [line["step"] for line in metrics(tmp_path / "b")] == [3, 6, 9, 12, 15, 18]
    assert metrics(tmp_path / "b", "epoch") == metrics(whole("mae"), "epoch")


# ---------------------------------------------------------------- resume
@pytest.mark.parametrize("accumulate", ["1", "4"])
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
@pytest.mark.parametrize("stops", [[1], [5, 6, 7], [8, 13, 17], [12]])
def test_a_run_in_parts_is_the_run_in_one(tmp_path, kind, accumulate, stops):
    """In the middle of an epoch, at its end, after it, several times, with momentum buffers and accumulation."""
    more = ["--accumulate", accumulate]
    assert go(kind, tmp_path / "run", *more, "--stop-after-steps", str(stops[0])) == 0
    for stop in [*stops[1:], TOTAL]:
        assert last(tmp_path / "run")[1]["step"] < stop
        assert go(kind, tmp_path / "run", *more, "--resume", "--stop-after-steps", str(stop)) == 0
    assert_same_run(whole(kind, *more), tmp_path / "run")


def test_a_resumed_run_needs_no_recipe_and_finds_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert go("mae", None, "--stop-after-steps", "4") == 0
    words = ["--resume", "runs/tiny-test_mae_vit-1", "--data", str(toy.shared_data())]
    assert run.pretrain(words, backend=numpy_learner.BACKEND) == 0
    assert_same_run(whole("mae"), tmp_path / "runs" / "tiny-test_mae_vit-1")
    assert go("mae", None, "--stop-after-steps", "4") == 0  # a second folder, which the next line finds
    assert go("mae", None, "--resume") == 0
    assert_same_run(whole("mae"), tmp_path / "runs" / "tiny-test_mae_vit-2")


def test_an_older_checkpoint_can_be_gone_on_from(tmp_path):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    task = ["--resume", str(folder / "checkpoints" / "epoch_1"), "--data", str(toy.shared_data())]
    assert run.pretrain(task, backend=numpy_learner.BACKEND) == 0
    assert_same_run(whole("mae"), folder)


def test_resuming_a_finished_run_does_nothing_new(tmp_path):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    (folder / "encoder.safetensors").unlink()
    assert go("mae", folder, "--resume") == 0
    assert_same_run(whole("mae"), folder)
    assert (folder / "encoder.safetensors").is_file()


def test_accumulation_is_one_gradient_for_mae_and_fewer_negatives_for_moco(tmp_path, capsys):
    one, four = metrics(whole("mae")), metrics(whole("mae", "--accumulate", "4"))
    np.testing.assert_allclose([line["loss"] for line in four], [line["loss"] for line in one], rtol=1e-5)
    capsys.readouterr()
    assert go("moco", tmp_path / "a", "--micro-batch", "4", "--stop-after-steps", "1") == 0
    printed = capsys.readouterr().out
    assert "batch 16 = 1 processes x 4 micro-batches x 4" in printed and "4 T ln(4)" in printed
    assert "accumulation does not add negatives" in printed
    assert go("moco", tmp_path / "b", "--stop-after-steps", "1") == 0
    printed = capsys.readouterr().out
    assert "4 T ln(16)" in printed and "negatives" not in printed


def test_checkpoints_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save

    def note(folder, arrays, state):
        saved.append(state["step"])
        save(folder, arrays, state)

    monkeypatch.setattr(checkpoint, "save", note)
    assert go("mae", tmp_path / "a", "--save-steps", "4") == 0
    assert saved == [0, 4, 6, 8, 12, 16, 18]
    saved.clear()
    assert go("mae", tmp_path / "b", "--save-minutes", "0") == 0
    assert saved == [0, 6, 12, 18]
    saved.clear()
    assert go("mae", tmp_path / "c", "--save-minutes", "1e-9") == 0
    assert saved == list(range(TOTAL + 1))


# ---------------------------------------------------------------- several ranks
def run_together(world: int, kind: str, out: Path, *more: str, make=None) -> list[int]:
    def one(processes: Threads) -> int:
        backend = run.Backend("numpy", lambda device: processes, make or numpy_learner.make)
        return go(kind, out, *more, backend=backend)

    return run_ranks(world, one)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_ranks_together_are_one_process(tmp_path, world, kind):
    # Mixup's partners are found in the micro-batch, so they change with the number of ranks
    more = ["mix.mixup=0", "mix.cutmix=0"] if kind == "finetune" else []
    assert run_together(world, kind, tmp_path / "run", *more) == [0] * world
    one, many = metrics(whole(kind, *more)), metrics(tmp_path / "run")
    assert [line["step"] for line in many] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose([line["loss"] for line in many], [line["loss"] for line in one], rtol=1e-4)
    for mine, other in zip(metrics(tmp_path / "run", "epoch"), metrics(whole(kind, *more), "epoch"), strict=True):
        assert mine.keys() == other.keys()
        for name in ("top1", "top5", "mean_per_class", "knn"):
            if name in mine:
                assert mine[name] == pytest.approx(other[name], abs=1.01 / 40), name  # roundings may turn one image


def test_ranks_that_begin_with_different_weights_are_reported():
    def message(step: float):
        def one(processes: Threads) -> str:
            try:
                initial.check_equal({"a": np.ones(3), "b": np.full((), step * processes.rank)}, processes)
            except UserError as error:
                return str(error)
            return ""

        return run_ranks(2, one)

    assert message(0.0) == ["", ""]
    assert all("the processes begin with different weights: give all of them the same" in line for line in message(1.0))


def test_ranks_resume_exactly_from_the_middle_of_an_epoch(tmp_path):
    assert run_together(2, "moco", tmp_path / "whole", "--accumulate", "2") == [0, 0]
    assert run_together(2, "moco", tmp_path / "parts", "--accumulate", "2", "--stop-after-steps", "8") == [0, 0]
    assert run_together(2, "moco", tmp_path / "parts", "--accumulate", "2", "--resume") == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_number_of_ranks_may_go_on_and_it_is_reported(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "--stop-after-steps", "8") == 0
    capsys.readouterr()
    assert run_together(2, "mae", tmp_path / "run", "--resume") == [0, 0]
    printed = capsys.readouterr().out
    assert "resumed from" in printed and "processes 1 -> 2" in printed and printed.count("resumed from") == 1


def test_ranks_roll_back_together(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "9")
    more = ["--save-steps", "4", "--on-nonfinite", "rollback"]
    assert run_together(2, "moco", tmp_path / "run", *more) == [0, 0]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, TOTAL + 1))
    assert last(tmp_path / "run")[1]["rollbacks"] == 1


def test_weights_that_overflow_turn_all_ranks_back(tmp_path):
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
    assert run_together(2, "mae", tmp_path / "run", *more, make=make) == [0, 0]
    assert last(tmp_path / "run")[1]["rollbacks"] == 1


def test_text_is_shared():
    def one(processes: Threads) -> list[str]:
        return [share(processes, text if processes.rank == 0 else "mine") for text in ("", "a", "größer\n")]

    assert run_ranks(3, one) == [["", "a", "größer\n"]] * 3
