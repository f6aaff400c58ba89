"""Models as checkpoints of other projects have them: full-size names without values, small models with values."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from core.inventory import encoder_inventory, inventory
from core.spec import MAE, Classifier, MoCo, ModelSpec, ResNet, ViT
from parity_tests import small
from weights.arrays import DTYPES, Lazy, lazy
from weights.canonical import architecture
from weights.detect import detect
from weights.layout import Layout, write_name
from weights.model import Model, Piece, decode
from weights.report import Report

MOCO = MoCo(temperature=0.2, momentum=0.99)
PIXELS = MAE(normalised_pixels=True)
HEAD = Classifier(classes=1000, pooling="token", head_std=0.01)
SIZES = {"small": (384, 12, 12, 16), "base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}


def vit(size: str, **changes: Any) -> ViT:
    width, depth, heads, patch = SIZES[size]
    own = ViT(width=width, depth=depth, heads=heads, patch=(patch, patch), position="moco", first_values="moco")
    return replace(own, **changes)


FULL = {
    "moco small": ModelSpec(encoder=vit("small"), objective=MOCO),
    "moco base": ModelSpec(encoder=vit("base"), objective=MOCO),
    "moco large": ModelSpec(encoder=vit("large"), objective=MOCO),
    "moco conv small": ModelSpec(encoder=vit("small", depth=11, stem="conv"), objective=MOCO),
    "moco resnet50": ModelSpec(encoder=ResNet(depth=50, zero_init_residual=True), objective=MOCO),
    "mae base": ModelSpec(encoder=vit("base"), objective=PIXELS),
    "mae large": ModelSpec(encoder=vit("large"), objective=PIXELS),
    "mae huge": ModelSpec(encoder=vit("huge"), objective=PIXELS),
    "token base": ModelSpec(encoder=vit("base"), objective=HEAD),
    "mean huge": ModelSpec(encoder=vit("huge", image=(448, 448)), objective=replace(HEAD, pooling="mean")),
    "probe base": ModelSpec(encoder=vit("base"), objective=replace(HEAD, head_norm=True)),
    "resnet50": ModelSpec(encoder=ResNet(depth=50, zero_init_residual=False), objective=replace(HEAD, pooling="mean")),
}


def narrow(spec: ModelSpec) -> ModelSpec:
    """A model with all the names of a full-size one, so narrow that its values are quickly made; ResNets stay."""
    encoder, objective = spec.encoder, spec.objective
    if isinstance(encoder, ViT):
        encoder = replace(encoder, width=2 * encoder.heads)
    if isinstance(objective, MoCo):
        objective = replace(objective, hidden=8, dim=4)
    elif isinstance(objective, MAE):
        objective = replace(objective, decoder_width=2 * objective.decoder_heads)
    return ModelSpec(encoder=encoder, objective=objective)


def random_bits(name: str, array: Lazy) -> Lazy:
    """An array of the same shape with bits that only its name decides, made anew at each reading."""

    def load() -> np.ndarray:
        dice = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
        return dice.integers(0, 256, array.nbytes, dtype=np.uint8).view(DTYPES[array.dtype]).reshape(array.shape)

    return Lazy(array.shape, array.dtype, load)


def never() -> np.ndarray:
    raise AssertionError("a value was read where names are enough")


def shapes_of(spec: ModelSpec, encoder: bool = False) -> dict[str, Lazy]:
    """Names and shapes without values."""
    found = encoder_inventory(spec.encoder) if encoder else inventory(spec)
    return {p.name: Lazy(p.shape, "int64" if p.role == "counter" else "float32", never) for p in found}


def values_of(spec: ModelSpec) -> dict[str, Lazy]:
    return {name: lazy(array) for name, array in small.arrays(spec).items()}


def model_of(spec: ModelSpec, arrays: dict[str, Lazy]) -> Model:
    """A model as if it had been read under canonical names."""
    heads = spec.encoder.heads if isinstance(spec.encoder, ViT) else None
    decoder = spec.objective.decoder_heads if isinstance(spec.objective, MAE) else None
    pieces = {name: Piece(a.shape, (a,), (name,)) for name, a in arrays.items()}
    shape = architecture({name: a.shape for name, a in arrays.items()})
    return Model(pieces, shape, heads, decoder)


def holds(layout: Layout, model: Model) -> bool:
    shape = model.architecture
    if shape.method not in layout.methods or layout.family_for(model.pieces, shape.family) is None:
        return False
    family = layout.family_for(model.pieces, shape.family)
    return all(write_name(layout, str(family), n) for n in model.pieces if layout.counters or "num_batches" not in n)


def tree_of(layout: Layout, state: dict[str, Lazy]) -> dict[str, Any]:
    return {layout.container: state} if layout.container else dict(state)


def back(layout: Layout, state: dict[str, Lazy], model: Model) -> dict[str, Lazy]:
    candidate = detect(tree_of(layout, state), "", (layout,))
    found = decode(candidate, Report())
    found.heads, found.decoder_heads = model.heads, model.decoder_heads
    return found.arrays()
