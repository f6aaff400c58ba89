"""Class names: matched by name and never by place, in scoring, in going on, and in what a run leaves for others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from triport.core.data.classes import by_name, class_rows, read_class_names
from triport.core.data.datasets import open_dataset
from triport.core.data.fingerprint import fingerprint
from triport.core.errors import UserError
from triport.core.record import checkpoint, export
from triport.core.run import run
from triport.core.spec import DataSpec
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.numpy_learner import BACKEND
from triport.parity_tests.fixtures.toy import failed, go

CLASSES = 12


def folders(root: Path, names: list[str], splits: tuple[str, ...] = ("train", "val"), only: int = CLASSES) -> Path:
    """Write the toy images as root/<split>/<names[class]>/<i>.png, of the first `only` classes."""
    source = toy.make_data(root.with_name(f"{root.name}-arrays"), classes=CLASSES)
    for split in splits:
        whole = np.load(source / f"{'train' if split == 'train' else 'test'}.npz")
        for index, (image, label) in enumerate(zip(whole["images"], whole["labels"], strict=True)):
            if label < only:
                path = root / split / names[label] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(path)
    return root


def evaluate(folder: Path, data: Path, *more: str) -> int:
    """Evaluate a run on data and return the exit code."""
    return run.evaluate([str(folder), "--data", str(data), "--workers", "0", *more], backend=BACKEND)


def top1(text: str) -> float:
    """The accuracy that an evaluation printed."""
    found = re.search(r"top1 ([\d.]+) %", text)
    assert found is not None, text
    return float(found[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run trained on arrays with labels 0 to 11, and its data."""
    place = tmp_path_factory.mktemp("trained")
    data = toy.make_data(place / "arrays", classes=CLASSES)
    assert go("finetune", place / "run", data=data) == 0
    return place / "run", data


# ---------------------------------------------------------------- rows of names
def test_rows_are_found_by_name():
    assert class_rows(["a", "b", "c"], ["c", "a"], "x").tolist() == [2, 0]
    numbers = [str(n) for n in range(12)]
    assert class_rows(numbers, sorted(numbers), "x").tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert class_rows(sorted(numbers), numbers, "x").tolist() == [sorted(numbers).index(n) for n in numbers]


def test_unknown_names_are_listed():
    with pytest.raises(UserError, match=r"2 of 3 classes .* not trained on: 'dogg', 'x'\. Did you mean 'dog'\?"):
        class_rows(["cat", "dog"], ["cat", "dogg", "x"], "mine")
    with pytest.raises(UserError, match=r"'a0', 'a1', 'a2', 'a3', 'a4' and 15 more"):
        class_rows(["cat", "dog"], [f"a{n}" for n in range(20)], "mine")
    with pytest.raises(UserError, match="two classes named 'crane'"):
        class_rows(["crane", "crane", "dog"], ["dog"], "mine")
    assert class_rows(["crane", "crane"], ["crane", "crane"], "mine").tolist() == [0, 1]


# ---------------------------------------------------------------- scoring
def test_folders_of_numbers_score_as_the_same_images_in_arrays(trained, tmp_path, capsys):
    folder, data = trained
    assert evaluate(folder, data) == 0
    wanted = top1(capsys.readouterr().out)
    images = folders(tmp_path / "numbers", [str(n) for n in range(CLASSES)])
    assert evaluate(folder, images, "--out", str(tmp_path / "scores.json")) == 0
    assert top1(capsys.readouterr().out) == wanted > 100 / CLASSES
    assert json.loads((tmp_path / "scores.json").read_text())["classes"] == [str(n) for n in range(CLASSES)]


def test_unknown_classes_are_refused(trained, tmp_path, capsys):
    images = folders(tmp_path / "named", [f"kind {n}" for n in range(CLASSES)], ("val",))
    line = failed(capsys, evaluate(trained[0], images))
    assert "12 of 12 classes that the model was not trained on: 'kind 0'" in line and "'0', '1', '2'" in line


