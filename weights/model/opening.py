"""A file opened as a model: read, its layout found, its arrays under canonical names, its own words taken."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.weights.arrays import File
from triport.weights.files import files
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import Layout
from triport.weights.model import facts as words
from triport.weights.model import provenance
from triport.weights.model.detect import Ambiguous, Candidate, detect
from triport.weights.model.facts import Facts
from triport.weights.model.model import Model, Only, decode
from triport.weights.model.report import Report
from triport.weights.source import reading

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


def open_model(
    path: str | Path,
    *,
    from_: str | None = None,
    recipe: str | Recipe | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    only: Only = "all",
    trust: bool = False,
) -> Opened:
    """Open a checkpoint as a model.

    from_: its layout or project, where the keys leave a choice; recipe, heads, decoder_heads: for layouts whose fused
    projection goes by head (never guessed); only: the whole model, its encoder, or its momentum encoder, the last two
    under plain names; trust: do not read values to check constants.
    UserError where nothing fits, in one line.
    """
    path = Path(path)
    file = read_file(path)
    shard = SHARD.search(file.path.name)
    if shard and int(shard[1]) > 1:
        raise UserError(f"{path} is one of {int(shard[1])} shards, so a part of a model: name its index or its folder")
    facts = words.read(file.tree, file.metadata, file.path)
    chosen = catalogue.named(from_) if from_ else ()
    with reading(path):
        noted = provenance.beside(path, trust)
    words.from_provenance(facts, noted)
    candidate = _detect(file, facts, chosen, path)
    words.claim(facts, candidate)
    told = facts.heads
    if recipe is not None and candidate.architecture is not None:
        found = recipes.load(recipe) if isinstance(recipe, str) else recipe
        words.from_recipe(found, facts, candidate.architecture)
    facts.heads = facts.heads if heads is None else heads
    facts.decoder_heads = facts.decoder_heads if decoder_heads is None else decoder_heads
    report = Report(source=str(path), from_layout=candidate.layout.name)
    if told and told != facts.heads:
        report.notes.append(f"the file says {told} heads, but {facts.heads} as was asked for are taken")
    if any(name in file.tree for name in ("model_ema", "ema_state_dict", "state_dict_ema")):
        report.notes.append("the file also holds an average of the weights, which is left out")
    model = decode(candidate, report, only, trust, facts.counter)
    model.heads, model.decoder_heads = facts.heads, facts.decoder_heads
    if model.architecture.family == "vit":
        _check_heads(model, path)
        model.architecture = replace(model.architecture, heads=model.heads, decoder_heads=model.decoder_heads)
        report.heads, report.decoder_heads = model.heads, model.decoder_heads
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
