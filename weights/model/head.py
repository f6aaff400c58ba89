"""A classifier's head for a layout that has no place for it as it is: folded where that is exact, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from triport.core.errors import UserError
from triport.weights.arrays import DTYPES, Lazy
from triport.weights.canonical import Method
from triport.weights.layouts.catalogue import LAYOUTS
from triport.weights.layouts.layout import Layout, write_name
from triport.weights.model.model import Model, Piece
from triport.weights.model.report import Report

FEATURES = {"mean": "features that are averaged patches after fc_norm", "token": "features that are the class token"}
NORM_EPS = 1e-6  # of the batch norm before MAE's linear probe (core.spec.Classifier.head_norm)


def fit_head(model: Model, layout: Layout, report: Report) -> Model:
    """The model with a last norm and a head that a layout can express; UserError where there is none like that."""
    shape = model.architecture
    pooling = "mean" if shape.pooled else "token"
    if shape.family == "vit" and pooling not in layout.pooling:
        raise UserError(
            f"layout {layout.name} has no place for {FEATURES[pooling]}: "
            f"of {shape.method}s with that, there are {', '.join(_others(shape.method, pooling))}; choose one with --to"
        )
    if not shape.head_norm:
        return model
    family = layout.family_for(model.pieces, shape.family)
    stem = "head" if shape.family == "vit" else "fc"
    if layout.head_norm and family and write_name(layout, family, f"{stem}.0.running_mean"):
        return model
    return fold(model, stem, report)


def _others(method: Method, pooling: str) -> list[str]:
    return [layout.name for layout in LAYOUTS if pooling in layout.pooling and method in layout.methods]


def fold(model: Model, stem: str, report: Report) -> Model:
    """A batch norm in evaluation mode and the linear layer behind it as one: W / sqrt(var + eps), b - W' mean."""
    names = [f"{stem}.1.weight", f"{stem}.1.bias", f"{stem}.0.running_mean", f"{stem}.0.running_var"]
    weight, bias, mean, variance = (model.pieces[name] for name in names)
    w, b, m, v = (model.settle(name, model.pieces[name])[0] for name in names)

    def scaled() -> np.ndarray:
        wide: np.ndarray = w.read().astype(np.float64) / np.sqrt(v.read().astype(np.float64) + NORM_EPS)
        return wide

    def shifted() -> np.ndarray:
        return b.read().astype(np.float64) - scaled() @ m.read().astype(np.float64)

    folded = {
        f"{stem}.weight": Piece(
            w.shape,
            (Lazy(w.shape, w.dtype, lambda: scaled().astype(DTYPES[w.dtype])),),
            (*weight.sources, *variance.sources),
            done=(*weight.done, "folded"),
        ),
        f"{stem}.bias": Piece(
            b.shape,
            (Lazy(b.shape, b.dtype, lambda: shifted().astype(DTYPES[b.dtype])),),
            (*bias.sources, *mean.sources),
            done=(*bias.done, "folded"),
        ),
    }
    counter = model.pieces.get(f"{stem}.0.num_batches_tracked")
    if counter is not None:
        report.dropped += [(source, "a counter of the folded batch norm") for source in counter.sources]
        report.made = [(name, why) for name, why in report.made if name != f"{stem}.0.num_batches_tracked"]
    pieces: dict[str, Piece] = {}
    for name, piece in model.pieces.items():
        if name.startswith(f"{stem}.1."):
            pieces[name.replace(".1.", ".", 1)] = folded[name.replace(".1.", ".", 1)]
        elif not name.startswith(f"{stem}.0."):
            pieces[name] = piece
    report.notes.append("the batch norm before the head is folded into it: the same function in evaluation mode")
    return replace(model, pieces=pieces, architecture=replace(model.architecture, head_norm=False))