def test_some_of_the_classes_are_scored_on_their_own_rows(trained, tmp_path, capsys):
    folder, data = trained
    images = folders(tmp_path / "part", [str(n) for n in range(CLASSES)], ("val",), only=4)
    assert evaluate(folder, images, "--out", str(tmp_path / "all.json")) == 0
    printed = capsys.readouterr().out
    assert "4 of 12 classes, answers among all 12" in printed
    assert evaluate(folder, images, "--restrict", "--out", str(tmp_path / "own.json")) == 0
    restricted = capsys.readouterr().out
    assert "4 of 12 classes, answers among these 4" in restricted and top1(restricted) >= top1(printed)
    every, own = (json.loads((tmp_path / name).read_text()) for name in ("all.json", "own.json"))
    assert (every["answers_among"], own["answers_among"]) == ("all", "these")
    assert every["evaluated"] == own["evaluated"] == ["0", "1", "2", "3"]
    table = np.array(own["confusion"])
    assert table.shape == (12, 12) and table[:4, :4].sum() == table.sum() == own["images"]
    assert evaluate(folder, data, "--out", str(tmp_path / "whole.json")) == 0
    whole = np.array(json.loads((tmp_path / "whole.json").read_text())["confusion"])
    assert np.array_equal(np.array(every["confusion"])[:4], whole[:4])
    capsys.readouterr()
    assert "--restrict chooses among" in failed(capsys, evaluate(folder, data, "--knn", "--restrict"))


def test_names_for_people(trained, tmp_path, capsys):
    lines = tmp_path / "names.txt"
    lines.write_text("\ufeff0 tench, Tinca tinca\r\n1\tgoldfish\n", encoding="utf-8")
    assert read_class_names(lines) == {"0": "tench, Tinca tinca", "1": "goldfish"}
    index = tmp_path / "index.json"
    index.write_text('{"0": ["n01440764", "tench"]}')
    assert read_class_names(index) == {"n01440764": "tench"}
    out = tmp_path / "scores.json"
    assert evaluate(trained[0], trained[1], "--class-names", str(lines), "--out", str(out)) == 0
    assert "weakest classes: " in capsys.readouterr().out
    assert json.loads(out.read_text())["readable"][:3] == ["tench, Tinca tinca", "goldfish", "2"]
    for text in ("word", '{"0": [1, 2]}', '{"0"', "[" * 9 + "\n"):
        index.write_text(text)
        with pytest.raises(UserError, match="--class-names"):
            read_class_names(index)


# ---------------------------------------------------------------- going on
def test_a_run_does_not_go_on_with_a_renamed_class(tmp_path, capsys):
    images = folders(tmp_path / "images", [f"kind {n}" for n in range(CLASSES)])
    assert go("finetune", tmp_path / "run", "--stop-after-steps", "8", data=images) == 0
    for split in ("train", "val"):
        (images / split / "kind 3").rename(images / split / "sort 3")
    capsys.readouterr()
    for more in ([], ["--data-changed"]):
        line = failed(capsys, go("finetune", tmp_path / "run", "--resume", *more, data=images))
        assert "1 of 12 classes that the model was not trained on: 'sort 3'" in line and "'kind 3'" in line


def test_a_run_goes_on_with_other_images_only_when_asked(tmp_path, capsys):
    images = folders(tmp_path / "images", [f"kind {n}" for n in range(CLASSES)])
    assert go("finetune", tmp_path / "run", "--stop-after-steps", "8", data=images) == 0
    moved = tmp_path / "elsewhere"
    shutil.move(images, moved)
    assert go("finetune", tmp_path / "run", "--resume", "--stop-after-steps", "9", data=moved) == 0
    first = next((moved / "train" / "kind 3").iterdir())
    first.write_bytes(first.read_bytes() + b"\0")
    capsys.readouterr()
    line = failed(capsys, go("finetune", tmp_path / "run", "--resume", data=moved))
    assert "other images than the run was trained on (names, sizes or classes differ)" in line
    assert "--data-changed" in line
    assert go("finetune", tmp_path / "run", "--resume", "--data-changed", data=moved) == 0
    assert "going on, as --data-changed says" in capsys.readouterr().out


