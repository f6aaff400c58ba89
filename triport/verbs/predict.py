"""`triport predict`: class names and probabilities of pictures."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triport import api
from triport.core.data.classes import read_class_names
from triport.core.errors import UserError
from triport.core.options import Parser, positive_number
from triport.core.run.subject import Subject, head_classes
from triport.core.selection import selected
from triport.verbs import model, options, pictures

WIDTH = 80  # columns where the output is not a terminal
SHARE, NAME = 9, 10  # columns of a probability with its blanks; of a class name that can still be read


@dataclass(frozen=True)
class Prediction:
    """A picture's likeliest classes, falling."""

    file: str  # its path; of pictures in memory "image 0" and so on
    classes: tuple[tuple[str, float], ...]  # names and probabilities

    @property
    def name(self) -> str:
        """The likeliest class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.classes[0][1]


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("predict", "Class names and probabilities of pictures, by a trained classifier.")
    p.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, folders, patterns such as 'photos/*.jpg'")
    p.add_argument("--top", type=positive_number, default=5, metavar="K", help="classes of each picture (5)")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print a line for each picture and class")
    p.add_argument("--class-names", type=Path, metavar="FILE", help='names for people: lines "n01440764 tench"')
    return p


def main(argv: Sequence[str]) -> int:
    """Print what a classifier says of pictures; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    readable = read_class_names(given.class_names) if given.class_names else {}
    found = model.subject(given.model, given.recipe, False, selected(given))
    answers = classify(found, given.images, given.top, readable, given.backend, given.device, given.batch)
    if given.json:
        rows = [{"file": a.file, "classes": [{"class": n, "probability": s} for n, s in a.classes]} for a in answers]
        print(json.dumps({"model": found.origin, "pictures": rows}, indent=1, ensure_ascii=False))
    elif given.csv:
        write = csv.writer(sys.stdout, lineterminator="\n")
        write.writerow(("file", "rank", "class", "probability"))
        write.writerows((a.file, r, n, f"{s:.6g}") for a in answers for r, (n, s) in enumerate(a.classes, 1))
    else:
        print("\n".join(lines(answers, shutil.get_terminal_size((WIDTH, 24)).columns)))
    return 0


def predict(
    weights: str | Path,
    images: str | Path | np.ndarray | Sequence[api.ImageLike],
    top: int = 5,
    *,
    class_names: Mapping[str, str] | None = None,
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> list[Prediction]:
    """Return the `top` likeliest classes of each picture with their probabilities, by a trained classifier.

    images: files, folders, patterns, as the verb takes them; or Pillow images or uint8 arrays (height, width,
    channels); or normalised float32 (n, channels, height, width). class_names: other names for classes, by their own.
    Files that cannot be read are left out. For logits of all classes as an array: `triport.logits`.
    """
    found = model.subject(weights, recipe, features_only=False)
    return classify(found, images, top, class_names, backend, device, batch)


def classify(
    found: Subject,
    images: str | Path | np.ndarray | Sequence[api.ImageLike],
    top: int = 5,
    readable: Mapping[str, str] | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> list[Prediction]:
    """Return the `top` likeliest classes of each picture that can be read. UserError without a trained head."""
    if not found.has_head:
        raise UserError(f"{found.origin} has no trained head: use embed, or train one with `triport linear`.")
    given = prepared(found, images, batch)
    answer = api.make_learner(found, backend, device).predict
    names = list(found.classes or [f"class {row}" for row in range(head_classes(found.recipe))])
    if found.classes is None:
        pictures.tell("the weights do not name their classes: they are numbered.")
    names = [(readable or {}).get(name, name) for name in names]
    answers = []
    for files, rows in given:
        shares = softmax(answer(rows))
        order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
        for file, row, best in zip(files, shares, order):
            answers.append(Prediction(file, tuple((names[at], float(row[at])) for at in best)))
    return answers


def prepared(
    found: Subject, images: str | Path | np.ndarray | Sequence[api.ImageLike], batch: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Return batches: what names their pictures, and the pictures as the model takes them."""
    if isinstance(images, (str, Path)) or all(isinstance(image, (str, Path)) for image in images):
        files = pictures.find(images)  # type: ignore[arg-type]
        pictures.warn_of_grey(found.recipe, files)
        read = pictures.batches(found.recipe, list(map(str, files)), files.__getitem__, batch, found.reading)
        return (([str(files[n]) for n in numbers], pictures.normalised(found.recipe, rows)) for numbers, rows in read)
    starts = range(0, len(images), batch)
    named = ([f"image {n}" for n in range(at, min(at + batch, len(images)))] for at in starts)
    return zip(named, (api.prepared(found.recipe, images[at : at + batch], found.reading) for at in starts))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities float64 of logits, over the last axis."""
    wide = np.asarray(logits, np.float64)
    share = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(share / share.sum(axis=-1, keepdims=True))


def lines(answers: Sequence[Prediction], width: int) -> list[str]:
    """Return a line for each picture within a width: its name, then classes with their probabilities.

    Where the width does not hold them all there are fewer classes, and a last line says so.
    """
    first = min(max(len(answer.file) for answer in answers), max(12, width // 3))
    whole = count = len(answers[0].classes)
    longest = max(len(name) for answer in answers for name, _ in answer.classes)
    while count > 1 and (width - first) // count - SHARE < min(longest, NAME):
        count -= 1
    limit = max(1, min(longest, (width - first) // count - SHARE))
    shown = []
    for answer in answers:
        file = answer.file if len(answer.file) <= first else f"…{answer.file[len(answer.file) - first + 1 :]}"
        cells = [f"  {cut(name, limit):<{limit}} {100 * share:5.1f}%" for name, share in answer.classes[:count]]
        shown.append(f"{file:<{first}}{''.join(cells)}")
    if count < whole:
        shown.append(f"{count} of {whole} classes fit; --json and --csv have all")
    return shown


def cut(text: str, limit: int) -> str:
    """Return a text within some columns."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
