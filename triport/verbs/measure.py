"""`triport measure`: how good a representation is, on features that are computed once, beside its baselines."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triport import api
from triport.compare import aligned
from triport.core import atomic
from triport.core.data.classes import by_name
from triport.core.data.datasets import Dataset, check_apart, check_labelled, open_dataset, remarks
from triport.core.errors import UserError
from triport.core.evaluate import representation
from triport.core.evaluate.monitors import effective_rank
from triport.core.evaluate.representation import Features
from triport.core.model.init import initial_values
from triport.core.options import Parser, whole_number
from triport.core.record import page
from triport.core.run.subject import Subject
from triport.core.selection import EVERYTHING, Selection, selected
from triport.core.spec import Recipe
from triport.verbs import embed, model, options, pictures
from triport.verbs.pages import confusion_picture

WIDTH = 80  # columns of the terminal's table
SHARES = (0.01, 0.1)  # of the labels, in few-shot
RAW_SIDE = 32  # pixels to which larger pictures are shrunk for the baseline of raw pixels
RANKED = 2000  # held-out rows, evenly spaced, whose effective rank is taken
TITLES = {"trained": "this network", "raw_pixels": "raw pixels", "untrained": "untrained network"}
Sources = dict[str, tuple[Features, Features]]


@dataclass(frozen=True)
class Measured:
    """What was measured: `report` as measure.json holds it, and the confusion table (rows are the truth)."""

    report: dict[str, Any]
    confusion: np.ndarray
    classes: list[str]


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("measure", "Measure a representation: kNN, few-shot, linear probes, effective rank; baselines.")
    p.add_argument("--data", metavar="PATH", help="a labelled data set (the recipe's, if it comes with triport)")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of measure.json and measure.html (the run folder)")
    p.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the draws (0)")
    p.add_argument("--no-baselines", action="store_true", help="leave out raw pixels and the untrained network")
    p.add_argument("--overwrite", action="store_true", help="replace measure.json and measure.html")
    return p


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and write measure.json and measure.html; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    folder = given.out or Path(given.model)
    if given.out is None and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for measure.json and measure.html with --out.")
    for name in ("measure.json", "measure.html"):
        options.free(folder / name, given.overwrite)
    found = model.subject(given.model, given.recipe, selection=selected(given))
    baselines = not given.no_baselines
    answer = of(found, given.data, baselines, given.seed, given.backend, given.device, given.batch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / "measure.json", json.dumps(answer.report, indent=1) + "\n")
    except OSError as error:
        target = folder / "measure.json"
        raise UserError(f"cannot write {target}: {error.strerror}. Name another folder with --out.") from None
    print("\n".join(lines(answer.report)))
    print(page.write(folder / "measure.html", render(answer), "Name another folder with --out."))
    return 0


def measure(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    baselines: bool = True,
    seed: int = 0,
    recipe: str | None = None,
    selection: Selection = EVERYTHING,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Measured:
    """Measure the representation of a run or file of weights on a labelled data set with two splits."""
    where = None if data is None else str(data)
    return of(model.subject(weights, recipe, selection=selection), where, baselines, seed, backend, device, batch)


def of(
    found: Subject,
    data: str | None,
    baselines: bool = True,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Measured:
    """Return the measures of a model's features and, by choice, of raw pixels and of the untrained network."""
    train, test = open_splits(found.recipe, data)
    classes = list(train.classes)
    sources: Sources = {"trained": both(found, train, test, backend, device, batch)}
    if baselines:
        sources["raw_pixels"] = (raw(found.recipe, train, batch), raw(found.recipe, test, batch))
        drawn = replace(found, arrays=initial_values(found.recipe.model, found.recipe.seed))
        sources["untrained"] = both(drawn, train, test, backend, device, batch)
    scores = {name: scored(*pair, len(classes), seed) for name, pair in sources.items()}
    own_train, own_test = sources["trained"]
    confusion = representation.linear_probe(own_train, len(classes), seed=seed).per_class(own_test, len(classes))
    seen = confusion.sum(axis=1)
    counts = np.bincount(own_test.labels, minlength=len(classes))
    report = {
        "model": found.origin,
        "digest": model.digest(found),
        "recipe": found.recipe.name,
        "data": data or found.recipe.data.name,
        "images": {"train": len(own_train.labels), "test": len(own_test.labels)},
        "classes": classes,
        "seed": seed,
        "temperature": representation.TEMPERATURE,
        "chance": {"uniform": 1 / len(classes), "largest class": float(counts.max() / counts.sum())},
        "scores": scores,
        "per_class": {
            name: float(confusion[row, row] / seen[row]) if seen[row] else None for row, name in enumerate(classes)
        },
    }
    return Measured(report, confusion, classes)


def open_splits(recipe: Recipe, data: str | None) -> tuple[Dataset, Dataset]:
    """Return the training and the held-out images, labelled alike; UserError unless both are there."""
    channels = recipe.model.encoder.channels
    train = open_dataset(data, "train", recipe.data, channels)
    test = open_dataset(data, "val", recipe.data, channels)
    check_labelled(train)
    check_apart(train, test)
    check_labelled(test)
    for line in remarks(train, test):
        pictures.tell(line)
    return train, by_name(test, train.classes)


def both(
    found: Subject, train: Dataset, test: Dataset, backend: str | None, device: str, batch: int
) -> tuple[Features, Features]:
    """Return a model's features of both splits."""
    learner = api.make_learner(found, backend, device)

    def rows(images: np.ndarray) -> np.ndarray:
        return np.asarray(learner.embed(pictures.normalised(found.recipe, images)), np.float32)

    return features(found.recipe, train, batch, rows), features(found.recipe, test, batch, rows)


