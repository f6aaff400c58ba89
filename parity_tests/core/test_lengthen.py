"""A run that is resumed with more epochs: the schedule of the new length, said and recorded, and nothing lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from triport.core import atomic
from triport.core.model import schedule
from triport.core.record import checkpoint
from triport.core.run import loop, run
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.numpy_learner import BACKEND
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.parity_tests.fixtures.toy import PER_EPOCH, TOTAL, failed, go, last, metrics, whole

LONGER = 5  # epochs


def resolved(folder: Path) -> Any:
    return recipes.load(str(folder / "recipe.toml"))


@pytest.fixture
def probed(tmp_path: Path) -> list[str]:
    """What a linear probe starts from."""
    return ["--weights", str(whole("moco") / "encoder.safetensors")]


@pytest.mark.parametrize("kind", ["moco", "mae", "finetune", "linear"])
def test_a_finished_run_goes_on_by_the_schedule_of_the_new_length(tmp_path, capsys, kind, probed):
    folder, more = tmp_path / "run", probed if kind == "linear" else []
    assert go(kind, folder, *more) == 0
    before, ended = resolved(folder), last(folder)
    encoder = (folder / "encoder.safetensors").read_bytes() if kind in ("moco", "mae") else b""
    capsys.readouterr()
    assert go(kind, folder, *more, "--epochs", str(LONGER), "--resume") == 0
    after, (_, state) = resolved(folder), last(folder)
    assert (state["step"], state["closed"]) == (LONGER * PER_EPOCH, LONGER) and after.schedule.epochs == LONGER
    # every step follows the schedule of the length that the run had when it was made
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, LONGER * PER_EPOCH + 1))
    for line in lines:
        wanted = schedule.at(before if line["step"] <= TOTAL else after, line["step"] - 1, PER_EPOCH)
        assert (line["lr"], line["momentum"]) == tuple(wanted)
    # the jump is said with its figures
    old, new = schedule.at(before, TOTAL - 1, PER_EPOCH), schedule.at(after, TOTAL, PER_EPOCH)
    printed = capsys.readouterr().out
    (line,) = (text for text in printed.splitlines() if "lengthened" in text)
    assert f"lengthened from 3 to {LONGER} epochs at step {TOTAL}:" in line
    jump = f"rises from {old.lr:.3g} to {new.lr:.3g}" if kind != "linear" else f"stays {old.lr:.3g}"
    assert f"the learning rate {jump}" in line and "the warm-up is 1 epochs as before" in line
    assert (f"momentum goes from {old.momentum:.6g} to {new.momentum:.6g}" in line) == (kind == "moco")
    assert line in (folder / "train.log").read_text()
    # and recorded, and what the shorter run left is still there
    (record,) = state["lengthened"]
    assert (record["step"], record["epochs"], record["lr"]) == (TOTAL, [3, LONGER], [old.lr, new.lr])
    assert recipes.load(str(folder / "recipe_3.toml")) == before
    assert f"# Lengthened from 3 to {LONGER} epochs at step {TOTAL}." in (folder / "recipe.toml").read_text()
    arrays, saved = last(folder / "checkpoints" / "end_3")
    assert arrays == ended[0] and saved["recipe"] == ended[1]["recipe"] and "end_3" in printed
    if encoder:
        assert (folder / "encoder_3.safetensors").read_bytes() == encoder
        assert (folder / "encoder.safetensors").read_bytes() != encoder


def test_what_a_lengthened_run_computes_is_the_loop_at_the_new_values(tmp_path, monkeypatch):
    """Equal to a run that was made with the new length from the start, but was given the old schedule until then."""
    folder, off = tmp_path / "run", "monitor.probe=false"  # the probe has a schedule of its own
    assert go("moco", folder, off) == 0
    assert go("moco", folder, off, "--epochs", str(LONGER), "--resume") == 0
    old = resolved(whole("moco"))

    def spliced(recipe: Any, step: int, per_epoch: int) -> schedule.Values:
        return schedule.at(old if step < TOTAL else recipe, step, per_epoch)

    monkeypatch.setattr(loop, "schedule", type("Spliced", (), {"at": staticmethod(spliced)}))
    assert go("moco", tmp_path / "spliced", off, "--epochs", str(LONGER)) == 0
    assert metrics(folder) == metrics(tmp_path / "spliced")
    assert last(folder)[0] == last(tmp_path / "spliced")[0]


@pytest.mark.parametrize("stop", [1, 8, PER_EPOCH])
def test_an_unfinished_run_can_be_lengthened_and_stopped_again(tmp_path, capsys, stop):
    folder = tmp_path / "run"
    assert go("moco", folder, "--stop-after-steps", str(stop)) == 0
    capsys.readouterr()
    more = ["--epochs", str(LONGER), "--resume"]
    assert go("moco", folder, *more, "--stop-after-steps", str(stop + 1)) == 0
    assert f"lengthened from 3 to {LONGER} epochs at step {stop}" in capsys.readouterr().out
    assert not (folder / "checkpoints" / "end_3").exists() and not (folder / "encoder_3.safetensors").exists()
    assert go("moco", folder, *more) == 0
    assert "lengthened" not in capsys.readouterr().out  # it is that long already
    assert [entry["step"] for entry in last(folder)[1]["lengthened"]] == [stop]
    assert last(folder)[1]["step"] == LONGER * PER_EPOCH


def test_a_run_in_its_warm_up_goes_on_with_the_same_learning_rate(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "--stop-after-steps", "3") == 0
    assert go("mae", tmp_path / "run", "--epochs", str(LONGER), "--resume") == 0
    rates = [line["lr"] for line in metrics(tmp_path / "run")]
    assert rates[:PER_EPOCH] == [line["lr"] for line in metrics(whole("mae"))][:PER_EPOCH]


def test_a_run_can_be_lengthened_twice_and_nothing_of_either_length_is_lost(tmp_path, capsys):
    folder = tmp_path / "run"
    for epochs in (3, 4, 5):
        assert go("mae", folder, "--epochs", str(epochs), *(["--resume"] if epochs > 3 else [])) == 0
    assert [entry["epochs"] for entry in last(folder)[1]["lengthened"]] == [[3, 4], [4, 5]]
    for epochs in (3, 4):
        assert last(folder / "checkpoints" / f"end_{epochs}")[1]["closed"] == epochs
        assert recipes.load(str(folder / f"recipe_{epochs}.toml")).schedule.epochs == epochs
        assert (folder / f"encoder_{epochs}.safetensors").is_file()
    assert len(re.findall("# Lengthened", (folder / "recipe.toml").read_text())) == 2


def test_a_run_that_is_killed_right_after_it_was_lengthened_is_the_longer_run(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "run", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
        assert go("mae", folder, "--epochs", str(LONGER), "--resume") == 1
    state = last(folder)[1]
    assert len(state["lengthened"]) == 1 and state["closed"] == 3
    capsys.readouterr()
    assert run.pretrain(["--resume", str(folder), "--data", str(toy.shared_data())], backend=BACKEND) == 0
    assert last(folder)[1]["closed"] == LONGER and len(last(folder)[1]["lengthened"]) == 1
    assert last(folder / "checkpoints" / "end_3")[1]["closed"] == 3


def test_the_recipe_need_not_be_named(tmp_path):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    words = ["--resume", str(folder), "--epochs", str(LONGER), "--data", str(toy.shared_data()), "--workers", "0"]
    assert run.pretrain(words, backend=BACKEND) == 0
    assert last(folder)[1]["closed"] == LONGER


def test_a_run_can_be_lengthened_from_an_older_checkpoint(tmp_path):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    ended = last(folder)
    older = str(folder / "checkpoints" / "epoch_1")
    assert go("mae", folder, "--epochs", str(LONGER), "--resume", older) == 0
    assert last(folder / "checkpoints" / "end_3") == ended
    assert [entry["step"] for entry in last(folder)[1]["lengthened"]] == [PER_EPOCH]


# ---------------------------------------------------------------- what stays refused
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--epochs", "2"], r"schedule\.epochs was 3 and is now 2; a run can be lengthened but not shortened\. Resume"),
        (["--epochs", "5", "lr=0.1"], r"optimizer\.lr was 0\.2 and is now 0\.1\. Resume with the same recipe"),
        (["--epochs", "5", "warmup=2"], r"schedule\.warmup_epochs was 1(\.0)? and is now 2"),
        (["--epochs", "5", "batch=32"], r"batch was 16 and is now 32"),
        (["--seed", "7"], r"seed was 0 and is now 7"),
    ],
)
def test_nothing_but_the_length_may_change(tmp_path, capsys, more, wanted):
    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    capsys.readouterr()
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert re.search(wanted, failed(capsys, go("mae", folder, *more, "--resume")))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("record", [3, [3], [{}], {"epochs": [3, 4]}])
def test_a_record_that_cannot_be_one_is_refused(tmp_path, capsys, record):
    folder = tmp_path / "run"
    assert go("mae", folder, "--stop-after-steps", "8") == 0
    checkpoint.restate(folder / "checkpoints" / "last", {**last(folder)[1], "lengthened": record})
    capsys.readouterr()
    assert "has a wrong 'lengthened'" in failed(capsys, go("mae", folder, "--resume"))


def test_a_disk_without_links_and_a_full_one(tmp_path, capsys, monkeypatch):
    def refuse(*ignored: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    assert go("mae", folder) == 0
    ended = last(folder)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "link", refuse)
        patch.setattr(atomic.shutil, "copyfile", refuse)
        line = failed(capsys, go("mae", folder, "--epochs", str(LONGER), "--resume"))
    assert "No space left on device" in line and "--resume" in line
    assert last(folder) == ended
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "link", refuse)
        assert go("mae", folder, "--epochs", str(LONGER), "--resume") == 0
    assert last(folder / "checkpoints" / "end_3") == ended and last(folder)[1]["closed"] == LONGER


def test_several_ranks_lengthen_as_one_process_does(tmp_path, capsys):
    folder, more = tmp_path / "run", ["--epochs", str(LONGER), "--resume"]
    assert go("mae", folder) == 0
    capsys.readouterr()

    def one(processes: Threads) -> int:
        return go("mae", folder, *more, backend=run.Backend("numpy", lambda device: processes, numpy_learner.make))

    assert run_ranks(2, one) == [0, 0]
    assert capsys.readouterr().out.count("lengthened from") == 1
    after = resolved(folder)
    for line in metrics(folder)[TOTAL:]:
        assert line["lr"] == schedule.at(after, line["step"] - 1, PER_EPOCH).lr
    assert len(last(folder)[1]["lengthened"]) == 1 and last(folder)[1]["closed"] == LONGER
    assert last(folder / "checkpoints" / "end_3")[0] == last(whole("mae"))[0]
