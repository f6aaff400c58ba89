"""Evaluation metrics of each framework, from its own entry point, against those of the numpy float64 reference."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from triport.core.data.datasets import open_dataset
from triport.core.data.loader import Loader
from triport.core.model.init import initial_values
from triport.core.spec import DataSpec
from triport.core.spec import recipe as recipes
from triport.parity_tests.reference import objectives
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance

RECIPE = "tiny/test_mae_finetune"
CLASSES, TRAIN, TEST = 10, 30, 12  # images of each class


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Real images as a folder tree of PNG files."""
    root = tmp_path_factory.mktemp("images")
    counts: dict[Literal["train", "test"], int] = {"train": TRAIN, "test": TEST}
    for split, count in counts.items():
        source = open_dataset(None, split, DataSpec(name="fashion-mnist"), 1)
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in [i for i in range(1000) if source.label(i) == label][:count]:
                Image.fromarray(np.asarray(source.image(i)).squeeze()).save(folder / f"{i}.png")
    return root


def batches(root: Path, split: Literal["train", "test"]):
    """Pixels and labels of a split as evaluation sees them."""
    recipe = recipes.load(RECIPE)
    dataset = open_dataset(str(root), split, recipe.data, 1)
    with Loader(dataset, recipe.evaluate, batch=64, seed=0, workers=0, train=False, model=recipe.model) as loader:
        parts = [step[0] for step in loader.epoch(0)]
    return np.concatenate([b.images[0] for b in parts]), np.concatenate([b.labels for b in parts])


@pytest.fixture(scope="module")
def subject(images, tmp_path_factory):
    """A classifier that has learnt something: drawn values, and the head that fits their features best."""
    recipe = recipes.load(RECIPE)
    arrays = initial_values(recipe.model, 0)
    pixels, labels = batches(images, "train")
    rows = objectives.embed(recipe.model, arrays, pixels)
    wide = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    fit = np.linalg.lstsq(wide, np.eye(CLASSES)[labels], rcond=None)[0]
    arrays |= {"head.weight": fit[:-1].T.astype(np.float32), "head.bias": fit[-1].astype(np.float32)}
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return recipe, arrays, path


def evaluate(probe, folder, images, *words):
    """Run the framework's own evaluation and return the scores that it wrote."""
    out = folder / "scores.json"
    main = import_module(f"{probe.__name__.rpartition('.')[0]}.evaluate").main
    assert main([RECIPE, "--data", str(images), "--workers", "0", "--out", str(out), *map(str, words)]) == 0
    return json.loads(out.read_text())


def test_accuracy_counts_are_those_of_the_reference(probe, subject, images, tmp_path):
    recipe, arrays, path = subject
    pixels, labels = batches(images, "test")
    logits = objectives.forward(recipe.model, arrays, {"images": pixels})["logits"]
    order = np.argsort(-logits, axis=1)
    best = np.sort(logits, axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 1e-4, "an answer is too close to call: take other images"
    table = np.zeros((CLASSES, CLASSES), int)
    np.add.at(table, (labels, order[:, 0]), 1)
    message = evaluate(probe, tmp_path, images, "--weights", path)
    assert message["images"] == CLASSES * TEST and message["confusion"] == table.tolist()
    assert message["right"] == np.trace(table) > 0.4 * len(labels)
    assert message["top1"] == np.trace(table) / len(labels)
    assert message["top5"] == (order[:, :5] == labels[:, None]).any(axis=1).mean() > message["top1"]
    assert message["mean_per_class"] == pytest.approx((np.diagonal(table) / table.sum(axis=1)).mean(), rel=1e-12)


def test_neighbours_vote_as_with_the_references_features(probe, subject, images, tmp_path):
    recipe, arrays, path = subject
    (train, train_labels), (test, labels) = batches(images, "train"), batches(images, "test")
    ours, theirs = (objectives.unit(objectives.embed(recipe.model, arrays, x)) for x in (test, train))
    near = ours @ theirs.T
    best = np.argsort(-near, axis=1)[:, :20]
    votes = np.zeros((len(labels), CLASSES))
    for i, row in enumerate(best):
        np.add.at(votes[i], train_labels[row], np.exp(near[i, row] / 0.07))
    message = evaluate(probe, tmp_path, images, "--weights", path, "--knn", "monitor.knn_neighbours=20")
    assert message["neighbours"] == 20 and message["temperature"] == 0.07
    assert message["knn"] == (votes.argmax(axis=1) == labels).mean() > 0.3
    hold(
        "forward",
        distance(probe.embed(recipe.model, arrays, test), objectives.embed(recipe.model, arrays, test)),
        "features",
    )
