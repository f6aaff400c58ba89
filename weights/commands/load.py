"""Weights for a model: any checkpoint as arrays that fit a spec, or one line that says why not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from triport.core.errors import UserError
from triport.core.model.inventory import encoder_inventory, grid, inventory
from triport.core.model.parameters import Parameter
from triport.core.selection import EVERYTHING, Selection
from triport.core.spec import Classifier, Encoder, ModelSpec, Pair, ViT
from triport.weights import transforms
from triport.weights.arrays import Lazy
from triport.weights.canonical import architecture, part
from triport.weights.model.changes import resize
from triport.weights.model.detect import Ambiguous
from triport.weights.model.model import Model
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.provenance import notice
from triport.weights.model.reading import Choices, Only, Reading
from triport.weights.model.report import Report

if TYPE_CHECKING:
    from triport.weights.model.reading import Unpack

Arrays = dict[str, np.ndarray]


def load_weights(path: str | Path, **choices: Unpack[Choices]) -> Arrays:
    """Read any checkpoint: canonical names to arrays, in the dtypes of the file; choices: the fields of `Reading`."""
    return {name: _own(array) for name, array in open_model(path, Reading(**choices)).model.arrays().items()}


def licence(path: str | Path) -> str:
    """The licence notice of a checkpoint's weights, which whatever begins with them carries on."""
    opened = open_model(path, Reading())
    return notice(opened.candidate.layout, opened.facts, opened.file.path)


def load_encoder(
    path: str | Path,
    spec: Union[ModelSpec, Encoder],
    *,
    only: Only = "encoder",
    from_: str | None = None,
    selection: Selection = EVERYTHING,
) -> tuple[Arrays, Report]:
    """Read the encoder out of any checkpoint, ready for a model.

    Projector, predictor, decoder, optimiser and, unless `only` is "momentum", the momentum encoder are dropped. The
    arrays come back float32 under plain encoder names ("blocks.0.attn.qkv.weight"), position tables resampled to the
    spec's image size. The report lists what is missing and what the model has no place for; with averaged patches the
    file's `norm` is left out, and `fc_norm` is there only if the file has one.
    UserError, in one line, for another architecture or number of heads, and for a file that does not hold such a model.
    """
    encoder = spec.encoder if isinstance(spec, ModelSpec) else spec
    heads = encoder.heads if isinstance(encoder, ViT) else None
    how = Reading(
        from_=from_,
        only="momentum" if only == "momentum" else "encoder",
        heads=heads,
        norm_eps=_eps(encoder),
        selection=selection,
    )
    opened = _open(path, how, _pooled(spec))
    expected = _encoder_names(spec) if isinstance(spec, ModelSpec) else encoder_inventory(encoder)
    return _ready(opened, encoder, {p.name: p for p in expected}, drawn="fc_norm.")


def load_model(
    path: str | Path, spec: ModelSpec, *, from_: str | None = None, selection: Selection = EVERYTHING
) -> tuple[Arrays, Report]:
    """Read a whole model (encoders, projectors and predictor; decoder; head) from any checkpoint of the same objective.

    Arrays come back float32 (counters int64) under canonical names; the report lists what is missing.
    """
    encoder = spec.encoder
    heads = encoder.heads if isinstance(encoder, ViT) else None
    decoder = spec.objective.decoder_heads if spec.objective.kind == "mae" else None
    how = Reading(from_=from_, heads=heads, decoder_heads=decoder, norm_eps=_eps(encoder), selection=selection)
    opened = _open(path, how, _pooled(spec))
    method = opened.model.architecture.method
    if method != spec.objective.kind:
        raise UserError(f"{path} holds {_a(method)}, the model is {_a(spec.objective.kind)}: load its encoder instead")
    return _ready(opened, encoder, {p.name: p for p in inventory(spec)})


def _open(path: str | Path, asked: Reading, pooled: bool) -> Opened:
    """Open with a model's heads for layouts that go by head; a file that says other heads or epsilon is refused."""
    how = Reading(from_=asked.from_, only=asked.only, selection=asked.selection)
    try:
        opened = open_model(path, how)
    except Ambiguous as choice:  # LiBai calls two norms alike: the model says which of them it has
        fitting = [name for name in choice.names if ("finetune" in name) == pooled]
        if len(fitting) != 1:
            raise
        opened = open_model(path, replace(how, from_=fitting[0]))
    for own, wanted, word, key in (
        (opened.facts.heads, asked.heads, "heads", "encoder.heads"),
        (opened.facts.decoder_heads, asked.decoder_heads, "decoder heads", "objective.decoder_heads"),
        (opened.facts.norm_eps, asked.norm_eps, "as norm epsilon", "encoder.norm_eps"),
    ):
        if own is not None and wanted is not None and own != wanted and opened.model.architecture.family == "vit":
            raise UserError(
                f"{path} was trained with {own} {word}, the model has {wanted}: shapes agree, features would not. "
                f"Set model.{key}={own}"
            )
    opened.model.heads = opened.model.heads or asked.heads
    opened.model.decoder_heads = opened.model.decoder_heads or asked.decoder_heads
    opened.report.heads, opened.report.decoder_heads = opened.model.heads, opened.model.decoder_heads
    opened.model.architecture = replace(
        opened.model.architecture, heads=asked.heads, decoder_heads=asked.decoder_heads, norm_eps=asked.norm_eps
    )
    opened.report.architecture = opened.model.architecture.describe()
    return opened


