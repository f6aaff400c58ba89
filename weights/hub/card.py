"""The model card of a folder: what the model is, what it was trained on, what was measured, licence, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport.core.spec import Recipe
from triport.weights.layouts.layout import printable
from triport.weights.layouts.originals import MAE_NOTICE, MOCO_NOTICE

METHODS = {"moco": "MoCo v3", "mae": "MAE (masked autoencoder)", "classifier": "a classifier", "encoder": "an encoder"}
PAPERS = {"moco": "arXiv 2104.02057", "mae": "arXiv 2111.06377"}
MAX_METRICS = 64 << 20  # bytes of metrics.jsonl that are looked through


@dataclass
class Origin:
    """Where a model comes from, as far as its file tells."""

    method: str  # of canonical.Method, of the source
    source: str  # name of the file
    licence: str
    recipe: Recipe | None = None  # of this project's own run
    named: str | None = None  # of a recipe, where that is all that is known
    epoch: int | None = None
    lengthened: list[str] = field(default_factory=list)  # from how many epochs, and when
    measured: dict[str, float] = field(default_factory=dict)


def card(library: str, load: str, architecture: str, images: str, classes: int, origin: Origin) -> str:
    """The text of README.md."""
    recipe = origin.recipe
    tags = ["vision", *([origin.method] if origin.method in PAPERS else [])]
    head = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {'image-classification' if classes else 'image-feature-extraction'}",
        *(["license: cc-by-nc-4.0"] if origin.licence in (MOCO_NOTICE, MAE_NOTICE) else []),
        f"tags: [{', '.join(tags)}]",
        "---",
    ]
    paper = f" ({PAPERS[origin.method]})" if origin.method in PAPERS else ""
    lines = [f"# {_plain(recipe.title if recipe else architecture)}", "", f"- Model: {architecture}"]
    lines += [f"- Method: {METHODS[origin.method]}{paper}"]
    lines += [f"- Classes: {classes}"] if classes else []
    if recipe is not None:
        lines += [
            f"- Recipe: `{_plain(recipe.name)}`, after {_plain(recipe.source)}",
            f"- Data: {_plain(recipe.data.name)}",
            ", ".join(
                [
                    f"- Schedule: {recipe.schedule.epochs} epochs",
                    *(f"lengthened {when}" for when in origin.lengthened),
                    f"batch {recipe.batch}, {recipe.optimizer.kind}",
                ]
            ),
        ]
    elif origin.named:
        lines += [f"- Recipe: `{_plain(origin.named)}`"]
    lines += [f"- Epochs done: {origin.epoch}"] if origin.epoch is not None else []
    lines += [f"- Images: {images}", f"- Written by triport from `{_plain(origin.source)}`", ""]
    lines += [
        "## Load",
        "",
        "```python",
        *_imports(load),
        "",
        f"model = {load}",
        "```",
        "",
        "## Measured by the run",
        "",
    ]
    if origin.measured:
        lines += ["| measure | value |", "|---|---|"]
        lines += [f"| {_plain(name)} | {value:.4g} |" for name, value in origin.measured.items()]
    else:
        lines += ["The source file has no measurements."]
    return "\n".join([*head, "", *lines, "", "## Licence", "", _plain(origin.licence), ""])


def _imports(load: str) -> list[str]:
    """What the line that loads needs."""
    return [f"import {name}" for name in ("functools", "timm", "torch", "transformers") if f"{name}." in load]


def _plain(text: str) -> str:
    """A text from a file as a line of Markdown may have it."""
    return " ".join(printable(text.replace("`", "'").replace("|", "/")).split())


def measured(path: Path, epoch: int | None) -> dict[str, float]:
    """The numbers of a run's metrics.jsonl for an epoch, or the last it has; none for files of no run."""
    for folder in path.absolute().parents[:3]:
        metrics = folder / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size <= MAX_METRICS:
            return _of_epoch(metrics, epoch)
    return {}


def _of_epoch(metrics: Path, epoch: int | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue  # the half line of a killed process
        if isinstance(entry, Mapping) and entry.get("kind") == "epoch":
            numbers = {k: v for k, v in entry.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")}
            if epoch is None or not isinstance(entry.get("epoch"), (int, float)) or entry["epoch"] <= epoch:
                found = numbers
    return found
