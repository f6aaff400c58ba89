"""What a file of weights holds; headers only, unless values are asked for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.errors import UserError
from triport.core.model.position import table
from triport.core.selection import EVERYTHING, Selection
from triport.weights import transforms
from triport.weights.arrays import Lazy, inert
from triport.weights.layouts.layout import shown
from triport.weights.model import facts
from triport.weights.model.completeness import differences
from triport.weights.model.detect import Ambiguous
from triport.weights.model.opening import LISTED, Opened, open_model, read_file
from triport.weights.model.provenance import notice
from triport.weights.model.reading import Reading
from triport.weights.model.states import State, states

METHODS = {
    "moco": "MoCo v3",
    "mae": "MAE",
    "classifier": "a classifier",
    "encoder": "a bare encoder",
}
SHOWN = 20  # objects of unknown classes that people are shown
PIECE = 1 << 20  # values whose statistics are taken at once
TABLE_BOUND = 1e-5  # frameworks compute the fixed tables to about 1e-6


@dataclass
class Row:
    """One array of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    canonical: str | None = None
    least: float | None = None
    greatest: float | None = None
    mean: float | None = None
    deviation: float | None = None
    nonfinite: int | None = None


@dataclass
class Inspection:
    """What is known of a file; None for what it does not tell."""

    path: str
    form: str
    variant: str
    arrays: int
    elements: int
    dtypes: dict[str, int]
    layout: str | None = None
    same_layouts: list[str] = field(default_factory=list)  # which read the file alike
    fault: str | None = None  # why no layout was found
    method: str | None = None
    parts: list[str] = field(default_factory=list)
    architecture: str | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    norm_eps: float | None = None
    classes: int | None = None
    parameters: int | None = None  # batch-norm statistics and counters apart
    epoch: int | None = None
    arch: str | None = None  # the file's own word
    recipe: str | None = None
    normalised_pixels: bool | None = None
    optimizer: bool = False
    position_table: str | None = None  # with values: "moco", "mae" or "another"
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # why `convert` refuses it
    licence: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    average: str | None = None  # where another average of the weights is
    inert: list[str] = field(default_factory=list)  # objects of unknown classes, with their class
    nonfinite: int | None = None  # with values
    rows: list[Row] = field(default_factory=list)  # with tensors

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For people: what, and its value."""
        target = {True: "normalised pixels", False: "pixels", None: "not stated"}[self.normalised_pixels]
        like = f" (read alike by {', '.join(self.same_layouts)})" if self.same_layouts else ""
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        rows: list[tuple[str, object]] = [
            ("file", f"{self.path} ({self.variant or self.form})"),
            ("layout", f"{self.layout}{like}" if self.layout else f"none: {self.fault}"),
            ("holds", self.method and f"{METHODS[self.method]}: {', '.join(self.parts)}"),
            ("optimiser", "yes" if self.optimizer else "no"),
            ("architecture", self.architecture),
            (
                "norm epsilon",
                self.norm_eps or ("not stated" if self.architecture and "ViT" in self.architecture else None),
            ),
            ("classes", self.classes),
            ("target", target if self.method == "mae" else None),
            ("positions", self.position_table and f"{self.position_table} table"),
            ("epoch", self.epoch),
            ("arch field", self.arch),
            ("recipe", self.recipe),
            ("parameters", None if self.parameters is None else f"{self.parameters:,}"),
            (
                "arrays",
                f"{self.arrays}, {self.elements:,} elements, {kinds}",
            ),
            ("average", self.average and f"{self.average}: taken with --ema"),
            ("not loaded", ", ".join(self.inert[:SHOWN]) + ("" if len(self.inert) <= SHOWN else " …") or None),
            ("non-finite", self.nonfinite),
            ("missing", ", ".join(map(shown, self.missing)) or None),
            ("unknown", ", ".join(map(shown, self.unknown)) or None),
            ("incomplete", "; ".join(self.differences) or None),
            ("licence", self.licence),
            ("source", self.provenance.get("source")),
        ]
        return [(key, str(value)) for key, value in rows if value is not None]


def inspect(
    path: str | Path,
    *,
    tensors: bool = False,
    values: bool = False,
    from_: str | None = None,
    selection: Selection = EVERYTHING,
) -> Inspection:
    """Say what a checkpoint holds.

    tensors: a row per array with its statistics; values: count non-finite values and tell the position table;
    selection: the key, prefix or average to look at, where the file holds more than one model.
    Both read every value; without them only headers are read. A file without a known layout is described as far as
    that goes; UserError for a file that does not hold weights.
    """
    path = Path(path)
    opened, fault = _opened(path, from_, selection)
    file = opened.file if opened else read_file(path)
    state = opened.candidate.state if opened else next((s for s in states(file.tree) if s.arrays), None)
    if state is None:
        raise UserError(fault)
    dtypes: dict[str, int] = {}
    for array in state.arrays.values():
        dtypes[array.dtype] = dtypes.get(array.dtype, 0) + 1
    elements = sum(array.size for array in state.arrays.values())
    found = Inspection(str(path), file.form, file.note, len(state.arrays), elements, dtypes, fault=fault or None)
    found.inert = [f"{shown(key)} ({record.name})" for key, record in islice(inert(file.tree), LISTED)]
    if opened:
        _describe(found, opened)
        found.average = opened.average or None
        found.layout = found.layout if not fault else None
    else:
        stated = facts.read(file.tree, file.metadata, file.path)
        found.epoch, found.arch, found.optimizer = stated.epoch, stated.arch, stated.optimizer
    if tensors or values:
        _read_values(found, state, opened, tensors)
    return found


def _opened(path: Path, from_: str | None, selection: Selection) -> tuple[Opened | None, str]:
    """The file as a model, if it is one, and why its layout is not known; one of several layouts tells of the rest."""
    try:
        return open_model(path, Reading(from_=from_, selection=selection), trust=True), ""
    except Ambiguous as choice:
        return open_model(path, Reading(from_=choice.names[0], selection=selection), trust=True), str(choice)
    except UserError as error:
        return None, str(error)


def _describe(found: Inspection, opened: Opened) -> None:
    candidate, stated, shape = opened.candidate, opened.facts, opened.model.architecture
    found.layout = candidate.layout.name
    found.same_layouts = [layout.name for layout in candidate.same]
    found.method, found.parts, found.architecture = shape.method, list(shape.parts), shape.describe()
    found.heads, found.decoder_heads = shape.heads, shape.decoder_heads
    found.classes = shape.classes or None
    expected = shape.expected()
    names = [name for name in opened.model.pieces if name not in expected or not expected[name].buffer]
    found.parameters = sum(math.prod(opened.model.pieces[name].shape) for name in names)
    found.epoch, found.arch, found.recipe = stated.epoch, stated.arch, stated.recipe
    found.normalised_pixels = stated.normalised_pixels
    found.optimizer = stated.optimizer or (stated.own and (opened.file.path.parent / "optimizer.safetensors").is_file())
    found.missing, found.unknown = list(opened.report.missing), list(opened.report.unknown)
    found.norm_eps = shape.norm_eps
    found.differences = differences(candidate, opened.model, opened.report)
    found.licence = notice(candidate.layout, stated, opened.file.path)
    found.provenance = stated.provenance


def _read_values(found: Inspection, state: State, opened: Opened | None, tensors: bool) -> None:
    canonical = (
        {s: name for name, p in opened.model.pieces.items() for s in p.sources} if opened and found.layout else {}
    )
    found.nonfinite = 0
    for name, array in state.arrays.items():
        row = statistics(state.full(name), array)
        row.canonical = canonical.get(row.name)
        found.nonfinite += row.nonfinite or 0
        if tensors:
            found.rows.append(row)
    if opened and opened.model.architecture.grid and "pos_embed" in "".join(opened.model.pieces):
        found.position_table = position_table(opened)


def statistics(name: str, array: Lazy) -> Row:
    """Read one array and describe its values, in float64."""
    row = Row(name, array.shape, array.dtype)
    if not array.size or array.dtype.startswith("complex"):
        return row
    values = array.read().reshape(-1)
    return _described(row, values)


def _finite(values: np.ndarray) -> np.ndarray:
    """The finite ones of some values, in float64."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    return wide if finite.all() else wide[finite]