def _eps(encoder: Encoder) -> float | None:
    return encoder.norm_eps if isinstance(encoder, ViT) else None


def _pooled(spec: ModelSpec | Encoder) -> bool:
    """Whether a model averages patches and has fc_norm in the place of norm."""
    objective = spec.objective if isinstance(spec, ModelSpec) else None
    return isinstance(objective, Classifier) and objective.pooling == "mean"


def _encoder_names(spec: ModelSpec) -> tuple[Parameter, ...]:
    """The encoder's own names in a spec; of MoCo, without the prefix."""
    if spec.objective.kind in ("moco", "mae"):
        return encoder_inventory(spec.encoder)
    return tuple(p for p in inventory(spec) if part(p.name) == "encoder")


def _ready(
    opened: Opened, encoder: Encoder, expected: dict[str, Parameter], drawn: str = "\0"
) -> tuple[Arrays, Report]:
    """The arrays that a model asks for, float32, and what became of the others; names in `drawn` may be absent."""
    model, report = opened.model, opened.report
    _check_encoder(model, encoder, expected, report)
    if isinstance(encoder, ViT):
        tokens, own = model.architecture.tokens, _own_grid(opened)
        if _pixels_differ(model, encoder, own):
            model = resize(model, encoder.image, report, own or _same_aspect(tokens, grid(encoder)))
        elif own is None and model.architecture.grid is None:
            sides = " x ".join(map(str, grid(encoder)))
            report.notes.append(f"the file does not say how its {tokens} patches lie: taken as the model's {sides}")
    arrays = model.arrays()
    report.missing = [name for name in expected if name not in arrays and not name.startswith(drawn)]
    fresh = [name for name in expected if name not in arrays and name.startswith(drawn)]
    if fresh:
        report.notes.append(f"not in the file, newly initialised: {', '.join(fresh)}")
    found: Arrays = {}
    for name, array in arrays.items():
        if name not in expected:
            pooled = "fc_norm.weight" in expected and name.startswith("norm.")
            why = "the model averages patches and has fc_norm in its place"
            report.dropped.append((name, why)) if pooled else report.unknown.append(name)
        elif array.shape != expected[name].shape:
            raise UserError(
                f"{report.source}: '{name}' has the shape {array.shape}, the model asks for {expected[name].shape}; "
                f"the file holds a {model.architecture.describe()}"
            )
        else:
            piece = model.pieces[name]
            found[name] = _own(transforms.cast(array, "float32"))
            report.carry(name, piece.sources, (name,), (*piece.rearrangements, *piece.done))
    return found, report


def _check_encoder(model: Model, encoder: Encoder, expected: dict[str, Parameter], report: Report) -> None:
    """UserError where the file holds another encoder, with the first thing that differs."""
    asked = architecture({p.name: p.shape for p in encoder_inventory(encoder)})
    if model.architecture.same_encoder(asked):
        return
    asked = replace(asked, heads=encoder.heads if isinstance(encoder, ViT) else None)
    found = {name: piece.shape for name, piece in model.pieces.items() if "pos_embed" not in name}
    first = next((f"'{n}' has the shape {s}, not {expected[n].shape}" for n, s in found.items() if n in expected
                  and s != expected[n].shape), "")  # fmt: skip
    alone = [n for n in [*expected, *found] if (n in expected) != (n in found) and "pos_embed" not in n]
    first = first or f"only one of them has '{alone[0]}'"
    raise UserError(
        f"{report.source} holds a {model.architecture.describe()}, the model is a {asked.describe()}: {first}"
    )


def _own_grid(opened: Opened) -> Pair | None:
    """The grid that the file itself tells, where it is that of its position table."""
    stated = opened.facts.grid
    return stated if stated and stated[0] * stated[1] == opened.model.architecture.tokens else None


def _pixels_differ(model: Model, encoder: ViT, own: Pair | None) -> bool:
    rows, columns = grid(encoder)
    same_patch = model.architecture.patch == encoder.patch and model.architecture.width == encoder.width
    square = own or model.architecture.grid
    differ = square != (rows, columns) if square else model.architecture.tokens != rows * columns
    return same_patch and differ


def _same_aspect(tokens: int, new: Pair) -> Pair | None:
    """The grid of as many patches with the aspect of a new one, for tables that are not square; None without one."""
    if math.isqrt(tokens) ** 2 == tokens:
        return None
    rows = round(math.sqrt(tokens * new[0] / new[1]))
    columns = tokens // rows if rows else 0
    return (rows, columns) if rows * columns == tokens and rows * new[1] == columns * new[0] else None


def _a(method: str) -> str:
    return {"moco": "MoCo v3", "mae": "MAE", "classifier": "a classifier", "encoder": "an encoder alone"}[method]


def _own(array: Lazy) -> np.ndarray:
    """Values that may be changed."""
    value = array.read()
    return value if value.flags.writeable and value.base is None else value.copy()
