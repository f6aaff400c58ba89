"""What the commands of weights print: tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triport.weights.commands.diff import Difference
from triport.weights.commands.inspect import Inspection
from triport.weights.layouts.layout import printable, shown
from triport.weights.model.report import Report

SHOWN = 20


def print_json(tree: object) -> None:
    """Print a tree as JSON."""
    print(json.dumps(_finite(tree), indent=1, allow_nan=False))


def _finite(tree: Any) -> Any:
    """The tree with texts in the place of numbers that JSON does not have: "inf", "-inf", "nan"."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


class _Plain(Console):
    """Where nobody reads on, leaves the exit code to `main`."""

    def on_broken_pipe(self) -> None:
        """Raise what the system says; rich itself would exit with 1, which here means that files differ."""
        raise BrokenPipeError


def console() -> Console:
    """As wide as the terminal; wide enough for names where it is none."""
    return _Plain(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def table(*columns: str) -> Table:
    """A table without lines."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows


def show_report(report: Report) -> None:
    """Print what a conversion did."""
    screen = console()
    first, *rest = report.lines()
    screen.print(plain(first))
    rows = table("arrays", str(len(report.arrays)))
    for kind, count in report.counts().items():
        if count:
            rows.add_row(kind, str(count))
    screen.print(rows)
    for line in rest:
        screen.print(plain(line))
    if report.verified:
        differences = ", ".join(f"{name} {value:.2g}" for name, value in report.verified.items())
        screen.print(
            plain(f"verified in numpy float64, largest difference relative to the largest value: {differences}")
        )
    if report.load:
        screen.print(plain(f"load it: {report.load}"))
    if "licence" in report.provenance:
        screen.print(plain(f"licence: {report.provenance['licence']}"))


def show_inspection(found: Inspection) -> None:
    """Print what a file holds."""
    screen = console()
    rows = table("", "")
    rows.show_header = False
    for key, value in found.lines():
        rows.add_row(key, plain(value))
    screen.print(rows)
    if found.rows:
        rows = table("array", "shape", "dtype", "least", "greatest", "mean", "deviation", "non-finite")
        for row in found.rows:
            numbers = (row.least, row.greatest, row.mean, row.deviation)
            figures = ["" if n is None else f"{n:.4g}" for n in numbers]
            rows.add_row(
                plain(shown(row.name)), "x".join(map(str, row.shape)), row.dtype, *figures, str(row.nonfinite or "")
            )
        screen.print(rows)


def show_difference(found: Difference, bound: float) -> None:
    """Print what two files do not share."""
    screen = console()
    screen.print(plain(f"{found.first} ({found.layouts[0]}) against {found.second} ({found.layouts[1]})"))
    for title, names in ((f"only in {found.first}", found.only_first), (f"only in {found.second}", found.only_second)):
        if names:
            screen.print(plain(f"{title}: {len(names)}: {', '.join(map(shown, names[:SHOWN]))}"))
    for name, first, second in found.shapes[:SHOWN]:
        screen.print(plain(f"shapes differ: {name} {first} against {second}"))
    changes = sorted((c for c in found.changes if c.greatest > 0), key=lambda c: -c.greatest)
    if changes:
        rows = table("array", "max |difference|", "mean |difference|", "max |first|")
        for change in changes[:SHOWN]:
            rows.add_row(
                plain(shown(change.name)), f"{change.greatest:.3g}", f"{change.mean:.3g}", f"{change.scale:.3g}"
            )
        screen.print(rows)
    for note in found.notes:
        screen.print(plain(f"note: {note}"))
    word = "the same" if found.same(bound) else "not the same"
    alike = len(found.changes) - len(changes)
    valued = f"{alike} in value only (another dtype, or the sign of a zero), " if alike else ""
    screen.print(f"{word}: {found.equal} arrays equal to the bit, {valued}{len(changes)} differ in values")


def plain(text: str) -> Text:
    """A text that neither rich nor the terminal takes for an order: names, words and notices come from files."""
    return Text(printable(text))
