"""`triport measure`: how good a representation is, on features that are computed once, beside its baselines."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from triport import api
from triport.core import atomic
from triport.core.augment import augment
from triport.core.augment import pixels as augmented
from triport.core.augment.pixels import as_array
from triport.core.data.classes import by_name
from triport.core.data.datasets import BrokenImage, Dataset, check_apart, check_labelled, open_dataset, remarks
from triport.core.errors import UserError
from triport.core.evaluate import representation
from triport.core.evaluate.baselines import raw_pixels
from triport.core.evaluate.monitors import effective_rank
from triport.core.evaluate.representation import Features, LinearProbe
from triport.core.model.init import initial_values
from triport.core.options import Parser, whole_number
from triport.core.record import page
from triport.core.rng import generator
from triport.core.run.drawing import spaced
from triport.core.run.subject import Subject
from triport.core.selection import EVERYTHING, Selection, selected
from triport.core.spec import Recipe
from triport.verbs import embed, measure_page, model, options, pages, pictures

FEW = ("1%", "10%")  # labels of few-shot: a share of each class, or a number of pictures of each
VIEWED, VIEWS = 500, 10  # training pictures, evenly spaced, and views of each, for LiDAR
RANKED = 2000  # held-out rows, evenly spaced, whose effective rank is taken
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
    p.add_argument("--split", choices=("val", "test"), default="val", help="the held-out split (val)")
    p.add_argument(
        "--few-shot",
        default=",".join(FEW),
        metavar="LABELS",
        help=f"labels per class to learn from, as shares or numbers, as in 1%%,5 ({','.join(FEW).replace('%', '%%')})",
    )
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
    few = few_shot_of(given.few_shot.split(","))
    found = model.subject(given.model, given.recipe, selection=selected(given))
    chosen = Chosen(given.split, tuple(few), not given.no_baselines, given.seed)
    answer = of(found, given.data, chosen, given.backend, given.device, given.batch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / "measure.json", json.dumps(answer.report, indent=1) + "\n")
    except OSError as error:
        target = folder / "measure.json"
        raise UserError(f"cannot write {target}: {error.strerror}. Name another folder with --out.") from None
    print("\n".join(measure_page.lines(answer.report)))
    html = measure_page.render(answer.report, answer.confusion, answer.classes)
    print(page.write(folder / "measure.html", html, "Name another folder with --out."))
    return 0


def measure(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    split: Literal["val", "test"] = "val",
    few_shot: Sequence[str] = FEW,
    baselines: bool = True,
    seed: int = 0,
    recipe: str | None = None,
    selection: Selection = EVERYTHING,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Measured:
    """Measure the representation of a run or file of weights on a labelled data set: learn from its training split,
    answer on the held-out `split`. few_shot: labels per class, as "1%" or "5"."""
    where = None if data is None else str(data)
    chosen = Chosen(split, tuple(few_shot_of(few_shot)), baselines, seed)
    return of(model.subject(weights, recipe, selection=selection), where, chosen, backend, device, batch)


@dataclass(frozen=True)
class Chosen:
    """What is measured on what: the held-out split, few-shot's shares (below 1) or numbers per class, baselines."""

    split: Literal["val", "test"] = "val"
    few: tuple[float | int, ...] = (0.01, 0.1)
    baselines: bool = True
    seed: int = 0


def few_shot_of(words: Sequence[str]) -> list[float | int]:
    """Return "1%" as the share 0.01 and "5" as 5 pictures of each class; UserError for anything else."""
    found: list[float | int] = []
    for word in map(str.strip, words):
        number = word.removesuffix("%")
        try:
            value = float(number) / 100 if word.endswith("%") else int(number)
        except ValueError:
            value = 0
        if not value > 0 or (word.endswith("%") and value > 1):
            raise UserError(f"few-shot '{word}' is neither a share such as 1% nor a number of pictures such as 5.")
        found.append(value)
    return found


