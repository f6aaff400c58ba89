"""Any checkpoint of these models into any layout and any file form, with a report; no framework is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from triport.core.errors import UserError
from triport.core.source import reading
from triport.core.spec import Pair
from triport.core.version import VERSION
from triport.weights.arrays import DTYPES, Lazy
from triport.weights.commands.deliver import Written, deliver
from triport.weights.commands.to_run import make_run
from triport.weights.files import files
from triport.weights.hub import folder
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import Layout
from triport.weights.model import facts as fact_reader
from triport.weights.model import optimizer_state, provenance
from triport.weights.model.changes import recast, resize
from triport.weights.model.completeness import check_function
from triport.weights.model.head import fit_head
from triport.weights.model.model import Model, encode, fit
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.reading import Choices, Reading
from triport.weights.model.report import Report

if TYPE_CHECKING:
    from triport.weights.model.reading import Unpack

FLAT = ("safetensors", "npz", "folder")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    dtype: str | None = None,
    image: Pair | None = None,
    strict: bool = False,
    allow_partial: bool = False,
    force: bool = False,
    optimizer: bool = False,
    images: int | None = None,
    **choices: Unpack[Choices],
) -> Report:
    """Write the model in `source` to `target` and say what became of every array.

    to: layout or project; dtype: of floating arrays; image: resample position tables for this (height, width) in
    pixels; strict: refuse all missing and unknown arrays; allow_partial: write what is not the source's function;
    force: replace a target; optimizer: keep the optimiser's state where both layouts have a known order of it;
    images: of the training data, for to="triport-run", which writes a run folder that --resume takes
    (commands/to_run.py); choices: the fields of `Reading`, for what the source leaves open.
    The target is read back and compared: names, shapes, dtypes and the CRC-32 of every array. Provenance goes into its
    metadata or beside it.
    UserError in one line for all that cannot be done, among it every array of what is written that is unknown or
    missing; nothing is left of the target then.
    """
    source, target = Path(source), Path(target)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"no dtype is called '{dtype}': say float32, float16, bfloat16 or float64")
    if target.name in ("", ".."):
        raise UserError(f"{target} cannot be the name of a target: give another")
    how = Reading(**choices)
    if to == "triport-run":
        return make_run(source, target, how, images=images, force=force)
    opened = open_model(source, how)
    _apart(opened.file.path, target)
    report = opened.report
    model = resize(opened.model, image, report) if image else opened.model
    model = recast(model, dtype) if dtype else model
    form = _form(target, to)
    if to == "passl" and target.suffix == ".pdparams":
        to = None  # the flat encoder that PASSL's extract_weight.py makes of a pretraining checkpoint
    shape = model.architecture
    layout = catalogue.target(to or default_layout(form, target, model), shape.method, shape.pooled, shape.head_norm)
    report.target, report.to_layout = str(target), layout.name
    model = fit_head(fit(model, layout, report), layout, report)
    check_function(opened.candidate, model, report, allow_partial)
    hub = folder.library(layout.name) if form == "folder" else None
    state = encode(model, layout, report, folder.family(model) if hub == "transformers" else None)
    state = folder.with_pooler(state, model, report) if hub == "transformers" else state
    if layout.remark and not hub and layout.remark_width in (0, model.architecture.width):
        report.notes.append(layout.remark.format(eps=model.architecture.norm_eps or "that of the source"))
    if strict and report.faults():
        raise UserError(
            f"{source} does not fill its layout {report.from_layout}: {report.faults()}; --strict refuses that"
        )
    if form == "oneflow" and layout.framework == "oneflow":
        form = "libai"
    tree = wrap(layout, form, state, opened, model)
    own: dict[str, Lazy] = {}
    if optimizer:
        own = optimizer_state.carry(opened, model, layout, tree, report, how.recipe)
    elif opened.facts.optimizer:
        report.dropped.append(("optimizer", "not asked for: keep it with --optimizer"))
    report.provenance = _origin(opened, model, report)
    texts = folder.texts(hub, opened, model, report, target) if hub else {}
    report.load = report.load or load_line(target, form, tree)
    deliver(Written(target, form, tree, own, force, texts), opened, report)
    return report


def _apart(source: Path, target: Path) -> None:
    """UserError where the target would take the source's place, or stand in the midst of it."""
    with reading(target):
        source_path, target_path = source.resolve(), target.resolve()
    if source_path == target_path:
        raise UserError(f"{target} is the source itself: choose another target")
    if target_path in source_path.parents:
        raise UserError(f"{source} lies in {target}, which would be replaced: choose another target")
    if source_path in target_path.parents and source.is_dir():
        raise UserError(f"{target} lies in the source: choose another target")


