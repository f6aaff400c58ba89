"""The bounds of the parity levels, from the table in parity_tests/README.md, and the errors measured in this run."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ROW = re.compile(r"^\| `([\w-]+)` \|[^|]*\|[^|]*\| ([0-9.e+-]+) \|", re.MULTILINE)
MEASURED: dict[str, tuple[float, str]] = {}  # bound -> largest error seen in this run, and of what


def bounds() -> dict[str, float]:
    """Return name -> bound of every row of the table."""
    found = {name: float(bound) for name, bound in ROW.findall(README.read_text(encoding="utf-8"))}
    if not found:
        raise RuntimeError(f"{README.name} holds no table of bounds")
    return found


LIMITS = bounds()


def hold(bound: str, error: float, what: str) -> None:
    """Assert that an error is under a bound of the table, and remember the largest. NaN is over every bound."""
    if error > MEASURED.get(bound, (-1.0, ""))[0]:
        MEASURED[bound] = (error, what)
    assert error < LIMITS[bound], f"{what}: error {error:.2g} is over the bound '{bound}' of {LIMITS[bound]:.0e}"