def of(
    found: Subject,
    data: str | None,
    chosen: Chosen = Chosen(),
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Measured:
    """Return the measures of a model's features and, by choice, of raw pixels and of the untrained network."""
    train, test = open_splits(found, data, chosen.split)
    classes = list(train.classes)
    sources: Sources = {"trained": both(found, train, test, backend, device, batch)}
    networks = {"trained": found}
    if chosen.baselines:
        sources["raw_pixels"] = (raw(found.recipe, train, batch), raw(found.recipe, test, batch))
        drawn = replace(found, arrays=initial_values(found.recipe.model, found.recipe.seed))
        sources["untrained"] = both(drawn, train, test, backend, device, batch)
        networks["untrained"] = drawn
    own_train, own_test = sources["trained"]
    paired = len(found.recipe.train.views) > 1  # LiDAR is of encoders that were trained to see views alike
    scores: dict[str, dict[str, Any]] = {}
    probes: dict[str, LinearProbe] = {}
    with pictures.progress(len(sources) * (2 + len(chosen.few)) + paired * len(networks)) as bar:
        parts = itertools.count()

        def tell(source: str, what: str) -> None:
            bar.progress(next(parts), f"triport: {what} of {source.replace('_', ' ')}")

        for name, pair in sources.items():
            scores[name], probes[name] = scored(*pair, len(classes), chosen, functools.partial(tell, name))
        for name, network in networks.items() if paired else ():
            tell(name, "LiDAR")
            views = viewed(network, train, chosen.seed, backend, device, batch)
            scores[name]["lidar"] = {"rank": representation.lidar(views), "images": len(views), "views": VIEWS}
    confusion = probes["trained"].per_class(own_test, len(classes))
    seen = confusion.sum(axis=1)
    counts = np.bincount(own_test.labels, minlength=len(classes))
    report = {
        "model": found.origin,
        "digest": model.digest(found),
        "recipe": found.recipe.name,
        "data": data or found.recipe.data.name,
        "split": chosen.split,
        "images": {"train": len(own_train.labels), "test": len(own_test.labels)},
        "classes": classes,
        "seed": chosen.seed,
        "temperature": representation.TEMPERATURE,
        "chance": {"uniform": 1 / len(classes), "largest class": float(counts.max() / counts.sum())},
        "scores": scores,
        "per_class": {
            name: float(confusion[row, row] / seen[row]) if seen[row] else None for row, name in enumerate(classes)
        },
        "confusion": confusion.tolist() if len(classes) <= pages.MOST else None,
    }
    return Measured(report, confusion, classes)


def open_splits(found: Subject, data: str | None, split: Literal["val", "test"]) -> tuple[Dataset, Dataset]:
    """Return the training and the held-out images, labelled alike; UserError unless both are there."""
    recipe, channels = found.recipe, found.recipe.model.encoder.channels
    train = open_dataset(data, "train", recipe.data, channels, **found.reading)
    test = open_dataset(data, split, recipe.data, channels, **found.reading)
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
    """Return the pixels of pictures as the recipe evaluates them, shrunk to 32 where they are larger."""
    return features(recipe, part, batch, raw_pixels)


def viewed(found: Subject, train: Dataset, seed: int, backend: str | None, device: str, batch: int) -> np.ndarray:
    """Return features (images, VIEWS, width) of augmented views of some training pictures, as LiDAR takes them."""
    learner, spec = api.make_learner(found, backend, device), found.recipe.train
    rows = []
    waiting: list[np.ndarray] = []
    for index in spaced(len(train), VIEWED):
        try:
            image = train.image(index)
        except BrokenImage:
            continue
        for number in range(VIEWS):
            view, key = number % len(spec.views), generator(seed, "lidar", index, number)
            plan = augment.plan(spec, view, key, as_array(image).shape[:2])
            drawn = augmented.normalise(augmented.apply(plan, image), spec.mean, spec.std)
            waiting.append(augmented.erase(drawn, plan))
        if len(waiting) >= batch:
            rows.append(np.asarray(learner.embed(np.stack(waiting)), np.float32))
            waiting = []
    if waiting:
        rows.append(np.asarray(learner.embed(np.stack(waiting)), np.float32))
    return np.concatenate(rows).reshape(-1, VIEWS, rows[0].shape[1])


def features(recipe: Recipe, part: Dataset, batch: int, rows: Any) -> Features:
    """Return `rows` of the pictures of a part of a data set, with their labels; those without a label are left out."""
    names = [embed.where(part, index) for index in range(len(part))]
    made, labels = [], []
    for indices, images in pictures.batches(recipe, names, part.image, batch):
        made.append(rows(images))
        labels += [part.label(index) for index in indices]
    numbers = np.asarray(labels, np.int64)
    return Features(np.concatenate(made)[numbers >= 0], numbers[numbers >= 0])


def scored(
    train: Features, test: Features, classes: int, chosen: Chosen, tell: Callable[[str], None]
) -> tuple[dict[str, Any], LinearProbe]:
    """Return every measure of one kind of features, shares of right answers among the held-out rows, and the probe."""
    tell("kNN and linear probe")
    knn = representation.knn(train, test, classes)
    probe = representation.linear_probe(train, classes, seed=chosen.seed)
    ranked = np.linspace(0, len(test.rows) - 1, min(len(test.rows), RANKED)).astype(int)
    few = {}
    for count in chosen.few:
        number = {"per_class": count} if isinstance(count, int) else {"share": count}
        tell(f"few labels ({count if isinstance(count, int) else f'{count:.0%}'})")
        spread = representation.few_shot(train, test, classes, seed=chosen.seed, **number)
        name = f"{count} per class" if isinstance(count, int) else f"{count:g}"
        few[name] = {"mean": spread.mean, "deviation": spread.deviation, "draws": list(spread.draws)}
    tell("logistic regression")
    answer = {
        "width": int(train.rows.shape[1]),
        "knn": {str(k): value for k, value in knn.items()},
        "few_shot": few,
        "linear_probe": {
            "accuracy": probe.accuracy(test),
            "rate": probe.rate,
            "by_rate": {f"{rate:.4g}": share for rate, share in probe.validation.items()},
        },
        "logistic_regression": {"accuracy": representation.logistic_regression(train, classes).accuracy(test)},
        "effective_rank": effective_rank(test.rows[ranked]),
    }
    return answer, probe
