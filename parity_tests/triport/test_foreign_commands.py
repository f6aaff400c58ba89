"""Other projects' files, flags and names at the command line and in Python: shown, started, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from triport import command
from triport.core.spec import aliases, recipe, zoo
from triport.parity_tests.core import test_foreign_libai as lazy
from triport.parity_tests.core import test_foreign_mmpretrain as mm
from triport.parity_tests.fixtures import run_here


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in {**lazy.COMMON, **lazy.PROJECT}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return mm.write(tmp_path)


# ---------------------------------------------------------------- shown
@pytest.mark.parametrize(
    ("file", "words", "fields"),
    [
        ("projects/OWN/configs/moco.py", ["--processes", "4"], {"batch": 16, "schedule.epochs": 30}),
        ("projects/OWN/configs/moco.py", ["train.train_epoch=9", "batch=6"], {"batch": 6, "schedule.epochs": 9}),
        ("moco/moco_8xb6.py", ["-o", "optim_wrapper.optimizer.lr=0.5"], {"optimizer.lr": 0.5, "batch": 48}),
    ],
)
def test_a_foreign_file_is_shown_as_the_recipe_that_it_becomes(
    files: Path, capsys: pytest.CaptureFixture[str], file: str, words: list[str], fields: dict[str, float]
) -> None:
    assert command.main(["recipes", "--from", str(files / file), *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# {Path(file).name} of ")
    (files / "mine.toml").write_text(text)  # what is printed is a recipe's file
    one = recipe.load(str(files / "mine.toml"))
    for dotted, value in fields.items():
        found: object = one
        for part in dotted.split("."):
            found = getattr(found, part)
        assert found == value


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(
    ("task", "words", "printed"),
    [
        ("pretrain", ["moco/moco_8xb6.py", "batch=6"], ["batch = 6", "# moco_8xb6.py of mmpretrain"]),
        (
            "pretrain",
            ["--libai-config", "projects/OWN/configs/masked.py"],
            ["mask_ratio = 0.5", "of LiBai as a recipe"],
        ),
        ("pretrain", ["-a", "vit_small", "-b", "32", "DIR"], ["batch = 32", "options of the run: --data DIR"]),
        ("linear", ["transfer/moco_vit_base_linear", "lr=2.0"], ["lr = 2.0", 'task = "linear"']),
        ("pretrain", ["tiny/test_mae_vit", "seed=7", "--seed", "0"], ["\nseed = 0\n"]),
        ("pretrain", ["mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k"], ['name = "moco_v3/vit_base_300ep"']),
    ],
)
def test_show_prints_the_recipe_and_starts_nothing(
    files: Path, task: str, words: list[str], printed: list[str]
) -> None:
    answer = run_here.triport([task, *words, "--show", "--backend", "torch"], files)
    assert answer.returncode == 0, answer.stderr
    assert all(part in answer.stdout for part in printed) and not (files / "runs").exists()


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["pretrain", "projects/OWN/configs/tuned.py"], "is for the task 'finetune': use `triport finetune`"),
        (["pretrain", "absent.py"], "cannot read absent.py"),
        (
            ["pretrain", "tiny/moco_vit_tiny", "--nproc_per_node", "2"],
            "--processes N starts several, or a launcher that",
        ),
        (["pretrain", "--libai-config"], "--libai-config wants a file after it"),
        (["pretrain", "--cfg-options", "a=b"], "--cfg-options goes with --mmpretrain-config FILE"),
        (["pretrain", "--mmpretrain-config", "a.py", "-o", "b=c"], "-o is of PASSL"),
        (["pretrain", "-a", "vit_bas", "D"], "Did you mean 'vit_base'?"),
    ],
)
def test_mistakes_are_one_line(files: Path, words: list[str], printed: str) -> None:
    answer = run_here.backend(f"triport.backends.torch.{words[0]}", words[1:], files)
    assert answer.returncode == 2 and printed in answer.stderr and answer.stderr.count("\n") == 1


# ---------------------------------------------------------------- mmpretrain's commands
@pytest.mark.framework("torch")
def test_train_and_test_start_what_the_configuration_is_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--backend", "torch", "--show-command"]
    file = str(files / "mae/tuned/vit_4xb6.py")
    assert command.main(["train", file, "--work-dir", "w", "--amp", *own]) == 0
    line = capsys.readouterr().out
    assert f"triport.backends.torch.finetune {file} --out w --precision bfloat16" in line
    assert command.main(["train", "vit-base-p16_mocov3-pre_8xb128-linear-coslr-90e_in1k", *own]) == 0
    assert "triport.backends.torch.linear vit-base-p16" in capsys.readouterr().out
    assert command.main(["test", file, "w.pth", *own]) == 0
    assert f"triport.backends.torch.evaluate {file} --weights w.pth" in capsys.readouterr().out


# ---------------------------------------------------------------- names
def test_every_alias_names_a_recipe_and_a_model_of_it() -> None:
    for name, alias in aliases.aliases().items():
        one = recipe.load(name)
        assert one.name == alias.recipe and alias.recipe in zoo.find(name).recipes
        epochs = next(
            (int(part[:-1]) for part in name.split("_")[-2].split("-") if part[:-1].isdigit() and part[-1] == "e"), 0
        )
        assert not epochs or one.schedule.epochs == epochs or "linear" in name, name
    assert len(aliases.aliases()) == 6 + 7 + 10 + 16


def test_the_reported_numbers_of_the_other_project_stand_in_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["models", "moco_v3_resnet50_classifier", "mae_vit_huge_classifier"]) == 0
    listing = " ".join(capsys.readouterr().out.split())
    for text in ("resnet50_mocov3-800e-pre_8xb128-linear-coslr-90e_in1k (mmpretrain) 74.4", "(mmpretrain) 86.9"):
        assert text in listing


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["pretrain", "WRONG", "--show-command"], "No recipe 'WRONG'. `triport recipes` lists them"),
        (["linear", "transfer/moco_vit_base_linar", "--show-command"], "Did you mean 'transfer/moco_vit_base_linear'?"),
        (
            ["pretrain", "moco_v3_vit_small", "--show-command"],
            "it is a model, and its recipes are moco_v3/vit_small_300ep",
        ),
        (["evaluate", "transfer/moco_vit_base_linar", "--weights", "w", "--show-command"], "/moco_vit_base_linear'?"),
        (["test", "moco_v3_vit_base_clasifier", "w.pth", "--show-command"], "moco_v3_vit_base_classifier'?"),
        (["train", "WRONG", "--show-command"], "No recipe 'WRONG'. `triport recipes` lists them"),
        (["pretrain", "-a", "vit_bas", "D", "--show-command"], "Did you mean 'vit_base'?"),
        (["finetune", "--model", "vit_bas_patch16", "--show-command"], "Did you mean 'vit_base_patch16'?"),
        (["pretrain", "wrong.yaml", "--show-command"], "wrong.yaml: there is no such file"),
        (["finetune", "--libai-config=wrong.py", "--show-command"], "wrong.py: there is no such file"),
        (["recipes", "mocov3_resnet50_8xb512-amp-coslr-100e_in1"], "coslr-100e_in1k'?"),
        (["models", "mae_vit-base-p16_8xb512-amp-coslr-800e_in1"], "coslr-800e_in1k'?"),
        (["pretrain", "mae_vit_bas", "--show-command"], "Did you mean the model 'mae_vit_base'?"),
    ],
)
def test_wrong_names_are_refused_with_what_is_near(
    capsys: pytest.CaptureFixture[str], words: list[str], printed: str
) -> None:
    assert command.main(words) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.count("\n") == 1
    assert printed in answer.err, answer.err
