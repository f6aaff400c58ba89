"""`triport report`: the page of a run, also while it goes on: curves, monitors, what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core import report
from core.options import Parser


def main(argv: Sequence[str]) -> int:
    """Write report.html into each run folder that is named."""
    p = Parser(prog="triport report", description="Draw the curves of runs into their report.html.")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    for run in p.parse_args(list(argv)).runs:
        print(report.write(run))
    return 0
