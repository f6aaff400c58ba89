"""`triport models`: the named models with parameters, FLOPs, recipes and reported accuracies."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from triport.core.model.flops import flops
from triport.core.model.inventory import parameter_count
from triport.core.options import Parser
from triport.core.spec import Encoder, ViT, aliases, zoo

PIPED = 150  # columns where the output is not a terminal


def main(argv: Sequence[str]) -> int:
    """List the models, or show the ones named; returns the exit code."""
    parser = Parser(
        prog="triport models",
        description="Named models: parameters, FLOPs, recipes and reported accuracies; or details of the models given.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model, for example moco_v3_vit_small")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else PIPED)
    if options.names:
        for model in [zoo.find(name) for name in options.names]:
            show(model, console)
        return 0
    console.print(table(zoo.models()))
    console.print("Parameters of the whole training model; multiply-adds of one image through the encoder.")
    console.print("`triport models NAME` shows one, `triport recipes NAME` a recipe.", markup=False)
    return 0


def table(models: Sequence[zoo.Model]) -> Table:
    """Return a table with a line for each model and recipe."""
    lines = Table(box=None, pad_edge=False, header_style="bold")
    lines.add_column("model", no_wrap=True)
    lines.add_column("parameters", justify="right", no_wrap=True)
    lines.add_column("FLOPs", justify="right", no_wrap=True)
    lines.add_column("recipe", overflow="fold")
    lines.add_column("reported top-1 %", overflow="fold")
    for model in models:
        size = (model.name, f"{parameter_count(model.spec) / 1e6:.2f} M", f"{flops(model.spec) / 1e9:.2f} G")
        if not model.reported:
            lines.add_row(*size, f"{model.recipes[0]} {' '.join(model.changes)}", "")
        for name, accuracies in model.reported.items():
            lines.add_row(*size, name, scores(accuracies))
            size = ("", "", "")
    return lines


def show(model: zoo.Model, console: Console) -> None:
    """Print everything about one model."""
    encoder, objective = model.spec.encoder, model.spec.objective
    console.print(f"[bold]{model.name}[/bold]")
    rows = {
        "encoder": describe(encoder),
        "objective": objective.kind,
        "image": f"{encoder.image[0]} x {encoder.image[1]} pixels, {encoder.channels} channels",
        "parameters": f"{parameter_count(model.spec):,} ({parameter_count(model.spec, trainable=True):,} trained)",
        "FLOPs": f"{flops(model.spec):,} multiply-adds",
    }
    if model.changes:
        rows["recipe"] = f"{model.recipes[0]} with {' '.join(model.changes)}"
    for name, accuracies in model.reported.items():
        rows.setdefault("recipe", "")
        rows["recipe"] += f"\n{name}  {scores(accuracies)}".rstrip()
    others = [alias for name in model.recipes for alias in aliases.of_recipe(name)] if not model.changes else []
    if others:
        top1 = [f"  {alias.top1}" if alias.top1 else "" for alias in others]
        shown = [f"{alias.name} ({alias.project}){text}" for alias, text in zip(others, top1)]
        rows["also called"] = "\n".join(shown)
    if model.weights:
        rows["weights"] = "\n".join(model.weights)
    lines = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows.items():
        lines.add_row(key, value.strip())
    console.print(lines)


def describe(encoder: Encoder) -> str:
    """Return an encoder in a few words."""
    if not isinstance(encoder, ViT):
        return f"ResNet-{encoder.depth}" + (f" of width {encoder.width}" if encoder.width != 64 else "")
    stem = "convolutional stem" if encoder.stem == "conv" else f"patches of {encoder.patch[0]} x {encoder.patch[1]}"
    return f"ViT of width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads, {stem}"


def scores(accuracies: dict[str, float]) -> str:
    """Return reported accuracies in one line."""
    return ", ".join(f"{task} {top1}" for task, top1 in accuracies.items())
