"""What stands beside model.safetensors in a folder of transformers or timm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from triport.weights import transforms
from triport.weights.arrays import Lazy, lazy
from triport.weights.hub.card import Origin, card, measured
from triport.weights.hub.config import described, for_timm, for_transformers, timm_line, transformers_line
from triport.weights.hub.preprocessing import preprocessing
from triport.weights.model.facts import Facts
from triport.weights.model.model import Model
from triport.weights.model.opening import Opened
from triport.weights.model.report import Report

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PREPROCESSOR = "preprocessor_config.json"
NAMES = (WEIGHTS, CONFIG, PREPROCESSOR, CARD)
LIBRARIES = {"hf": "transformers", "timm": "timm"}  # by the first word of a layout's name


def library(layout: str) -> str | None:
    """The library whose folders hold a layout; None for a layout without folders of its own."""
    return LIBRARIES.get(layout.partition("-")[0])


def family(model: Model) -> str:
    """The table under whose names transformers saves a model: without the prefix where nothing is on the encoder."""
    return "vit-bare" if (model.architecture.method, model.architecture.family) == ("encoder", "vit") else ""


def with_pooler(state: dict[str, Lazy], model: Model, report: Report) -> dict[str, Lazy]:
    """What ViTModel asks for beside the encoder: a pooler, which becomes the identity."""
    if model.architecture.method != "encoder":
        return state
    width, dtype = model.architecture.width, next(iter(state.values())).dtype
    made = {
        "pooler.dense.weight": transforms.cast(lazy(np.eye(width, dtype=np.float32)), dtype),
        "pooler.dense.bias": transforms.constant((width,), dtype, 0),
    }
    report.made += [(name, "ViTModel asks for a pooler: the identity, so that it gives the feature") for name in made]
    return state | made


def texts(library: str, opened: Opened, model: Model, report: Report, target: Path) -> dict[str, str]:
    """The files beside the weights, by name, with the line that loads the folder noted in the report.

    UserError for a model that the library's configuration cannot say.
    """
    facts, shape = opened.facts, model.architecture
    dtype = next(piece.arrays[0].dtype for piece in model.pieces.values() if transforms.floating(piece.arrays[0].dtype))
    names = facts.classes if len(facts.classes) == shape.classes else []
    fields = {"classes": names, "normalised_pixels": facts.normalised_pixels, "mask_ratio": facts.mask_ratio}
    known = described(shape, dtype, **fields)
    images = preprocessing(facts.evaluate, known.image, shape.channels)
    found: dict[str, str] = {}
    if library == "transformers":
        config = for_transformers(known)
        load = transformers_line(shape, str(target))
        found[PREPROCESSOR] = _json(images.for_transformers())
        if shape.method == "mae" and facts.normalised_pixels is None:
            report.notes.append("the source does not tell the target: norm_pix_loss is false, transformers' default")
    else:
        config, load = for_timm(known, images), timm_line(known, str(target))
    if not images.known:
        report.notes.append(f"preprocessing: {images.describe()}")
    report.load = load
    own = replace(_origin(opened, facts), licence=report.provenance["licence"])
    readme = card(library, load, shape.describe(), images.describe(), shape.classes, own)
    return {CONFIG: _json(config), **found, CARD: readme}


def _origin(opened: Opened, facts: Facts) -> Origin:
    return Origin(
        method=opened.model.architecture.method if facts.made_by is None else facts.made_by.model.objective.kind,
        source=Path(opened.report.source).absolute().name,
        licence="",
        recipe=facts.made_by,
        named=facts.recipe,
        epoch=facts.epoch,
        lengthened=facts.lengthened,
        measured=measured(opened.file.path, facts.epoch),
    )


def _json(tree: object) -> str:
    return json.dumps(tree, indent=2) + "\n"
