"""The command line of weights: convert, inspect, diff."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console

from triport.core import selection
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.selection import selected
from triport.core.spec import Pair
from triport.weights.commands.convert import convert
from triport.weights.commands.diff import diff
from triport.weights.commands.inspect import inspect
from triport.weights.commands.show import (
    console,
    plain,
    print_json,
    show_difference,
    show_inspection,
    show_report,
    table,
)
from triport.weights.layouts.catalogue import LAYOUTS, PROJECTS
from triport.weights.layouts.layout import printable
from triport.weights.model.reading import Reading
from triport.weights.model.report import Report


class Verify(Protocol):
    """Hold a conversion's target against its source; how the source was read, the image size and dtype asked for."""

    def __call__(self, report: Report, how: Reading, image: Pair | None, dtype: str | None) -> dict[str, float]:
        """The largest difference of each output; UserError where they are too far apart."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    whole = Parser("triport", description="Checkpoints between projects and frameworks.", allow_abbrev=False)
    commands = whole.add_subparsers(required=True, metavar="convert | inspect | diff | layouts")
    for name, add, about in (
        ("convert", add_convert, "write a checkpoint in another layout and file form"),
        ("inspect", add_inspect, "describe a checkpoint"),
        ("diff", add_diff, "compare two checkpoints; exit code 1 where they differ"),
        ("layouts", add_layouts, "list the layouts"),
    ):
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        add(command)
        command.set_defaults(command=command)
        command.add_argument("--json", action="store_true", help="print JSON instead of tables")
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return whole


def main(argv: Sequence[str] | None = None, verify: Verify | None = None) -> int:
    """Run a command line. Exit codes: 0 done, 1 files differ, 2 an error that one line on stderr explains.

    verify: what `convert --verify` calls; the forward pass does not stand in this package.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be more than the terminal can show
    try:
        options, rest = parser().parse_known_args(given, argparse.Namespace(verifier=verify))
        if rest:
            options.command.error(f"unrecognized arguments: {' '.join(rest)}")
        return int(options.run(options))
    except BrokenPipeError:  # `triport inspect FILE --tensors | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (UserError, OSError) as error:
        if "--traceback" in given:
            traceback.print_exc()
        print("triport: error:", printable(str(error)), file=sys.stderr)
        return 2


# ---------------------------------------------------------------- options
def add_convert(command: argparse.ArgumentParser) -> None:
    """Options of `convert`."""
    command.add_argument("source", type=_name, help="a file or folder of any framework, or a run's folder")
    command.add_argument(
        "target", type=_name, help="its ending says the form: .pth .pd .pdparams .safetensors .npz, none for OneFlow"
    )
    command.add_argument("--to", metavar="LAYOUT", help="layout or project; by default the form's most used")
    command.add_argument("--only", choices=("all", "encoder", "momentum"), default="all", help="what to take")
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "float64"), help="of floating arrays")
    command.add_argument("--image", type=_pixels, metavar="SIZE", help="resample position tables: 448, or 224x448")
    command.add_argument("--optimizer", action="store_true", help="keep the optimiser's state")
    command.add_argument("--strict", action="store_true", help="refuse all missing and unknown arrays, of any part")
    command.add_argument(
        "--allow-partial", action="store_true", help="write although arrays of the model are unknown or missing"
    )
    command.add_argument("--force", action="store_true", help="replace the target")
    command.add_argument("--images", type=int, metavar="N", help="training images of the run, for --to triport-run")
    command.add_argument("--verify", action="store_true", help="compute source and target in numpy and compare them")
    _add_reading(command)
    command.set_defaults(run=_convert)


def add_inspect(command: argparse.ArgumentParser) -> None:
    """Options of `inspect`."""
    command.add_argument("path", type=_name, help="a file or folder")
    command.add_argument("--tensors", action="store_true", help="a row per array, with statistics")
    command.add_argument("--values", action="store_true", help="read values: non-finite ones, kind of position table")
    command.add_argument("--from", dest="from_", metavar="LAYOUT", help="its layout, where the keys leave a choice")
    selection.add_options(command)
    command.set_defaults(run=_inspect)


def add_diff(command: argparse.ArgumentParser) -> None:
    """Options of `diff`."""
    command.add_argument("first", type=_name, help="a file or folder")
    command.add_argument("second", type=_name, help="a file or folder")
    command.add_argument("--only", choices=("all", "encoder", "momentum"), default="all", help="what to compare")
    command.add_argument(
        "--second-from", metavar="LAYOUT", help="the second file's layout, where its keys leave a choice"
    )
    selection.add_options(command, "the second file's", "second-")
    command.add_argument("--bound", type=float, default=0.0, help="absolute difference that passes for equal")
    _add_reading(command)
    command.set_defaults(run=_diff)


def add_layouts(command: argparse.ArgumentParser) -> None:
    """Options of `layouts`."""
    command.set_defaults(run=_layouts)


def _add_reading(command: argparse.ArgumentParser) -> None:
    selection.add_options(command)
    command.add_argument("--from", dest="from_", metavar="LAYOUT", help="layout, where the keys leave a choice")
    command.add_argument("--recipe", help="recipe of the model: says its heads")
    command.add_argument("--heads", type=int, help="attention heads, for layouts that go by head")
    command.add_argument("--decoder-heads", type=int, help="attention heads of MAE's decoder")
    command.add_argument("--norm-eps", type=float, help="epsilon of the layer norms, where the file does not say it")


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty: say a file or folder")
    return text


def _pixels(text: str) -> Pair:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size in pixels: give 448 or 224x448")
    return int(sides[0]), int(sides[-1])


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    own = [field.name for field in dataclasses.fields(Reading) if field.name != "selection"]
    return {**{key: getattr(options, key) for key in own}, "selection": selected(options)}


# ---------------------------------------------------------------- commands
def _convert(options: argparse.Namespace) -> int:
    names = ("to", "dtype", "image", "strict", "allow_partial", "force", "optimizer", "images")
    own = {key: getattr(options, key) for key in names}
    if options.verify and (options.verifier is None or options.allow_partial):
        raise UserError("--verify does not go with --allow-partial, and needs `triport convert`")
    with Console(stderr=True).status(plain(f"converting {options.source}")):  # shown on terminals only
        report = convert(options.source, options.target, **own, **_reading(options))
        if options.verify:
            options.verifier(report, Reading(**_reading(options)), options.image, options.dtype)
    print_json(report.to_json()) if options.json else show_report(report)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    found = inspect(
        options.path,
        tensors=options.tensors,
        values=options.values,
        from_=options.from_,
        selection=selected(options),
    )
    print_json(found.to_json()) if options.json else show_inspection(found)
    return 0


def _diff(options: argparse.Namespace) -> int:
    second = {"second_from": options.second_from, "second_selection": selected(options, "second_")}
    found = diff(options.first, options.second, **second, **_reading(options))
    same = found.same(options.bound)
    print_json({**found.to_json(), "same": same}) if options.json else show_difference(found, options.bound)
    return 0 if same else 1


def _layouts(options: argparse.Namespace) -> int:
    if options.json:
        print_json({"layouts": {layout.name: layout.title for layout in LAYOUTS}, "projects": PROJECTS})
        return 0
    rows = table("layout", "holds", "what it is")
    for layout in LAYOUTS:
        rows.add_row(layout.name, ", ".join(layout.methods), layout.title)
    screen = console()
    screen.print(rows)
    screen.print("One word for a project's: " + "; ".join(f"{p}: {', '.join(names)}" for p, names in PROJECTS.items()))
    return 0
