"""What is changed in a model on request: its image size, its dtype."""

from __future__ import annotations

from dataclasses import replace

from triport.core.errors import UserError
from triport.core.spec import Pair
from triport.weights import transforms
from triport.weights.canonical import architecture
from triport.weights.model.model import Model
from triport.weights.model.report import Report


def resize(model: Model, image: Pair, report: Report, old: Pair | None = None) -> Model:
    """Position tables on the grid of another image size; `old` where the file's own grid is not square."""
    pieces = dict(model.pieces)
    shape = model.architecture
    if shape.family != "vit":
        raise UserError("a ResNet has no position table to resample: leave --image out")
    if image[0] % shape.patch[0] or image[1] % shape.patch[1]:
        raise UserError(
            f"{image[0]} x {image[1]} pixels do not divide into patches of {shape.patch[0]} x {shape.patch[1]}"
        )
    new = (image[0] // shape.patch[0], image[1] // shape.patch[1])
    old = old or shape.grid
    if old is None or old[0] * old[1] != shape.tokens:
        raise UserError(f"the file's {shape.tokens} patches are not a square grid: its rows and columns cannot be told")
    if old == new:
        return model
    for name, piece in model.pieces.items():
        if name.endswith("pos_embed"):
            array = transforms.resized(piece.arrays[0], old, new)
            pieces[name] = replace(piece, shape=array.shape, arrays=(array,), done=(*piece.done, "resampled"))
    report.notes.append(f"position tables resampled from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches, bicubic")
    made = architecture({n: p.shape for n, p in pieces.items()})
    made = replace(made, heads=shape.heads, decoder_heads=shape.decoder_heads, norm_eps=shape.norm_eps, known_grid=new)
    report.architecture = made.describe()
    return replace(model, pieces=pieces, architecture=made)


def recast(model: Model, dtype: str) -> Model:
    """Floating values in another dtype; counters stay."""
    pieces = {}
    for name, piece in model.pieces.items():
        arrays = tuple(transforms.cast(a, dtype, name) for a in piece.arrays)
        changed = any(a is not b for a, b in zip(arrays, piece.arrays, strict=False))
        pieces[name] = replace(piece, arrays=arrays, done=(*piece.done, "cast") if changed else piece.done)
    return replace(model, pieces=pieces)
