"""Evaluation without training: accuracy, kNN and features, alone and over ranks, against the run's own scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from triport.core.evaluate import evaluation
from triport.core.record import checkpoint
from triport.core.run import run
from triport.core.run.images import open_splits
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.parity_tests.fixtures.toy import evaluate, metrics, whole


def test_accuracy_of_a_run_is_counted_over_every_image(tmp_path, capsys):
    folder = whole("finetune")
    capsys.readouterr()
    assert evaluate(str(folder), "--out", str(tmp_path / "scores.json"), "--batch", "7") == 0
    printed = capsys.readouterr().out
    best = checkpoint.read_state(folder / "checkpoints" / "best")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["top1"] == best["best"] and scores["images"] == 40
    assert scores["right"] == round(best["best"] * 40) == int(np.trace(scores["confusion"]))
    assert f"top1 {100 * best['best']:.2f} %" in printed and f"({scores['right']} of 40 right)" in printed
    assert np.sum(scores["confusion"], axis=1).tolist() == [4] * 10
    assert scores["mean_per_class"] == pytest.approx(np.mean(scores["per_class"]))
    assert scores["per_class"] == [row[i] / 4 for i, row in enumerate(scores["confusion"])]
    during = json.loads((folder / "evaluation.json").read_text())
    assert during["epoch"] == 3 and during["classes"] == scores["classes"] and len(during["confusion"]) == 10


@pytest.mark.parametrize("world", [2, 3])
def test_accuracy_over_ranks_is_exact(tmp_path, capsys, world):
    folder = str(whole("finetune"))
    assert evaluate(folder, "--out", str(tmp_path / "one.json")) == 0

    def one(processes: Threads) -> int:
        backend = run.Backend("numpy", lambda device: processes, numpy_learner.make)
        return evaluate(folder, "--out", str(tmp_path / "many.json"), "--batch", "5", backend=backend)

    capsys.readouterr()
    assert run_ranks(world, one) == [0] * world
    assert capsys.readouterr().out.count("top1") == 1
    assert (tmp_path / "many.json").read_text() == (tmp_path / "one.json").read_text()


@pytest.mark.parametrize("what", ["run", "checkpoint", "encoder", "weights"])
def test_knn_of_an_encoder_is_what_the_run_found(tmp_path, capsys, what):
    folder = whole("mae")
    scores = {line["epoch"]: line["knn"] for line in metrics(folder, "epoch")}
    epoch = 3 if what != "run" else checkpoint.read_state(folder / "checkpoints" / "best")["epoch"]
    words = {
        "run": [str(folder)],
        "checkpoint": [str(folder / "checkpoints" / "epoch_3")],
        "encoder": [str(folder / "encoder.safetensors")],
        "weights": [*toy.RECIPES["mae"][1:], "--weights", str(folder / "encoder.safetensors")],
    }[what]
    capsys.readouterr()
    assert evaluate(*words, "--out", str(tmp_path / "scores.json")) == 0
    assert f"kNN {100 * scores[epoch]:.2f} % (5 neighbours among 96 images)" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["knn"] == scores[epoch]


def test_knn_of_random_weights_is_where_the_run_began(capsys):
    folder = whole("mae")
    capsys.readouterr()
    assert evaluate(*toy.RECIPES["mae"][1:], "--from-scratch") == 0
    assert f"kNN {100 * metrics(folder, 'epoch')[0]['knn']:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("split, count", [("train", 96), ("test", 40)])
def test_features_are_written_in_order(tmp_path, ending, split, count):
    out = tmp_path / f"features.{ending}"
    assert evaluate(str(whole("moco") / "encoder.safetensors"), "--embed", str(out), "--split", split) == 0
    found = dict(np.load(out)) if ending == "npz" else load_file(out)
    images = np.load(toy.shared_data() / f"{split}.npz")
    assert found["features"].shape == (count, 32) and found["features"].dtype == np.float32
    assert found["labels"].tolist() == images["labels"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]

    def one(processes: Threads) -> int:
        backend = run.Backend("numpy", lambda device: processes, numpy_learner.make)
        words = ["--embed", str(tmp_path / f"again.{ending}"), "--split", split, "--batch", "9"]
        return evaluate(str(whole("moco") / "encoder.safetensors"), *words, backend=backend)

    assert run_ranks(3, one) == [0] * 3
    again = dict(np.load(tmp_path / "again.npz")) if ending == "npz" else load_file(tmp_path / "again.safetensors")
    np.testing.assert_allclose(again["features"], found["features"], atol=1e-6)


@pytest.mark.parametrize("word, name", [("--out", "scores.json"), ("--embed", "features.npz")])
def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path, capsys, word, name):
    (tmp_path / name).write_text("mine")
    given = (str(whole("mae") / "encoder.safetensors"), word, str(tmp_path / name))
    assert evaluate(*given) == 2
    assert f"{name} exists already: name another file, or say --overwrite" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert evaluate(*given, "--overwrite") == 0
    assert (tmp_path / name).read_bytes() != b"mine"


@pytest.mark.parametrize("option", [["--weights", "other.pth"], ["--from-scratch"]])
def test_weights_beside_a_run_are_refused(capsys, option):
    assert evaluate(str(whole("moco")), *option) == 2
    assert f"has weights of its own: leave out {option[0]}, or name a recipe instead" in capsys.readouterr().err


def test_any_function_of_images_can_be_scored():
    """Raw pixels, for one: the bar that a network has to clear."""
    dataset = open_splits(str(toy.shared_data()), recipes.load("tiny/test_mae_vit"))
    assert dataset.test is not None
    few = evaluation.evenly_spaced(dataset.train, 10)
    assert len(few) == 10 and few.classes == dataset.train.classes
    assert [few.label(i) for i in range(10)] == [dataset.train.label(int(i)) for i in np.linspace(0, 95, 10)]
