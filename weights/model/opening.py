"""A file opened as a model: read, its layout found, its arrays under canonical names, its own words taken."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.weights.arrays import File
from triport.weights.files import files
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import Layout
from triport.weights.model import facts as words
from triport.weights.model import provenance
from triport.weights.model.completeness import check_words
from triport.weights.model.detect import Ambiguous, Candidate, detect
from triport.weights.model.facts import Facts
from triport.weights.model.model import Model, decode
from triport.weights.model.reading import Reading
from triport.weights.model.report import Report
from triport.weights.source import reading

AS_IT_SAYS = Reading()
SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.(?:safetensors|bin)\Z")


@dataclass
class Opened:
    """What reading a file gives."""

    file: File
    facts: Facts
    candidate: Candidate
    model: Model
    report: Report


def read_file(path: Path) -> File:
    """Read a checkpoint of any form. A run's folder stands for its newest checkpoint, that for its model."""
    with reading(path):
        if path.is_dir() and (checkpoint.exists(path) or (path / "checkpoints").is_dir()):
            path = checkpoint.latest(path) / "model.safetensors"
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        return files.read(path)


def open_model(path: str | Path, how: Reading = AS_IT_SAYS, *, trust: bool = False) -> Opened:
    """Open a checkpoint as a model; trust: do not read values to check constants.

    UserError where nothing fits, in one line.
    """
    path = Path(path)
    file = read_file(path)
    shard = SHARD.search(file.path.name)
    if shard and int(shard[1]) > 1:
        raise UserError(f"{path} is one of {int(shard[1])} shards, so a part of a model: name its index or its folder")
    facts = words.read(file.tree, file.metadata, file.path)
    chosen = catalogue.named(how.from_) if how.from_ else ()
    with reading(path):
        noted = provenance.beside(path, trust)
    words.from_provenance(facts, noted)
    candidate = _detect(file, facts, chosen, path)
    words.claim(facts, candidate)
    report = Report(source=str(path), from_layout=candidate.layout.name)
    report.arrays = [candidate.state.full(name) for name in candidate.state.arrays]
    report.notes += words.asked(facts, how, candidate.architecture)
    if any(name in file.tree for name in ("model_ema", "ema_state_dict", "state_dict_ema")):
        report.notes.append("the file also holds an average of the weights, which is left out")
    check_words(candidate, facts, path)
    model = decode(candidate, report, how.only, trust, facts.counter)
    model.heads, model.decoder_heads = facts.heads, facts.decoder_heads
    if model.architecture.family == "vit":
        _check_heads(model, path)
        model.architecture = replace(
            model.architecture,
            heads=model.heads,
            decoder_heads=model.decoder_heads,
            norm_eps=facts.norm_eps or candidate.layout.norm_eps,
            known_grid=facts.grid,
        )
        report.heads, report.decoder_heads = model.heads, model.decoder_heads
        report.norm_eps = model.architecture.norm_eps
    report.architecture = model.architecture.describe()
    return Opened(file, facts, candidate, model, report)


def _detect(file: File, facts: Facts, chosen: tuple[Layout, ...], path: Path) -> Candidate:
    """The file's reading; where its keys leave a choice that nobody made, the layout in which this project wrote it."""
    try:
        return detect(file.tree, file.form, chosen, facts.words, facts.own, path)
    except Ambiguous as choice:
        noted = facts.provenance.get("to_layout")
        if noted not in choice.names:
            raise
        return detect(file.tree, file.form, catalogue.named(noted), facts.words, facts.own, path)


def _check_heads(model: Model, path: Path) -> None:
    for heads, width in (
        (model.heads, model.architecture.width),
        (model.decoder_heads, model.architecture.decoder_width),
    ):
        if heads is not None and (heads < 1 or width % heads):
            raise UserError(f"{path} has width {width}, which {heads} heads do not divide")
