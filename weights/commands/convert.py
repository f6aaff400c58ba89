"""Any checkpoint of these models into any layout and any file form, with a report; no framework is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec import Pair, Recipe
from triport.weights.arrays import DTYPES, Lazy
from triport.weights.commands.deliver import Written, deliver
from triport.weights.commands.to_run import make_run
from triport.weights.files import files
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import Layout
from triport.weights.model import facts as words
from triport.weights.model import optimizer_state, provenance
from triport.weights.model.changes import recast, resize
from triport.weights.model.model import Model, Only, encode, fit
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.report import Report
from triport.weights.model.states import EVERYTHING, Selection
from triport.weights.source import reading

FLAT = ("safetensors", "npz")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    from_: str | None = None,
    recipe: str | Recipe | None = None,
    only: Only = "all",
    dtype: str | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image: Pair | None = None,
    strict: bool = False,
    force: bool = False,
    optimizer: bool = False,
    selection: Selection = EVERYTHING,
    images: int | None = None,
) -> Report:
    """Write the model in `source` to `target` and say what became of every array.

    to, from_: layout or project, where endings and keys leave a choice; recipe, heads, decoder_heads: for layouts
    whose fused projection goes by head; only: all, or an encoder; dtype: of floating arrays; image: resample position
    tables for this (height, width) in pixels; strict: refuse missing and unknown arrays; force: replace a target;
    optimizer: keep the optimiser's state where both layouts have a known order of it; selection: the key, prefix or
    average to read, where the source holds more than one model; images: of the training data, for to="triport-run",
    which writes a run folder that --resume takes (commands/to_run.py).
    The target is read back and compared: names, shapes, dtypes and the CRC-32 of every array. Provenance goes into its
    metadata or beside it.
    UserError in one line for all that cannot be done; nothing is left of the target then.
    """
    source, target = Path(source), Path(target)
    if to == "triport-run":
        _apart(source, target)
        return make_run(source, target, recipe=recipe, images=images, from_=from_, selection=selection, force=force)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"no dtype is called '{dtype}': say float32, float16, bfloat16 or float64")
    if target.name in ("", ".."):
        raise UserError(f"{target} is no name for a target: say one")
    opened = open_model(
        source, from_=from_, recipe=recipe, heads=heads, decoder_heads=decoder_heads, only=only, selection=selection
    )
    _apart(opened.file.path, target)
    report = opened.report
    model = resize(opened.model, image, report) if image else opened.model
    model = recast(model, dtype) if dtype else model
    form = _form(target, to)
    if to == "passl" and target.suffix == ".pdparams":
        to = "passl-deit"  # the flat encoder that PASSL's extract_weight.py makes of a pretraining checkpoint
    layout = catalogue.target(
        to or default_layout(form, target, model), model.architecture.method, model.architecture.pooled
    )
    report.target, report.to_layout = str(target), layout.name
    model = fit(model, layout, report)
    state = encode(model, layout, report)
    if layout.remark and layout.remark_width in (0, model.architecture.width):
        report.notes.append(layout.remark)
    if strict and report.faults():
        raise UserError(
            f"{source} does not fill its layout {report.from_layout}: {report.faults()}; --strict refuses that"
        )
    if form == "oneflow" and layout.framework == "oneflow":
        form = "libai"
    tree = wrap(layout, form, state, opened, model)
    own: dict[str, Lazy] = {}
    if optimizer:
        own = optimizer_state.carry(opened, model, layout, tree, report, recipe)
    elif opened.facts.optimizer:
        report.dropped.append(("optimizer", "not asked for: keep it with --optimizer"))
    report.provenance = _origin(opened, model, report)
    deliver(Written(target, form, tree, own, force), opened, report)
    return report


def _apart(source: Path, target: Path) -> None:
    """UserError where the target would take the source's place, or stand in the midst of it."""
    with reading(target):
        one, other = source.resolve(), target.resolve()
    if one == other:
        raise UserError(f"{target} is the source itself: say another target")
    if other in one.parents:
        raise UserError(f"{source} lies in {target}, which would be replaced: say another target")
    if one in other.parents and source.is_dir():
        raise UserError(f"{target} lies in the source: say another target")


def _form(target: Path, to: str | None) -> str:
    """The form that the target's ending asks for; LiBai's folders may have any name, such as vit-0.1."""
    try:
        return files.form_of(target)
    except UserError:
        if to is None or not to.startswith("libai"):
            raise
        return "oneflow"


def default_layout(form: str, target: Path, model: Model) -> str:
    """The layout or project that a form is mostly used with, for what is to be written."""
    shape = model.architecture
    if form in ("safetensors", "npz"):
        return "triport"
    if form in ("oneflow", "libai"):
        return "libai"
    if form == "paddle":
        return "passl-deit" if target.suffix == ".pdparams" else "passl"
    if shape.method in ("moco", "mae"):
        return {"moco": "moco-v3", "mae": "mae"}[shape.method]
    own = shape.method == "classifier" and (shape.pooled or shape.head_norm)
    return "timm" if shape.family == "resnet" else "mae-finetune" if own else "deit"


def wrap(layout: Layout, form: str, state: dict[str, Lazy], opened: Opened, model: Model) -> dict[str, Any]:
    """The state in what stands around it in this layout's files. safetensors and npz hold nothing but the state."""
    facts = opened.facts
    if form == "libai" or (layout.container == "model" and form not in FLAT):
        return {"model": state}
    if not layout.container or form in FLAT:
        return dict(state)
    if layout.name.startswith("mmpretrain"):
        return {"meta": {"epoch": facts.epoch or 0}, "state_dict": state}
    word = words.arch_word(layout, model.architecture, model.heads)
    tree = {"epoch": facts.epoch or 0, "arch": word or words.UNKNOWN, "state_dict": state}
    return {**tree, "optimizer": {}, "scaler": {}} if layout.name == "passl-moco" else tree


def _origin(opened: Opened, model: Model, report: Report) -> dict[str, Any]:
    facts = opened.facts
    found = {
        "version": provenance.own_version(),
        "source": Path(report.source).absolute().name,
        "source_form": opened.file.form,
        "from_layout": report.from_layout,
        "to_layout": report.to_layout,
        "architecture": model.architecture.describe(),
        "heads": model.heads,
        "decoder_heads": model.decoder_heads,
        "epoch": facts.epoch,
        "counter": _counter(opened.model),
        "arch": facts.arch,
        "recipe": facts.recipe,
        "normalised_pixels": facts.normalised_pixels,
        "licence": provenance.notice(opened.candidate.layout, facts.provenance),
        "earlier": provenance.earlier(facts.provenance),
    }
    return {key: value for key, value in found.items() if value is not None}


def _counter(model: Model) -> int | None:
    """What all batch norms have counted, for the way back from layouts without counters; None where they differ."""
    counters = [piece.arrays[0] for name, piece in model.pieces.items() if name.endswith("num_batches_tracked")]
    found = {int(array.read().reshape(())) for array in counters}
    return found.pop() if len(found) == 1 else None
