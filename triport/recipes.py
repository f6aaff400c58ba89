"""`triport recipes`: the shipped recipes, one of them as it stands, or one resolved with overrides."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from triport import environments
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.spec import aliases, recipe
from triport.core.spec.foreign import hand_over
from triport.models import PIPED, scores


def main(argv: Sequence[str]) -> int:
    """List the recipes (of a folder), or show one; returns the exit code."""
    parser = Parser(
        prog="triport recipes",
        description="Without a name: the shipped recipes. With a folder (tiny): those of it. With a recipe: its file, "
        "to read or to start a recipe of one's own from (triport recipes NAME > mine.toml). With overrides as well: "
        "every field as a run would use it.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe, a path to a TOML file, or a folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example image=96 optimizer.lr=1e-3")
    parser.add_argument("--resolved", action="store_true", help="every field, defaults included")
    parser.add_argument(
        "--from", dest="file", metavar="FILE", help="a configuration of LiBai, PASSL or mmpretrain, as a recipe"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="with --from: processes of the run (1)")
    parser.add_argument("-o", "--cfg-options", dest="sets", action="append", default=[], metavar="KEY=VALUE",
                        help="with --from: settings of that configuration to change")  # fmt: skip
    parser.add_argument("--mmengine", action="store_true", help="with --from: let mmengine execute the file")
    options = parser.parse_args(argv)
    if options.file:
        return foreign(options, [word for word in (options.name, *options.overrides) if word])
    folder = (options.name or "").rstrip("/")
    chosen = [name for name in recipe.names() if not folder or name.startswith(f"{folder}/")]
    if chosen and not options.overrides:
        console = Console(width=None if sys.stdout.isatty() else PIPED)
        console.print(table(chosen))
        console.print("`triport recipes NAME` shows one.", markup=False)
    else:
        show(options.name, options.overrides, resolved=options.resolved)
    return 0


def foreign(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Print the recipe that a configuration of another project becomes; words: its own settings, then overrides."""
    path = Path(options.file)
    if path.suffix != ".py" and importlib.util.find_spec("yaml") is None:
        reader = environments.interpreter("paddle")  # which has PyYAML
        if reader is not None and str(reader) != sys.executable:
            command = [str(reader), "-m", "triport", *sys.argv[1:]]
            os.execve(command[0], command, environments.with_project(os.environ))
    project = "mmpretrain" if options.mmengine else ""
    shown = ["--data"]  # a recipe does not say where images lie
    reading, own = hand_over.read_file(path, project, options.sets, words, options.processes, options.mmengine, shown)
    if reading is None:
        raise UserError(f"{path} changes a recipe of triport: it goes with --libai-config on `triport finetune`.")
    with hand_over.Written(reading) as file:
        made = recipe.load(str(file), own)
    return hand_over.show(made, hand_over.heading(reading, reading.words()))


def table(names: Sequence[str]) -> Table:
    """Return a table with a line for each recipe."""
    lines = Table(box=None, pad_edge=False, header_style="bold")
    lines.add_column("recipe", no_wrap=True)
    lines.add_column("what it is", overflow="fold")
    lines.add_column("epochs", justify="right", no_wrap=True)
    lines.add_column("batch", justify="right", no_wrap=True)
    lines.add_column("reported top-1 %", overflow="fold")
    for name in names:
        chosen = recipe.load(name)
        lines.add_row(name, chosen.title, str(chosen.schedule.epochs), str(chosen.batch), scores(chosen.reported))
    return lines


def show(name: str, overrides: Sequence[str] = (), *, resolved: bool = False) -> None:
    """Print a recipe: its own text, or, with overrides or `resolved`, every field of it."""
    alias = aliases.aliases().get(name)
    resolved = resolved or bool(alias and alias.changes)
    chosen = recipe.load(name, overrides)  # also of a file that is shown as it stands: a faulty one says so
    text = recipe.to_toml(chosen) if overrides or resolved else recipe.find(name).read_text(encoding="utf-8")
    if sys.stdout.isatty():
        Console().print(Syntax(text, "toml", background_color="default", word_wrap=True))
    else:
        sys.stdout.write(text)