def raw(recipe: Recipe, part: Dataset, batch: int) -> Features:
    """Return the pixels of pictures as the recipe evaluates them, shrunk to RAW_SIDE where they are larger."""

    def rows(images: np.ndarray) -> np.ndarray:
        small = np.stack([shrunk(image) for image in images])
        return small.reshape(len(small), -1).astype(np.float32) / 255

    return features(recipe, part, batch, rows)


def shrunk(image: np.ndarray) -> np.ndarray:
    """Return uint8 (height, width, channels) at most RAW_SIDE high and wide."""
    if max(image.shape[:2]) <= RAW_SIDE:
        return image
    planes = [Image.fromarray(np.ascontiguousarray(image[..., at])) for at in range(image.shape[2])]
    return np.stack([np.asarray(p.resize((RAW_SIDE, RAW_SIDE), Image.Resampling.BOX)) for p in planes], axis=-1)


def features(recipe: Recipe, part: Dataset, batch: int, rows: Any) -> Features:
    """Return `rows` of the pictures of a part of a data set, with their labels; those without a label are left out."""
    names = [embed.where(part, index) for index in range(len(part))]
    made, labels = [], []
    for indices, images in pictures.batches(recipe, names, part.image, batch):
        made.append(rows(images))
        labels += [part.label(index) for index in indices]
    numbers = np.asarray(labels, np.int64)
    return Features(np.concatenate(made)[numbers >= 0], numbers[numbers >= 0])


def scored(train: Features, test: Features, classes: int, seed: int) -> dict[str, Any]:
    """Return every measure of one kind of features; shares of right answers among the held-out rows."""
    probe = representation.linear_probe(train, classes, seed=seed)
    ranked = np.linspace(0, len(test.rows) - 1, min(len(test.rows), RANKED)).astype(int)
    few = {f"{share:g}": representation.few_shot(train, test, classes, share=share, seed=seed) for share in SHARES}
    return {
        "width": int(train.rows.shape[1]),
        "knn": {str(k): value for k, value in representation.knn(train, test, classes).items()},
        "few_shot": {n: {"mean": s.mean, "deviation": s.deviation, "draws": list(s.draws)} for n, s in few.items()},
        "linear_probe": {"accuracy": probe.accuracy(test), "rate": probe.rate},
        "logistic_regression": {"accuracy": representation.logistic_regression(train, classes).accuracy(test)},
        "effective_rank": effective_rank(test.rows[ranked]),
    }


# ---------------------------------------------------------------- what is shown
def rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table: a row for each measure, a column for each kind of features."""
    scores = report["scores"]
    own = scores["trained"]

    table = [[f"kNN, {k} neighbours", *(percent(s["knn"][k]) for s in scores.values())] for k in own["knn"]]
    for share in own["few_shot"]:
        few = [score["few_shot"][share] for score in scores.values()]
        cells = [f"{percent(spread['mean'])} ± {100 * spread['deviation']:.2f}" for spread in few]
        table.append([f"few-shot, {100 * float(share):g} % of labels", *cells])
    for key in ("linear_probe", "logistic_regression"):
        table.append([key.replace("_", " "), *(percent(s[key]["accuracy"]) for s in scores.values())])
    table.append(["effective rank", *(f"{s['effective_rank']:.1f} of {s['width']}" for s in scores.values())])
    return ["", *(TITLES[name] for name in scores)], table


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{100 * share:.2f} %"


def verdict(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return ("good" or "note", a sentence): is it better than its baselines by the linear probe?"""
    probe = {name: score["linear_probe"]["accuracy"] for name, score in report["scores"].items()}
    images = report["images"]["test"]
    own = f"A linear probe on the features is right on {100 * probe['trained']:.1f} % of {images} images"
    others = {TITLES[name]: share for name, share in probe.items() if name != "trained"}
    others["chance"] = max(report["chance"].values())
    best = max(others, key=lambda name: others[name])
    better = probe["trained"] > others[best]
    return (
        "good" if better else "note",
        f"{own}, {'more' if better else 'not more'} than {best} ({100 * others[best]:.1f} %).",
    )


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return what the terminal shows."""
    chance = ", ".join(f"{name} {100 * share:.2f} %" for name, share in report["chance"].items())
    head, table = rows(report)
    return [*aligned([head, *table], WIDTH), f"chance: {chance}", *textwrap.wrap(verdict(report)[1], WIDTH)]


def render(answer: Measured) -> str:
    """Return the page as HTML that needs no other file."""
    report = answer.report
    kind, sentence = verdict(report)
    count = report["images"]
    facts = [
        f"Model: {report['model']}",
        f"Data: {report['data']}, {count['train']} images to learn from, {count['test']} held out, "
        f"{len(answer.classes)} classes",
        "Chance: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in report["chance"].items()),
    ]
    per_class = sorted(
        ((name, share) for name, share in report["per_class"].items() if share is not None), key=lambda row: row[1]
    )
    shares = [(name, f"{100 * share:.2f} %") for name, share in per_class]
    temperature = f"kNN votes have the temperature {report['temperature']:g}; the probe's rate is chosen on part of "
    note = f"<p>{temperature}the training images; few-shot is the mean and deviation of five draws.</p>"
    body = [
        page.header("Representation", kind, sentence, facts),
        page.section("Measures", page.table(*rows(report), "numeric"), note),
        page.section("Confusion of the linear probe", confusion_picture(answer.confusion, answer.classes)),
        page.section("Accuracy by class, the weakest first", page.table(("class", "linear probe"), shares, "numeric")),
    ]
    return page.document("Representation", body)
