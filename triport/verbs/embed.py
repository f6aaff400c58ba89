"""`triport embed`: features of pictures in a file, each with its picture's name, class and split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from triport import api
from triport.core import atomic
from triport.core.augment.pixels import as_array
from triport.core.data.datasets import Dataset, check_apart, kind_of, open_dataset
from triport.core.data.greyed import greyed
from triport.core.data.readers.image_files import read_image
from triport.core.data.readers.tree import is_image
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.reading import Reading
from triport.core.record.console import show
from triport.core.run.subject import Subject
from triport.core.selection import selected
from triport.core.spec import Recipe
from triport.verbs import model, options, pictures

Split = Literal["train", "val", "all"]
FORMS = (".npz", ".parquet")


@dataclass(frozen=True)
class Features:
    """Features (n, width) float32 with what each row is of; `labels` are places in `classes`, -1 where not known."""

    rows: np.ndarray
    files: list[str]
    labels: np.ndarray
    splits: list[str]
    classes: list[str]
    model: str  # its digest
    origin: str

    def class_names(self) -> list[str]:
        """The class name of each row, "" where it is not known."""
        return [self.classes[label] if label >= 0 else "" for label in self.labels]


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("embed", "Write the features of pictures to a file, with the names of pictures and classes.")
    p.epilog = "On several processes, without names: triport evaluate RUN --data D --embed features.npz --processes N."
    p.add_argument("images", nargs="*", metavar="IMAGES_OR_DATA", help="pictures, folders, patterns; or one data set")
    p.add_argument("--data", metavar="PATH", help="the data set, instead of IMAGES_OR_DATA")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="features.npz or features.parquet")
    p.add_argument("--split", choices=("train", "val", "all"), help="of a data set (all)")
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    return p


def main(argv: Sequence[str]) -> int:
    """Write features; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    words = [*given.images, *([given.data] if given.data else [])]
    if not words:
        raise UserError("name pictures or a data set to embed, as in `triport embed RUN photos/ --out features.npz`.")
    options.free(options.ending(given.out, FORMS, "--out"), given.overwrite)
    found = model.subject(given.model, given.recipe, selection=selected(given))
    features = of(found, words, given.split or "all", given.backend, given.device, given.batch)
    write(given.out, features)
    count, width = features.rows.shape
    show(f"{found.origin}: features of {count} pictures, {width} wide, are in {given.out}")
    return 0


