"""`triport convert --verify`: source and target computed in numpy on a fixed input, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from triport.core.errors import UserError
from triport.core.spec import MAE, Classifier, Encoder, MoCo, ModelSpec, Pair
from triport.weights.canonical import BASE, MOMENTUM, Architecture, part
from triport.weights.model.changes import resize
from triport.weights.model.model import Model, select
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.reading import Reading
from triport.weights.model.report import Report

BOUND = 1e-5  # relative; folding a batch norm into float32 weights costs 1e-7
RESNET_IMAGE = (64, 64)  # any size does


def main(argv: Sequence[str]) -> int:
    """Run `triport convert`, with `--verify` at hand."""
    from triport.weights.commands.command import main as command

    return command(argv, verify)


def verify(report: Report, how: Reading, image: Pair | None = None, dtype: str | None = None) -> dict[str, float]:
    """Compute a conversion's source and target in numpy float64 and return the largest difference of each output.

    report: of the conversion; how: as its source was read; image, dtype: what it changed. Differences are relative to
    the output's largest value. Compared is what both hold: features, and logits, projections or predictions.
    UserError where they are further apart than another dtype explains.
    """
    if report.partial:
        raise UserError(f"{report.target} was written as asked for, but a partial model cannot be verified")
    source = open_model(report.source, how)
    if image:
        source.model = resize(source.model, image, Report())
    target = open_model(report.target, Reading(from_=report.to_layout))
    for opened in (source, target):  # a file that does not tell its heads has those of the conversion
        opened.model.heads = opened.model.heads or report.heads
        opened.model.decoder_heads = opened.model.decoder_heads or report.decoder_heads
    models = _alike(source, target)
    found: dict[str, float] = {}
    before, after = (_outputs(model) for model in models)
    for name, wanted in before.items():
        scale = float(np.abs(wanted).max()) or 1.0
        found[name] = float(np.abs(after[name] - wanted).max()) / scale
    worst = max(found, key=lambda name: found[name])
    if not dtype and not found[worst] <= BOUND:
        raise UserError(
            f"{report.target} was written, but computes something else: its {worst} differ by {found[worst]:.2g} "
            "of the largest; do not use it"
        )
    report.verified = found
    return found


def _alike(source: Opened, target: Opened) -> tuple[Model, Model]:
    """Both models with the parts that both have."""
    mine, theirs = source.model, target.model
    if mine.architecture.method != theirs.architecture.method:
        mine, theirs = (_encoder(model) for model in (mine, theirs))
    common = set(mine.architecture.parts) & set(theirs.architecture.parts)
    return _parts(mine, common), _parts(theirs, common)


def _encoder(model: Model) -> Model:
    return model if model.architecture.method == "encoder" else select(model, "encoder", Report())


def _parts(model: Model, parts: set[str]) -> Model:
    pieces = {name: piece for name, piece in model.pieces.items() if part(name) in parts}
    shape = replace(model.architecture, parts=tuple(p for p in model.architecture.parts if p in parts))
    return replace(model, pieces=pieces, architecture=shape)


def _outputs(model: Model) -> dict[str, np.ndarray]:
    """What a model computes of a fixed image, by name."""
    from triport.parity_tests.reference.objectives import embed, forward

    shape = model.architecture
    shape = replace(shape, heads=model.heads or 1, decoder_heads=model.decoder_heads or 1)
    encoder = shape.encoder()
    arrays = {name: array.read() for name, array in model.arrays().items()}
    rng = np.random.default_rng(0)
    size = encoder.image if shape.family == "vit" else RESNET_IMAGE
    inputs = {"images": rng.standard_normal((1, shape.channels, *size)), "mask_noise": rng.random((1, shape.tokens))}
    plain = Classifier(classes=1, pooling=_pooling(shape), head_std=0)
    found: dict[str, np.ndarray] = {}
    for prefix, name in ((BASE, "features"), (MOMENTUM, "features of the momentum encoder"), ("", "features")):
        own = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
        if {"cls_token", "conv1.weight"} & set(own):
            found[name] = embed(ModelSpec(encoder=encoder, objective=plain), own, inputs["images"])
    whole = _whole(shape, encoder)
    if whole is not None:
        answer = forward(whole, arrays, inputs)
        found |= {name: answer[name] for name in ("projection", "prediction", "logits") if name in answer}
    return found


def _pooling(shape: Architecture) -> Literal["token", "mean"]:
    return "mean" if shape.pooled or shape.family == "resnet" else "token"


def _whole(shape: Architecture, encoder: Encoder) -> ModelSpec | None:
    """The model with what stands on its encoder; None where that is not whole."""
    objective: MoCo | MAE | Classifier | None = None
    if {"projector", "predictor"} <= set(shape.parts):
        objective = MoCo(temperature=1, momentum=0, hidden=shape.projector[0], dim=shape.projector[1])
    elif "decoder" in shape.parts:
        objective = MAE(
            normalised_pixels=False,
            decoder_width=shape.decoder_width,
            decoder_depth=shape.decoder_depth,
            decoder_heads=shape.decoder_heads or 1,
        )
    elif "head" in shape.parts:
        objective = Classifier(classes=shape.classes, pooling=_pooling(shape), head_std=0, head_norm=shape.head_norm)
    return ModelSpec(encoder=encoder, objective=objective) if objective else None