def _described(row: Row, values: np.ndarray) -> Row:
    """Fill in a row; piece by piece, so that float64 never costs more than a few MB."""
    pieces = [values[begin : begin + PIECE] for begin in range(0, values.size, PIECE)]
    count, total, least, greatest = 0, 0.0, np.inf, -np.inf
    for piece in map(_finite, pieces):
        if piece.size:
            count, total = count + piece.size, total + float(piece.sum())
            least, greatest = min(least, float(piece.min())), max(greatest, float(piece.max()))
    row.nonfinite = values.size - count if transforms.floating(row.dtype) else 0
    if count:
        row.least, row.greatest, row.mean = least, greatest, total / count
        squares = sum(float(np.square(piece - row.mean).sum()) for piece in map(_finite, pieces))
        row.deviation = math.sqrt(squares / count)
    return row


def position_table(opened: Opened) -> str:
    """Which fixed table the encoder's positions are: "moco", "mae" or "another" (learned, or resampled)."""
    shape = opened.model.architecture
    name = next(name for name in opened.model.pieces if name.endswith("pos_embed"))
    own = opened.model.pieces[name].arrays[0].read().astype(np.float64)
    for kind in ("moco", "mae"):
        fixed = table(kind, shape.width, shape.grid or (0, 0)) if shape.width % 4 == 0 else None
        if fixed is not None and fixed.shape == own.shape and np.abs(own - fixed).max() < TABLE_BOUND:
            return kind
    return "another"