def of(
    found: Subject,
    words: Sequence[str | Path],
    split: Split = "all",
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Features:
    """Return the features of pictures, or of a data set's `split`; pictures that cannot be read are left out."""
    return of_parts(found, *sources(found, words, split), backend, device, batch)


def of_parts(
    found: Subject,
    parts: Sequence[tuple[str, Dataset]],
    classes: list[str],
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Features:
    """Return the features of named parts of a data set."""
    embed = api.make_learner(found, backend, device).embed
    rows, files, labels, splits = [], [], [], []
    for line in dict.fromkeys(greyed(part) for _, part in parts if isinstance(part, Samples)):
        if line:
            pictures.tell(line)
    for name, part in parts:
        names = [where(part, index) for index in range(len(part))]
        for indices, images in pictures.batches(found.recipe, names, part.image, batch):
            rows.append(embed(pictures.normalised(found.recipe, images)).astype(np.float32))
            files += [names[index] for index in indices]
            labels += [part.label(index) for index in indices]
            splits += [name] * len(indices)
    numbers = np.asarray(labels, np.int64)
    return Features(np.concatenate(rows), files, numbers, splits, classes, model.digest(found), found.origin)


def where(part: Dataset, index: int) -> str:
    """What names an image: its path, or its place in a file."""
    return str(part.where(index)) if hasattr(part, "where") else f"{part.name}[{index}]"


def sources(found: Subject, words: Sequence[str | Path], split: Split) -> tuple[list[tuple[str, Dataset]], list[str]]:
    """Return the named parts of what is asked for, and the class names: a data set's splits, or plain pictures."""
    if len(words) == 1 and not is_picture(words[0]):
        return splits_of(found, str(words[0]), split)
    return [("all", Files(found.recipe, pictures.find(words), found.reading))], []


def is_picture(word: str | Path) -> bool:
    """Say whether a word names a picture or a pattern, not a data set."""
    path = Path(word).expanduser()
    return (path.is_file() and is_image(path.name) and path.suffix != ".npy") or (
        not path.exists() and any(sign in str(word) for sign in "*?[")
    )


def splits_of(found: Subject, data: str, split: Split) -> tuple[list[tuple[str, Dataset]], list[str]]:
    """Return the splits of a data set with their names; what is not divided is one part, "all"."""
    recipe, channels = found.recipe, found.recipe.model.encoder.channels
    if split != "all":
        part = open_dataset(data, split, recipe.data, channels, **found.reading)
        return [(split, part)], list(part.classes)
    if kind_of(data) == "flat":
        part = open_dataset(data, "val", recipe.data, channels, **found.reading)
        return [("all", part)], list(part.classes)
    train = open_dataset(data, "train", recipe.data, channels, **found.reading)
    try:
        test = open_dataset(data, "val", recipe.data, channels, **found.reading)
    except UserError as error:
        pictures.tell(f"{error} Only the training split is embedded.")
        return [("train", train)], list(train.classes)
    try:
        check_apart(train, test)
    except UserError:  # not divided: the same images for any split
        return [("all", train)], list(train.classes)
    if list(test.classes) != list(train.classes):
        pictures.tell("training and held-out images have other classes: only the training split is embedded.")
        return [("train", train)], list(train.classes)
    return [("train", train), ("val", test)], list(train.classes)


@dataclass
class Files:
    """Pictures without classes; a Dataset."""

    recipe: Recipe
    paths: list[Path]
    reading: Reading = field(default_factory=dict)
    name: str = "pictures"

    def __post_init__(self) -> None:
        self.classes: list[str] = []
        self.channels = self.recipe.model.encoder.channels
        pictures.warn_of_grey(self.recipe, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int, /) -> np.ndarray:
        """Picture `index`."""
        return as_array(read_image(str(self.paths[index]), Decoding(self.channels, **self.reading)))

    def label(self, index: int, /) -> int:
        """Nobody knows it."""
        return -1

    def where(self, index: int) -> str:
        """The path of picture `index`."""
        return str(self.paths[index])


# ---------------------------------------------------------------- files
def write(path: Path, features: Features) -> None:
    """Write features to an .npz or .parquet file, whole or not at all."""
    save = write_npz if path.suffix == ".npz" else write_parquet
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as part:
            save(part, features)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


def write_npz(path: Path, features: Features) -> None:
    """Arrays without pickles: features, labels, files, class_names, splits (n each), classes, model, origin."""
    with path.open("wb") as file:
        np.savez(
            file,
            features=features.rows,
            labels=features.labels,
            files=np.array(features.files, np.str_),
            class_names=np.array(features.class_names(), np.str_),
            splits=np.array(features.splits, np.str_),
            classes=np.array(features.classes, np.str_),
            model=np.array(features.model),
            origin=np.array(features.origin),
        )


def write_parquet(path: Path, features: Features) -> None:
    """A row for each picture: file, class_name, label, split, features; model, origin and classes as metadata."""
    pyarrow, parquet = arrow()
    values = pyarrow.array(features.rows.reshape(-1), pyarrow.float32())
    table = pyarrow.table(
        {
            "file": features.files,
            "class_name": features.class_names(),
            "label": pyarrow.array(features.labels),
            "split": features.splits,
            "features": pyarrow.FixedSizeListArray.from_arrays(values, features.rows.shape[1]),
        }
    )
    words = {"model": features.model, "origin": features.origin, "classes": json.dumps(features.classes)}
    parquet.write_table(table.replace_schema_metadata(words), path)


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its parquet; UserError with the remedy where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet files need pyarrow: pip install 'triport[parquet]', or write .npz.") from None
    return pyarrow, pyarrow.parquet


def read(path: Path) -> Features:
    """Read a file that `write` wrote; UserError for another."""
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path} is not a file of features that triport embed wrote: {error}.") from None


def _read_npz(path: Path) -> Features:
    with np.load(path) as found:
        texts = {name: found[name].tolist() for name in ("files", "splits", "classes")}
        rows, labels = np.asarray(found["features"], np.float32), np.asarray(found["labels"], np.int64)
        return Features(
            rows, texts["files"], labels, texts["splits"], texts["classes"], str(found["model"]), str(found["origin"])
        )


def _read_parquet(path: Path) -> Features:
    _, parquet = arrow()
    table = parquet.read_table(path)
    words = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    rows = np.stack(table["features"].combine_chunks().to_numpy(zero_copy_only=False)).astype(np.float32)
    labels = np.asarray(table["label"], np.int64)
    names = table["file"].to_pylist(), table["split"].to_pylist()
    return Features(rows, names[0], labels, names[1], json.loads(words["classes"]), words["model"], words["origin"])
