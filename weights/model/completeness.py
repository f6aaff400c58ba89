"""Whether a file holds the model that is known here: what would change its function, in the field's words."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from triport.core.errors import UserError
from triport.weights.canonical import Architecture
from triport.weights.layouts.layout import shown
from triport.weights.model.candidate import Candidate
from triport.weights.model.facts import Facts
from triport.weights.model.model import Model
from triport.weights.model.reasons import OTHERS, TOKENS, in_field_words
from triport.weights.model.report import Report
from triport.weights.transforms import floating

REMEDY = "take it as it is with --allow-partial, which gives another function"


def check_function(candidate: Candidate, model: Model, report: Report, allow_partial: bool) -> None:
    """UserError where arrays of what is to be written are unknown or missing: it would be another function.

    What belongs to no part of the model (heads, queues, other decoders) may be left out.
    """
    faults = differences(candidate, model, report)
    if not faults:
        return
    if not allow_partial:
        raise UserError(f"{report.source} is not the model that layout {report.from_layout} has: {'; '.join(faults)}. "
                        f"Nothing was written; {candidate.remedy and candidate.remedy + ', or '}{REMEDY}")  # fmt: skip
    report.partial = faults
    report.notes.append(f"partial, so not the source's function: {'; '.join(faults)}")


def differences(candidate: Candidate, model: Model, report: Report) -> list[str]:
    """Why a model is not the source's function: a line per kind of array that is unknown, missing or too many."""
    kind = "ViT" if model.architecture.family == "vit" else "ResNet"
    carried = {source for piece in model.pieces.values() for source in piece.sources}
    strange = [name for name in report.unknown if _belongs(name, candidate, carried)]
    lines = []
    for reason in dict.fromkeys(map(in_field_words, strange)):
        names = _starred(name for name in strange if in_field_words(name) == reason)
        lines.append(
            f"{reason} ({names}): this {kind} has none"
            if reason
            else f"arrays of it that this {kind} does not have ({names})"
        )
    extra = [name for name in candidate.extra if name in model.pieces]
    if extra:
        lines.append(f"arrays beside others in whose place they stand ({_starred(extra)})")
    return lines + _lacking(report.missing, model.architecture, kind)


def _belongs(name: str, candidate: Candidate, carried: Collection[str]) -> bool:
    """Whether an unknown array belongs to a part of the model that is carried on: by the modules that it shares."""
    known = [candidate.state.full(file) for _, files in candidate.names.found.values() for file in files]
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        path = parts[:length]
        beside = [other for other in known if other.split(".")[:length] == path]
        if beside:
            outside = OTHERS.match(parts[length]) and not any(word.isdecimal() for word in path)
            return not outside and any(other in carried for other in beside)
    return True


def _lacking(missing: Iterable[str], shape: Architecture, kind: str) -> list[str]:
    """What is missing, whole blocks named as such."""
    names = [name for name in missing if not name.endswith("num_batches_tracked")]
    expected = list(shape.expected())
    lines: list[str] = []
    for prefix, depth in (("blocks.", shape.depth), ("decoder_blocks.", shape.decoder_depth)):
        for index in range(depth if kind == "ViT" else 0):
            for owner in ("", "base_encoder.", "momentum_encoder."):
                begin = f"{owner}{prefix}{index}."
                block = [name for name in expected if name.startswith(begin)]
                if block and all(name in names for name in block):
                    lines.append(f"block {index} of {depth} is missing ({begin}*)")
                    names = [name for name in names if name not in block]
    biases = [name for name in names if name.endswith("attn.qkv.bias")]
    if biases:
        lines.append(f"no bias of queries, keys and values ({_starred(biases)}, qkv_bias=False): this {kind} has one")
    rest = [name for name in names if name not in biases]
    return [*lines, f"arrays that this {kind} has are missing ({_starred(rest)})"] if rest else lines


def _starred(names: Iterable[str]) -> str:
    """Names with * for their numbers, each once, a few of them."""
    found = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    return ", ".join(map(shown, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def check_values(model: Model, path: Path) -> None:
    """UserError where parameters are no floating numbers: quantised or packed, so their values mean something else."""
    strange = {
        source: piece.arrays[0].dtype
        for name, piece in model.pieces.items()
        for source in piece.sources
        if not name.endswith("num_batches_tracked") and not all(floating(array.dtype) for array in piece.arrays)
    }
    if strange:
        kinds = ", ".join(dict.fromkeys(strange.values()))
        raise UserError(
            f"{path} holds {kinds} where parameters are floating numbers ({_starred(strange)}): quantised or packed "
            "values, whose meaning is not in the file; save the model's parameters as float32"
        )


# ---------------------------------------------------------------- against the file's own words
def check_words(candidate: Candidate, facts: Facts, path: Path) -> None:
    """UserError where the file's own words speak of another function, depth or grid than its arrays make."""
    shape = candidate.architecture
    if shape is not None and facts.other:
        raise UserError(
            f"{path}: its config.json says {facts.other}, which is another function than that of the "
            f"{'ViT' if shape.family == 'vit' else 'ResNet'} known here; if the arrays are of another model, "
            "keep them in a folder without that config.json"
        )
    if shape is None or shape.family != "vit":
        return
    if facts.depth is not None and facts.depth != shape.depth:
        raise UserError(f"{path} has {shape.depth} blocks, but its own words say {facts.depth}: it is not whole")
    if facts.pooling not in ("", "token", "avg") or (
        facts.pooling == "avg" and shape.method == "classifier" and not shape.pooled
    ):
        raise UserError(
            f"{path}: its config.json says global_pool '{facts.pooling}', which is another feature here: only "
            "the class token after norm and averaged patches before fc_norm are known"
        )
    reasons = list(dict.fromkeys(filter(None, map(in_field_words, candidate.names.unknown))))
    if not set(reasons) & set(TOKENS):
        _check_positions(shape, facts, path, reasons)


def _check_positions(shape: Architecture, facts: Facts, path: Path, reasons: list[str]) -> None:
    """A position table has a row for the class token and one for every patch of a grid."""
    rows, known = shape.tokens + 1, facts.grid
    if known and math.prod(known) == shape.tokens:
        return
    fitting = known if known and math.prod(known) == rows else None
    side = math.isqrt(rows)
    if fitting is None and side * side == rows and math.isqrt(shape.tokens) ** 2 != shape.tokens:
        fitting = (side, side)
    if fitting:
        raise UserError(
            f"{path}: its position table has {rows} rows for {fitting[0]} x {fitting[1]} patches and none for the "
            "class token (timm's no_embed_class), which this ViT has; "
            + (f"it also has {', '.join(reasons)}" if reasons else "if its grid is not square, say it with --recipe")
        )
    if known and facts.configured:
        raise UserError(
            f"{path}: its position table has {rows} rows, but its config.json says {known[0]} x {known[1]} patches "
            "and a class token"
        )