def _form(target: Path, to: str | None) -> str:
    """The form that the target's ending asks for; without one, the folder of the project that is written for.

    LiBai's folders may have any name, such as vit-0.1; so may those of transformers and timm.
    """
    hub = to is not None and folder.library(to) is not None
    try:
        form = files.form_of(target)
    except UserError:
        if to is None or not (to.startswith("libai") or hub):
            raise
        form = "oneflow"
    return "folder" if hub and form == "oneflow" else form


LOADERS = {
    "torch": "torch.load({}, weights_only=True)",
    "paddle": "paddle.load({})",
    "oneflow": "oneflow.load({})",
    "oneflow-file": "oneflow.load({})",
    "safetensors": "safetensors.torch.load_file({})",
    "npz": "numpy.load({})",
    "libai": "triport.load_weights({})",
}


def load_line(target: Path, form: str, tree: dict[str, Any]) -> str:
    """The line of Python that gives the arrays of a written file."""
    if target.name.endswith(".json"):
        form = "libai"  # the shards of an index, which no library opens as one
    key = next((key for key in ("state_dict", "model") if isinstance(tree.get(key), dict) and form != "libai"), "")
    return LOADERS[form].format(repr(str(target))) + (f"[{key!r}]" if key else "")


def default_layout(form: str, target: Path, model: Model) -> str:
    """The layout or project that a form is mostly used with, for what is to be written."""
    shape = model.architecture
    if form in ("safetensors", "npz"):
        return "triport"
    if form in ("oneflow", "libai"):
        return "libai"
    if form == "paddle":
        return "passl-deit" if target.suffix == ".pdparams" and not shape.pooled else "passl"
    if shape.method in ("moco", "mae"):
        return {"moco": "moco-v3", "mae": "mae"}[shape.method]
    if shape.method == "encoder" and shape.pooled:
        return "timm"
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
    word = fact_reader.arch_word(layout, model.architecture, model.heads)
    tree = {"epoch": facts.epoch or 0, "arch": word or fact_reader.UNKNOWN, "state_dict": state}
    return {**tree, "optimizer": {}, "scaler": {}} if layout.name == "passl-moco" else tree


def _origin(opened: Opened, model: Model, report: Report) -> dict[str, Any]:
    facts = opened.facts
    found = {
        "version": VERSION,
        "source": Path(report.source).absolute().name,
        "source_form": opened.file.form,
        "from_layout": report.from_layout,
        "to_layout": report.to_layout,
        "architecture": model.architecture.describe(),
        "heads": model.heads,
        "decoder_heads": model.decoder_heads,
        "norm_eps": model.architecture.norm_eps,
        "grid": model.architecture.grid,
        "partial": report.partial or None,
        "classes": facts.classes or None,
        "epoch": facts.epoch,
        "counter": _counter(opened.model),
        "arch": facts.arch,
        "recipe": facts.recipe,
        "normalised_pixels": facts.normalised_pixels,
        "licence": provenance.notice(opened.candidate.layout, facts, opened.file.path),
        "earlier": provenance.earlier(facts.provenance),
    }
    return {key: value for key, value in found.items() if value is not None}


def _counter(model: Model) -> int | None:
    """What all batch norms have counted, for the way back from layouts without counters; None where they differ."""
    counters = [piece.arrays[0] for name, piece in model.pieces.items() if name.endswith("num_batches_tracked")]
    found = {int(array.read().reshape(())) for array in counters}
    return found.pop() if len(found) == 1 else None
