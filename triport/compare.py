"""`triport compare`: several runs in a table and on one page: recipe differences, curves, final numbers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from triport.core.options import Parser
from triport.core.record import comparison, page

PAGE = Path("compare.html")
FIELDS = 12  # differences of recipes that the terminal shows; the page has all


def main(argv: Sequence[str]) -> int:
    """Print the table of the runs that are named, and write their page."""
    p = Parser(prog="triport compare", description="Compare runs: recipe differences, curves, final numbers.")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    p.add_argument("--page", type=Path, default=PAGE, metavar="FILE.html", help=f"where the page goes ({PAGE})")
    options = p.parse_args(list(argv))
    found = comparison.read(options.runs)
    width = shutil.get_terminal_size().columns
    head, rows = comparison.rows(found)
    print("\n".join(aligned([head, *rows], width)))
    print(f"\n{comparison.verdict(found)[1]}")
    if found.differences:
        shown = [["field", *found.runs], *([field, *values] for field, values in found.differences[:FIELDS])]
        print("\n".join(["", *aligned(shown, width, left=True)]))
    if len(found.differences) > FIELDS:
        print(f"… and {len(found.differences) - FIELDS} more; the page has all")
    print(f"\n{page.write(options.page, comparison.render(found), 'Name another file with --page.')}")
    return 0


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