def test_other_images_that_change_the_epoch_cannot_go_on_at_all(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "--stop-after-steps", "2") == 0
    data = toy.make_data(tmp_path / "data", train=112)
    capsys.readouterr()
    line = failed(capsys, go("mae", tmp_path / "run", "--resume", "--data-changed", data=data))
    assert "an epoch would have 7 steps and not 6" in line


# ---------------------------------------------------------------- fingerprints and files
def test_a_fingerprint_is_of_names_sizes_labels_and_pixels(tmp_path):
    spec = DataSpec(name="mine")

    def now(path: Path) -> str:
        return fingerprint(open_dataset(str(path), "train", spec, 1))

    images = folders(tmp_path / "images", [str(n) for n in range(CLASSES)])
    before = now(images)
    shutil.copytree(images, tmp_path / "copy")
    assert now(tmp_path / "copy") == before
    first = next((images / "train" / "0").iterdir())
    first.rename(first.with_name("other.png"))
    assert now(images) != before
    arrays = toy.make_data(tmp_path / "arrays")
    before = now(arrays)
    content = dict(np.load(arrays / "train.npz"))
    content["images"][5, 0, 0] ^= 1
    np.savez(arrays / "train.npz", **content)
    assert now(arrays) != before


def test_labels_follow_the_names(tmp_path):
    images = folders(tmp_path / "images", [str(n) for n in range(CLASSES)])
    dataset = open_dataset(str(images), "train", DataSpec(name="mine"), 1)
    moved = by_name(dataset, [str(n) for n in range(CLASSES)])
    assert dataset.classes[2] == "10" and moved.classes[2] == "2" and len(moved) == len(dataset)
    for index in range(len(dataset)):
        assert moved.classes[moved.label(index)] == dataset.classes[dataset.label(index)]


def test_files_name_the_classes(trained):
    folder = trained[0]
    state = checkpoint.read_state(folder / "checkpoints" / "last")
    assert state["classes"] == [str(n) for n in range(CLASSES)] and re.fullmatch(r"[0-9a-f]{32}", state["data"])
    with safe_open(folder / "checkpoints" / "last" / "model.safetensors", framework="np") as file:
        words = file.metadata()
    assert json.loads(words["classes"]) == state["classes"] and words["data"] == state["data"]
    with safe_open(toy.whole("mae") / "encoder.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["classes"]) == [str(n) for n in range(10)]


def test_a_file_of_weights_brings_its_class_names(trained, tmp_path, capsys):
    folder, _ = trained
    images = folders(tmp_path / "numbers", [str(n) for n in range(CLASSES)])
    words = [*toy.RECIPES["finetune"][1:], f"model.objective.classes={CLASSES}"]
    words += ["--weights", str(folder / "checkpoints" / "best" / "model.safetensors")]
    command = [word for word in words if word != "--from-scratch"]
    assert run.evaluate([*command, "--data", str(images), "--workers", "0"], backend=BACKEND) == 0
    by_weights = top1(capsys.readouterr().out)
    assert evaluate(folder, images) == 0
    assert top1(capsys.readouterr().out) == by_weights


def test_encoders_of_equal_trainings_are_equal_byte_for_byte(tmp_path):
    folder = toy.whole("mae")
    recipe = recipes.load(str(folder / "recipe.toml"))
    groups, state = checkpoint.load(checkpoint.latest(folder))
    for number in range(8):
        export.write_encoder(tmp_path / f"{number}.safetensors", recipe, groups["model"], state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert go("mae", tmp_path / "again") == 0
    assert (tmp_path / "again" / "encoder.safetensors").read_bytes() == (folder / "encoder.safetensors").read_bytes()
