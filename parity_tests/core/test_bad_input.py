"""Whatever is wrong is one line that names it, with an exit code, and nothing is overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.run import run
from triport.core.run.fitting import split_batch
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.parity_tests.fixtures.toy import evaluate, failed, go, last, learner_that, metrics, whole


# ---------------------------------------------------------------- folders of other runs
def test_a_run_never_writes_into_another_unless_asked(tmp_path, capsys):
    folder = tmp_path / "run"
    assert go("mae", folder, "--stop-after-steps", "2") == 0
    before = last(folder)
    capsys.readouterr()
    assert "already holds a run" in failed(capsys, go("mae", folder, "--stop-after-steps", "1"))
    assert last(folder) == before
    assert go("mae", folder, "--overwrite", "--stop-after-steps", "1") == 0
    assert f"the run that was in {folder} is now in {folder}.old-1" in capsys.readouterr().out
    assert last(tmp_path / "run.old-1") == before and last(folder)[1]["step"] == 1


def test_a_run_that_failed_before_it_began_is_not_in_the_way(tmp_path, capsys):
    line = failed(capsys, go("finetune", tmp_path / "run", "batch=6", "--accumulate", "2"))
    assert "3 are odd; use a batch that is a multiple of 4" in line
    assert go("finetune", tmp_path / "run", "batch=8", "--accumulate", "2", "--stop-after-steps", "1") == 0


def test_another_recipe_cannot_go_on_and_the_field_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    assert go("mae", folder, "--stop-after-steps", "2") == 0
    capsys.readouterr()
    for more, words in (
        (["lr=0.3"], "optimizer.lr was 0.2 and is now 0.3"),
        (["model.objective.mask_ratio=0.5"], "model.objective.mask_ratio was 0.75 and is now 0.5"),
        (["train.views.0.1.p=0.25"], "train.views.0.1.p was 0.5 and is now 0.25"),
        (["--epochs", "2"], "schedule.epochs was 3 and is now 2; a run can be lengthened but not shortened"),
    ):
        assert words in failed(capsys, go("mae", folder, *more, "--resume"))
    assert "name was 'tiny/test_mae_vit' and is now 'tiny/test_moco_vit'" in failed(
        capsys, go("moco", folder, "--resume")
    )
    assert go("mae", folder, "monitor.knn_every=2", "title=Another", "--resume", "--stop-after-steps", "3") == 0


def test_other_images_cannot_go_on(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "--stop-after-steps", "2") == 0
    capsys.readouterr()
    data = toy.make_data(tmp_path / "data", train=100)
    code = go("mae", tmp_path / "run", "--resume", data=data)
    assert "the run was trained on 96 images, train has 100" in failed(capsys, code)


def test_a_damaged_checkpoint_is_named_with_the_one_to_take_instead(tmp_path, capsys):
    folder = tmp_path / "run"
    assert go("mae", folder, "--stop-after-steps", "8") == 0
    path = folder / "checkpoints" / "last" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    line = failed(capsys, go("mae", folder, "--resume"))
    assert str(path) in line and "damaged" in line
    other = line.split("--resume ")[1].rstrip(".\n")
    assert go("mae", folder, "--resume", other) == 0
    toy.assert_same_run(whole("mae"), folder)


# ---------------------------------------------------------------- what is wrong
WRONG: dict[str, tuple[str, list[str], str]] = {
    "recipe": ("mae", ["tiny/x"], "'tiny/x' is not a key=value override"),
    "field": ("mae", ["optimiser.lr=1"], "unknown field 'optimiser'.*optimizer"),
    "value": ("mae", ["batch=many"], "batch: expected a whole number, got 'many'"),
    "data": ("mae", ["--data", "/nowhere/at/all"], "/nowhere/at/all"),
    "image below patch": ("mae", ["image=2"], "image"),
    "image between patches": ("mae", ["image=10"], "not a multiple of the patch"),
    "channels": ("mae", ["model.encoder.channels=2"], "channels"),
    "batch too large": ("mae", ["batch=97"], "train has 96 images, fewer than one batch of 97. Set batch="),
    "accumulate": ("mae", ["--accumulate", "3"], "--accumulate 3 does not divide the 16 images"),
    "micro-batch": ("mae", ["--micro-batch", "5"], "--micro-batch 5 does not divide the 16 images"),
    "both": ("mae", ["--micro-batch", "4", "--accumulate", "4"], "not allowed with argument"),
    "zero": ("mae", ["--accumulate", "0"], "must be 1 or more"),
    "word": ("mae", ["--workers", "many"], "--workers: invalid whole_number value: 'many'"),
    "option": (
        "mae",
        ["--wokers", "2"],
        r"--wokers 2\. Did you mean '--workers'\? See triport pretrain --help",
    ),
    "option of the launcher": ("mae", ["--procesess", "2"], "Did you mean '--processes'"),
    "option like none": ("mae", ["--quite-another", "2"], r"--quite-another 2\. See triport pretrain --help"),
    "empty data": ("mae", ["--data", ""], "argument --data: is empty: perhaps a variable of the shell is not set"),
    "empty out": ("mae", ["--out="], "argument --out: is empty"),
    "empty resume": ("mae", ["--resume", ""], "argument --resume: is empty"),
    "empty override": ("mae", [""], "is empty"),
    "weights that are not there": ("mae", ["--weights", "x"], "--weights x: is not there"),
    "no weights": ("linear", [], "a linear probe needs an encoder: --weights FILE, or --from-scratch"),
    "missing weights": ("linear", ["--weights", "nowhere.pth"], "--weights nowhere.pth: is not there"),
    "empty folder": ("linear", ["--weights", "/"], "is a folder that holds no checkpoint"),
    "nothing to resume": ("mae", ["--resume", "/nowhere/at/all"], "cannot resume from /nowhere/at/all"),
    "resume and overwrite": ("mae", ["--resume", "--overwrite"], "give one of them"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_one_line_and_leaves_nothing(tmp_path, capsys, case):
    kind, more, words = WRONG[case]
    line = failed(capsys, go(kind, tmp_path / "run", *more))
    assert re.search(words, line), line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_gets_a_hint(tmp_path, capsys):
    line = failed(
        capsys, run.pretrain(["tiny/test_moco_vitt", "--out", str(tmp_path / "run")], backend=numpy_learner.BACKEND)
    )
    assert "Did you mean 'tiny/test_moco_vit'?" in line
    assert "name a recipe" in failed(capsys, run.pretrain([], backend=numpy_learner.BACKEND))
    assert "name what to evaluate" in failed(capsys, run.evaluate([], backend=numpy_learner.BACKEND))


def test_the_task_must_be_the_recipes(tmp_path, capsys):
    code = run.finetune(["tiny/test_mae_vit", "--out", str(tmp_path / "run")], backend=numpy_learner.BACKEND)
    assert "tiny/test_mae_vit is for the task 'pretrain': use `triport pretrain`" in failed(capsys, code)


def test_a_batch_smaller_than_the_processes():
    recipe = recipes.load("tiny/test_mae_vit", ["batch=2"])
    for world, words in ((4, "batch 2 cannot be shared by 4 processes. Set batch=4"), (3, "cannot be shared by 3")):
        with pytest.raises(UserError, match=words):
            split_batch(recipe, world)
    assert split_batch(recipe, 2) == 1
    assert split_batch(recipe, 1, micro_batch=1) == 2


def test_one_class_only(tmp_path, capsys):
    data = toy.make_data(tmp_path / "data", classes=1)
    line = failed(capsys, go("finetune", tmp_path / "run", data=data))
    assert "one class only" in line
    assert not (tmp_path / "run").exists()


def test_images_without_labels_can_be_pretrained_on_and_it_is_reported(tmp_path, capsys):
    folder = toy.make_data(tmp_path / "data")
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=np.load(folder / f"{split}.npz")["images"])
    assert go("mae", tmp_path / "run", data=folder) == 0
    assert "so no kNN" in capsys.readouterr().out
    (line, *_) = metrics(tmp_path / "run", "epoch")
    assert "spread" in line and "knn" not in line
    assert "no labels" in failed(capsys, go("finetune", tmp_path / "other", data=folder))


def test_pretraining_without_held_out_images(tmp_path, capsys):
    folder = toy.make_data(tmp_path / "data")
    (folder / "test.npz").unlink()
    assert go("mae", tmp_path / "run", data=folder) == 0
    assert "no held-out images" in capsys.readouterr().out
    assert "spread" in metrics(tmp_path / "run", "epoch")[-1]
    assert "val.npz" in failed(capsys, go("finetune", tmp_path / "other", data=folder))


def test_weights_of_another_architecture(tmp_path, capsys):
    for more in (["model.encoder.width=64"], ["model.encoder.depth=3"], ["model.encoder.heads=4"]):
        code = go("linear", tmp_path / "run", "--weights", str(whole("moco") / "encoder.safetensors"), *more)
        assert "encoder.safetensors" in failed(capsys, code)
    assert list(tmp_path.iterdir()) == []


def test_weights_cut_short(tmp_path, capsys):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes((whole("moco") / "encoder.safetensors").read_bytes()[:-100])
    assert str(path) in failed(capsys, go("linear", tmp_path / "run", "--weights", str(path)))
    assert str(path) in failed(capsys, evaluate(str(path)))


def test_a_file_that_names_no_recipe_is_asked_for_one(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04\xff")
    assert "name a recipe, and the file with --weights" in failed(capsys, evaluate(str(path)))


def test_traceback_on_demand(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "batch=97", "--traceback") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") and printed.splitlines()[-1].startswith(
        "triport: error: train has 96 images"
    )


def test_a_fault_of_the_program_is_one_line_and_the_log_has_the_rest(tmp_path, capsys):
    def step(self, batches, values):
        raise RuntimeError("boom\nand more")

    line = failed(capsys, go("mae", tmp_path / "run", backend=learner_that(step=step)), 1)
    log = tmp_path / "run" / "train.log"
    assert line == f"triport: error: RuntimeError: boom; the traceback is at the end of {log}.\n"
    assert "in step" in log.read_text() and "and more" in log.read_text()


def test_a_full_disk_stops_with_a_line_and_the_run_goes_on_when_there_is_space(tmp_path, capsys, monkeypatch):
    write = checkpoint.save_file
    full = [False]

    def limited(arrays, path, words=None):
        if full[0]:
            raise OSError(28, "No space left on device")
        write(arrays, path, words)

    def step(self, batches, values):
        full[0] = self.steps == 9
        return numpy_learner.Learner.step(self, batches, values)

    monkeypatch.setattr(checkpoint, "save_file", limited)
    folder = tmp_path / "run"
    line = failed(capsys, go("mae", folder, "--save-steps", "2", backend=learner_that(step=step)))
    assert "No space left on device" in line and "intact" in line and "--resume" in line
    assert last(folder)[1]["step"] == 8
    full[0] = False
    assert go("mae", folder, "--resume") == 0
    toy.assert_same_run(whole("mae"), folder)


def test_an_error_on_any_rank_ends_the_job_with_its_line(tmp_path, capsys, monkeypatch):
    codes = []

    class Gone(BaseException):
        pass

    def leave(code):
        codes.append(code)
        raise Gone

    monkeypatch.setattr(os, "_exit", leave)

    def one(processes: Threads) -> int:
        def make(recipe, arrays, **_):
            learner = numpy_learner.Learner(recipe, arrays, processes)
            if processes.rank == 1:
                learner.step = lambda batches, values: 1 / 0  # type: ignore[assignment, return-value]
            return learner

        return go("mae", tmp_path / "run", backend=run.Backend("numpy", lambda device: processes, make))

    with pytest.raises(Gone):
        run_ranks(2, one)
    printed = capsys.readouterr().err
    log = tmp_path / "run" / "train.log"
    assert (
        f"triport: rank 1: error: ZeroDivisionError: division by zero; the traceback is at the end of {log}." in printed
    )
    assert codes[0] == 1 and "rank 1\nTraceback" in log.read_text()


BOMBS = ["a" + ".a" * 90_000 + " = 1", "a = " + "[" * 900 + "]" * 900, "#" * 70_000, "x = 1\n" * 20_000]


@pytest.mark.parametrize("text", BOMBS, ids=["dots", "brackets", "comment", "lines"])
def test_a_recipe_that_a_file_carries_is_bounded(text: str) -> None:
    with pytest.raises(UserError, match=r"my\.toml( is not a recipe| is not valid TOML|: Unknown field)"):
        recipes.parse(text, Path("my.toml"))
