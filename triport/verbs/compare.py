"""`triport compare`: several runs in a table and on one page: recipe differences, curves, final numbers."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from triport.core.options import Parser
from triport.core.record import comparison
from triport.core.record import page as pages
from triport.core.record.comparison import Comparison

PAGE = Path("compare.html")
FIELDS = 12  # differences of recipes that the terminal shows; the page has all


def parser() -> Parser:
    """Return the command line's parser."""
    p = Parser(prog="triport compare", description="Compare runs: recipe differences, curves, final numbers.")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    p.add_argument("--page", type=Path, default=PAGE, metavar="FILE.html", help=f"where the page goes ({PAGE})")
    return p


def main(argv: Sequence[str]) -> int:
    """Print the table of the runs that are named, and write their page."""
    options = parser().parse_args(list(argv))
    found = compare(options.runs)
    width = shutil.get_terminal_size().columns
    head, rows = comparison.rows(found)
    print("\n".join(aligned([head, *rows], width)))
    print("\n" + "\n".join(textwrap.wrap(comparison.verdict(found)[1], width)))
    if found.differences:
        shown = [["field", *found.runs], *([field, *values] for field, values in found.differences[:FIELDS])]
        print("\n".join(["", *aligned(shown, width, left=True)]))
    if len(found.differences) > FIELDS:
        print(f"… and {len(found.differences) - FIELDS} more; the page has all")
    print(f"\n{pages.write(options.page, comparison.render(found), 'Name another file with --page.')}")
    return 0


def compare(runs: Sequence[str | Path], page: str | Path | None = None) -> Comparison:
    """Return runs by name, each with its steps, scores and recipe, and the fields in which their recipes differ.

    page: where the page with their curves goes; none is written without. UserError for fewer than two runs, and for a
    folder that holds none.
    """
    folders = [Path(run) for run in runs]
    if page is not None:
        comparison.write(folders, Path(page))
    return comparison.read(folders)


def aligned(table: Sequence[Sequence[str]], width: int, left: bool = False) -> list[str]:
    """Return the lines of a table within a width: the widest columns are cut until it fits.

    The first column stands left, the others right unless `left`.
    """
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > 4:
        sizes[sizes.index(max(sizes))] -= 1
    lines = []
    for row in table:
        cells = [cell if len(cell) <= size else f"{cell[: size - 1]}…" for cell, size in zip(row, sizes, strict=True)]
        padded = [
            c.ljust(n) if left or not at else c.rjust(n) for at, (c, n) in enumerate(zip(cells, sizes, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines
