"""A file opened as a model: read, its layout found, its arrays under canonical names, its own words taken."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.selection import EVERYTHING, Selection
from triport.core.source import Damaged, reading
from triport.weights.arrays import File, inert
from triport.weights.files import files, others
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import Layout, read_names, shown
from triport.weights.model import facts as words
from triport.weights.model import provenance
from triport.weights.model.candidate import Candidate
from triport.weights.model.completeness import check_values, check_words
from triport.weights.model.detect import Ambiguous, detect
from triport.weights.model.facts import Facts
from triport.weights.model.model import Model, decode
from triport.weights.model.reading import Choices, Reading
from triport.weights.model.report import Report
from triport.weights.model.states import AVERAGE, prefixes, states

if TYPE_CHECKING:
    from triport.weights.model.reading import Unpack

LISTED = 100  # objects of unknown classes that a report names
SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.(?:safetensors|bin)\Z")


@dataclass
class Opened:
    """What reading a file gives."""

    file: File
    facts: Facts
    candidate: Candidate
    model: Model
    report: Report
    average: str = ""  # where the file also holds an average of the weights


def read_file(path: Path) -> File:
    """Read a checkpoint of any form. A run's folder stands for its newest checkpoint, that for its model."""
    with reading(path):
        if fault := others.address(path):
            raise Damaged(fault)
        if path.is_dir() and (checkpoint.exists(path) or (path / "checkpoints").is_dir()):
            path = checkpoint.latest(path) / "model.safetensors"
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        return files.read(path)


def open_model(
    path: str | Path, how: Reading | None = None, *, trust: bool = False, **choices: Unpack[Choices]
) -> Opened:
    """Open a checkpoint as a model.

    how: what the file leaves open, or choices: the fields of `Reading`; trust: do not read values to check constants.
    UserError where nothing fits, in one line.
    """
    path, how = Path(path), how or Reading(**choices)
    file = read_file(path)
    shard = SHARD.search(file.path.name)
    if shard and int(shard[1]) > 1:
        raise UserError(f"{path} is one of {int(shard[1])} shards, so a part of a model: name its index or its folder")
    facts = words.read(file.tree, file.metadata, file.path)
    chosen = catalogue.named(how.from_) if how.from_ else ()
    with reading(path):
        noted = provenance.beside(path, trust)
    words.from_provenance(facts, noted)
    candidate = _detect(file, facts, chosen, path, selected(file.tree, how.selection), how.only == "encoder")
    _check_inert(candidate, path)
    unlikely = words.claim(facts, candidate)
    report = Report(source=str(path), from_layout=candidate.layout.name, notes=unlikely)
    report.arrays = [*map(candidate.state.full, candidate.state.arrays), *candidate.state.outside]
    report.notes += words.asked(facts, how, candidate.architecture)
    average = _note_selection(report, candidate, file, how.selection)
    check_words(candidate, facts, path)
    model = decode(candidate, report, how.only, trust, facts.counter)
    check_values(model, path)
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
    return Opened(file, facts, candidate, model, report, average)


def selected(tree: object, selection: Selection) -> Selection:
    """The selection for this file: mmengine swaps the weights and their average when it saves (EMAHook)."""
    return Selection(key="state_dict") if selection.average and _swapped(tree) else selection


def _swapped(tree: object) -> bool:
    return isinstance(tree, dict) and {"state_dict", "ema_state_dict", "meta"} <= set(tree)


def _note_selection(report: Report, candidate: Candidate, file: File, selection: Selection) -> str:
    """Say what of a file was read and what was not; return where its average of the weights is, if it has another."""
    state = candidate.state
    why = f"not under '{state.prefix.rstrip('.')}'"
    report.dropped += [(name, why) for name in state.outside]
    listed = list(islice(inert(file.tree), LISTED + 1))
    report.dropped += [(shown(key), f"an object of {record.name}, never made") for key, record in listed[:LISTED]]
    if len(listed) > LISTED:
        report.notes.append(f"only the first {LISTED} objects of unknown classes are listed")
    if state.place not in ("", "state_dict", "model") and not state.wrapped:
        report.notes.append(f"the arrays under '{state.place}' are read")
    report.notes += [
        f"the file also holds a model under '{there}': {option} takes it" for there, option in candidate.beside
    ]
    if _swapped(file.tree) and state.container == "state_dict":
        report.notes.append(
            "mmengine saves the average of the weights as state_dict, which is read; "
            "the weights themselves are under --key ema_state_dict"
        )
        return "state_dict (mmengine swaps them)"
    if state.average and not selection.average:
        report.notes.append(f"'{state.place}' is an average of the weights; the file holds nothing else")
    others = [other for other in states(file.tree) if other.average]
    inside = [p for s in states(file.tree) for p in prefixes(s) if AVERAGE.search(p)]
    where = [other.place for other in others] + [prefix.rstrip(".") for prefix in inside]
    if where and not state.average:
        report.notes.append(f"the file also holds an average of the weights under '{where[0]}': --ema takes it")
        return where[0]
    return ""


def _check_inert(candidate: Candidate, path: Path) -> None:
    """UserError where an array of the model would have to come from an object of a class that is not known."""
    state = candidate.state
    for name, record in state.inert.items():
        short = name[len(state.prefix) :] if name.startswith(state.prefix) else ""
        found = read_names(candidate.layout, candidate.family, [short]) if short else None
        if found and (found.found or found.incomplete):
            raise UserError(
                f"{path}: '{shown(name)}' is a {record.name}, of which no array can be made here; nothing of it was run"
            )


def _detect(
    file: File,
    facts: Facts,
    chosen: tuple[Layout, ...],
    path: Path,
    selection: Selection = EVERYTHING,
    headless: bool = False,
) -> Candidate:
    """The file's reading; where its keys leave a choice that nobody made, the layout in which this project wrote it."""
    try:
        return detect(file.tree, file.form, chosen, facts.archs, facts.own, path, selection, headless)
    except Ambiguous as choice:
        noted = facts.provenance.get("to_layout")
        if noted not in choice.names:
            raise
        return detect(file.tree, file.form, catalogue.named(noted), facts.archs, facts.own, path, selection, headless)


def _check_heads(model: Model, path: Path) -> None:
    for heads, width, option in (
        (model.heads, model.architecture.width, "--heads"),
        (model.decoder_heads, model.architecture.decoder_width, "--decoder-heads"),
    ):
        if heads is not None and (heads < 1 or width % heads):
            raise UserError(
                f"{path} has width {width}, which {heads} heads do not divide: say the right number with {option}"
            )
