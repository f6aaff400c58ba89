"""Evaluation without training: accuracy of a classifier, kNN accuracy of an encoder, features written to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError

from triport.core import atomic
from triport.core.backend.build import lowered
from triport.core.backend.learner import Learner, Processes
from triport.core.data.classes import by_name, class_rows, read_class_names
from triport.core.data.datasets import Dataset, check_apart, check_labelled, check_readable, open_dataset, remarks
from triport.core.data.loader import Loader
from triport.core.errors import UserError
from triport.core.evaluate.evaluation import Accuracy, accuracy, features, gather, knn, write_accuracy
from triport.core.options import EvaluateOptions
from triport.core.reading import differences, phrase
from triport.core.record.checkpoint import write_arrays
from triport.core.record.console import show
from triport.core.run.fitting import in_precision
from triport.core.run.images import evaluation_loader
from triport.core.run.session import Backend, Session
from triport.core.run.subject import Subject, find_subject, head_classes


def measure(session: Session, options: EvaluateOptions, backend: Backend) -> None:
    """Do what `triport evaluate` is asked for and print the result."""
    if options.embed and Path(options.embed).suffix not in (".npz", ".safetensors"):
        raise UserError(f"--embed {options.embed}: the file must end in .npz or .safetensors.")
    for word, target in (("--embed", options.embed), ("--out", options.out)):
        if target and Path(target).exists() and not options.overwrite:
            raise UserError(f"{word} {target} exists already: name another file, or say --overwrite.")
    subject = find_subject(
        options.recipe,
        options.overrides,
        weights=options.weights,
        from_scratch=options.from_scratch,
        selection=options.selection,
        features_only=options.knn or options.embed is not None,
    )
    scored = subject.has_head and not options.knn and not options.embed
    test = _open(
        options, subject, "val" if options.split == "train" and not (scored or options.embed) else options.split
    )
    train = None if scored or options.embed else _open(options, subject, "train")
    if options.restrict and not scored:
        raise UserError("--restrict chooses among the classes of a trained head: it is for accuracy alone.")
    if scored:
        check_labelled(test, None if subject.classes else head_classes(subject.recipe))
    elif train is not None:
        check_labelled(train)
        check_apart(train, test)
        check_labelled(test)
        test = by_name(test, train.classes)
    readable = {} if options.class_names is None else read_class_names(Path(options.class_names))
    processes = session.join(backend.start(options.device))
    for line in [*_read_remarks(options, subject), *remarks(train, test)] if processes.rank == 0 else []:
        session.warn(line)
    options, _ = in_precision(options, processes)
    chosen = {"device": options.device, "precision": options.precision, "compile": options.compile}
    remark = lowered(subject.arrays, options.precision)
    if remark and processes.rank == 0:
        session.warn(remark)
    learner = backend.make(subject.recipe, subject.arrays, processes=processes, **chosen)
    work = _Measuring(session, options, subject, learner, processes)
    if options.embed:
        work.embed(test, Path(options.embed))
    elif train is None:
        work.accuracy(test, readable)
    else:
        work.knn(train, test)
    processes.stop()


def _open(options: EvaluateOptions, subject: Subject, split: Literal["train", "val", "test"]) -> Dataset:
    channels = subject.recipe.model.encoder.channels
    how = {**subject.reading, **options.reading}
    dataset = open_dataset(options.data, split, subject.recipe.data, channels, **how)
    check_readable(dataset)
    return dataset


def _read_remarks(options: EvaluateOptions, subject: Subject) -> list[str]:
    """A line about how images are read, where that is not what a command line without options for it means."""
    changed = differences(subject.reading, {**subject.reading, **options.reading})
    if changed and (subject.has_head or subject.reading):
        return [f"the model's images were read otherwise: {', '.join(changed)}"]
    return [f"images are read with {phrase(subject.reading)}, as the model's were"] if subject.reading else []


@dataclass(frozen=True)
class _Measuring:
    session: Session
    options: EvaluateOptions
    subject: Subject
    learner: Learner
    processes: Processes

    def _images(self, dataset: Dataset) -> Loader:
        recipe, batch = self.subject.recipe, self.options.batch
        return evaluation_loader(self.session, self.options, recipe, dataset, self.processes, batch)

    def _report(self, text: str, write: Callable[[Path], object]) -> None:
        if self.processes.rank == 0:
            if self.options.out:
                _written(Path(self.options.out), write)
            show(f"{self.subject.origin}: {text}")

    def accuracy(self, test: Dataset, readable: Mapping[str, str]) -> None:
        names = list(self.subject.classes or test.classes)
        rows = class_rows(names, test.classes, test.name)
        among = rows if self.options.restrict else None
        result = accuracy(self.learner.predict, self._images(by_name(test, names)), self.processes, len(names), among)
        shares = "  ".join(f"{name} {100 * share:.2f} %" for name, share in result.scores.items())
        choice = f"all {len(names)}" if among is None else f"these {len(rows)}"
        part = f"; {len(rows)} of {len(names)} classes, answers among {choice}" if len(rows) < len(names) else ""
        about = {"of": self.subject.origin, "evaluated": list(test.classes), "answers_among": choice.split()[0]}
        if readable:
            about["readable"] = [readable.get(name, name) for name in names]
        if self.subject.classes is None:
            part += "; the weights do not name their classes, so they were taken in the order of the data's"
        self._report(
            f"{shares}  ({result.right} of {result.images} right{part})",
            lambda path: write_accuracy(path, result, names, **about),
        )
        if self.processes.rank == 0 and readable:
            show(_weakest(result, names, readable))

    def knn(self, train: Dataset, test: Dataset) -> None:
        monitor = self.subject.recipe.monitor
        parts = [features(self.learner.embed, self._images(part)) for part in (train, test)]
        score = knn(parts[0], parts[1], self.processes, monitor, len(train.classes))
        words = {"knn": score, "neighbours": monitor.knn_neighbours, "temperature": monitor.knn_temperature}
        self._report(
            f"kNN {100 * score:.2f} % ({monitor.knn_neighbours} neighbours among {len(train)} images)",
            lambda path: path.write_text(json.dumps({"of": self.subject.origin, **words}) + "\n", encoding="utf-8"),
        )

    def embed(self, images: Dataset, out: Path) -> None:
        rows, labels = features(self.learner.embed, self._images(images))
        rows, labels = gather(rows, self.processes), self.processes.gather(labels)
        if self.processes.rank == 0:
            _written(out, lambda path: write_features(path, rows, labels, out.suffix))
            show(f"{self.subject.origin}: features {rows.shape[0]} x {rows.shape[1]} and labels are in {out}")


def _weakest(result: Accuracy, names: Sequence[str], readable: Mapping[str, str], count: int = 5) -> str:
    """The classes with the smallest share of right answers, by their names for people."""
    rows, hits = result.seen, result.hits
    seen = sorted(np.flatnonzero(rows).tolist(), key=lambda row: hits[row] / rows[row])[:count]
    shown = (f"{names[row]} {readable.get(names[row], '')} {100 * hits[row] / rows[row]:.1f} %" for row in seen)
    return f"weakest classes: {', '.join(shown)}"


def write_features(path: Path, rows: np.ndarray, labels: np.ndarray, form: str) -> None:
    """Write "features" (n, width) and "labels" (n,) int64; form: ".npz" or ".safetensors"."""
    if form == ".safetensors":
        write_arrays(path, {"features": rows, "labels": labels})
        return
    with path.open("wb") as file:
        np.savez(file, features=rows, labels=labels)


def _written(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path` and put it there when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as part:
            write(part)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error
