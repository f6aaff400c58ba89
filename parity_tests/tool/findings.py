"""What a parity run found: one line for each thing held against another, and the report of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from triport.parity_tests.tool.comparison import Comparison, Line
from triport.parity_tests.tool.trace import REFERENCE

FORMULA, ALONE, FIRST, EACH = "formula", "one process", "original", "each other"
NAMES = {REFERENCE: "float64", "": "", **{name: name for name in (FORMULA, ALONE, FIRST, EACH)}}


@dataclass(frozen=True)
class Finding:
    """One thing that a backend computed, held against something. Differences are relative to the largest value."""

    level: str
    what: str
    backend: str
    against: str  # another backend, or one of NAMES
    largest: float
    mean: float
    allowed: float  # 0: not a bit may differ
    where: str  # the array nearest to its bound
    message: str = ""  # of a failure

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not, and a failure never."""
        return not self.message and self.largest <= self.allowed

    @property
    def limit(self) -> str:
        """What is allowed, in words."""
        return number(self.allowed, 0)

    @property
    def difference(self) -> str:
        """The largest difference, in words; none of a failure."""
        return "" if self.message else number(self.largest, 1)


def number(value: float, digits: int) -> str:
    """A difference for readers: 0 is equal."""
    return "equal" if value == 0 else f"{value:.{digits}e}" if value < 1 else f"{value:.3g}"


def from_lines(level: str, what: str, backend: str, against: str, lines: Sequence[Line]) -> list[Finding]:
    """Of some lines the first that departs, or else the one nearest to its bound, as a finding; none of no lines."""
    if not lines:
        return []
    worst = next((line for line in lines if not line.agrees), max(lines, key=lambda line: line.excess))
    mean = sum(line.mean for line in lines) / len(lines)
    return [Finding(level, what, backend, against, worst.error, mean, worst.allowed, worst.name)]


def of(comparison: Comparison, *stages: str, step: int | None = None) -> list[Line]:
    """The lines of some stages."""
    return [line for line in comparison.lines if line.stage in stages and step in (None, line.step)]


@dataclass(frozen=True)
class Report:
    """All of a parity_run."""

    recipe: str
    title: str
    about: str
    backends: Mapping[str, str]  # backend -> title and version
    missing: Mapping[str, str]  # backend -> remedy
    levels: Sequence[str]
    findings: Sequence[Finding]
    layers: Mapping[str, Sequence[tuple[str, float, float, float]]]  # backend -> layer, largest, mean, allowed
    losses: Mapping[str, Sequence[float]]  # backend -> loss of each step
    precision: str
    seconds: float
    environment: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether everything holds, and there is something."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line."""
        count, bad = len(self.findings), sum(not finding.passed for finding in self.findings)
        if self.passed:
            return f"all {count} comparisons hold"
        if not count:
            return "nothing was compared"
        return f"{bad} of {count} comparisons do not hold"

    def name(self, key: str) -> str:
        """A backend's or reference's name for readers."""
        return NAMES.get(key) or self.backends.get(key, key).partition(" ")[0]

    def sentence(self, f: Finding) -> str:
        """A finding in words."""
        if f.message:
            return f"{self.name(f.backend)}: {f.message}"
        numbers = f"{f.difference}, allowed {f.limit}" if f.largest else "equal"
        return f"{f.what}, {self.name(f.backend)} against {self.name(f.against)}: {numbers} ({f.where})"

    def plain(self) -> dict[str, Any]:
        """Everything as JSON values; what is not a number is null."""
        rows = [{**asdict(f), "passed": f.passed} for f in self.findings]
        for row in rows:
            row |= {key: None for key in ("largest", "mean") if not math.isfinite(row[key])}
        whole = {key: value for key, value in vars(self).items() if key != "findings"}
        return {**whole, "passed": self.passed, "verdict": self.verdict, "findings": rows}
