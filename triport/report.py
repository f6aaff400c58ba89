"""`triport report`: the page of a run, also while it goes on, or several runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triport.core.options import Parser
from triport.core.record import comparison, report


def main(argv: Sequence[str]) -> int:
    """Write report.html into each run folder that is named."""
    p = Parser(prog="triport report", description="Draw the curves of runs into their report.html.")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    p.add_argument(
        "--together",
        type=Path,
        metavar="FILE.html",
        help="instead, the page of several runs, as `triport compare` makes it",
    )
    options = p.parse_args(list(argv))
    if options.together:
        print(comparison.write(options.runs, options.together))
        return 0
    for run in options.runs:
        print(report.write(run))
    return 0
