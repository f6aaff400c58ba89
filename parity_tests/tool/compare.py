"""`triport parity compare`: names the first layer or stage in which two traces depart, with its neighbours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from triport.core.run import resume
from triport.core.spec import schema
from triport.parity_tests.tool import explain, trial
from triport.parity_tests.tool.comparison import Comparison, Line, compare
from triport.parity_tests.tool.findings import number
from triport.parity_tests.tool.trace import read, title

AROUND = 3  # neighbours shown on either side
WIDE = 120  # columns where the output is not a terminal


def main(argv: Sequence[str]) -> int:
    """Run `triport parity compare`: 0 they agree, 1 they depart, 2 they cannot be compared."""
    parser = trial.parser("compare", "Name the first layer or stage in which two traces depart.")
    parser.add_argument("a", type=Path, metavar="A", help="a trace that `triport parity record` made")
    parser.add_argument("b", type=Path, metavar="B", help="another trace of the same recipe")
    parser.add_argument("--stage", metavar="NAME", help="look at one stage alone: backward, loss, gradients ...")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(list(argv))
    result = compare(read(options.a), read(options.b), options.stage)
    if options.json:
        print(json.dumps(as_json(result)))
    else:
        show(result, Console(width=None if sys.stdout.isatty() else WIDE))
    return 0 if result.first is None else 1


# ---------------------------------------------------------------- what is shown
def verdict(result: Comparison) -> str:
    """One sentence: they agree, or where they depart first."""
    if result.first is None:
        equal = sum(line.error == 0 for line in result.lines)
        count = len(result.lines)
        return f"they agree within bounds in all of {count} comparisons, {equal} of them without any difference"
    line = result.lines[result.first]
    return f"step {line.step}, {line.stage}: {line.name}"


def neighbours(result: Comparison) -> list[tuple[int, Line]]:
    """The lines around the first that departs, of the same stage where there are any, with their places."""
    assert result.first is not None
    line = result.lines[result.first]
    same = [i for i, other in enumerate(result.lines) if (other.stage, other.step) == (line.stage, line.step)]
    place = same.index(result.first)
    return [(i, result.lines[i]) for i in same[max(place - AROUND, 0) : place + AROUND + 1]]


def as_json(result: Comparison) -> dict[str, object]:
    """Everything that was compared, for programs."""
    first = None if result.first is None else result.lines[result.first]
    return {
        "a": {"name": result.a.name, "title": title(result.a), **result.a.about},
        "b": {"name": result.b.name, "title": title(result.b), **result.b.about},
        "agree": first is None,
        "first": None
        if first is None
        else {**asdict(first), "explanation": explain.explain(result.a, result.b, first)},
        "lines": [{**asdict(line), "agrees": line.agrees} for line in result.lines],
        "alone": list(result.alone),
    }


def show(result: Comparison, console: Console) -> None:
    """Print the verdict, the neighbours and the stages."""
    for letter, trace in (("A", result.a), ("B", result.b)):
        about = trace.about
        console.print(f"{letter}  {trace.name}: {about['name']} on {title(trace)}, {about['steps']} x {about['batch']} "
                      "images", highlight=False)  # fmt: skip
    change = resume.difference(schema.plain(result.a.recipe), schema.plain(result.b.recipe))
    if change:
        console.print(f"   the recipes differ in {change[0]}: {change[1]!r} and {change[2]!r}", highlight=False)
    precisions = [trace.about["precision"] for trace in (result.a, result.b)]
    if len(set(precisions)) > 1:
        console.print(
            f"   the precisions differ, {' and '.join(precisions)}: bounds are those of the coarser one",
            highlight=False,
        )
    if result.first is None:
        console.print(f"\n[green]{verdict(result)}[/]", highlight=False)
    else:
        line = result.lines[result.first]
        console.print(f"\n[bold red]first to depart: {verdict(result)}[/]", highlight=False)
        for sentence in explain.explain(result.a, result.b, line):
            console.print(f"  {sentence}", highlight=False)
        rows = [(f"{'>' if i == result.first else ' '} {n.name}", n) for i, n in neighbours(result)]
        console.print(_table("around it, in order of computation", rows))
    rows = [(f"step {step}  {stage}", line) for (step, stage), line in result.stages().items()]
    console.print(_table("every stage, its array nearest to the bound", rows, names=True))
    if result.alone:
        console.print(f"   not compared, as only one has them: {', '.join(result.alone[:6])}"
                      f"{' ...' if len(result.alone) > 6 else ''}", highlight=False)  # fmt: skip


def _table(head: str, rows: Sequence[tuple[str, Line]], names: bool = False) -> Table:
    table = Table(title=head, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    numbers = ("largest", "allowed") if names else ("largest", "mean", "allowed")
    for column in ("", *(("array",) if names else ()), *numbers, ""):
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    for label, line in rows:
        shown = {"largest": number(line.error, 1), "mean": number(line.mean, 1), "allowed": number(line.allowed, 0)}
        word = "[green]agrees[/]" if line.agrees else "[red]departs[/]"
        table.add_row(label, *((line.name,) if names else ()), *(shown[column] for column in numbers), word)
    return table
