"""Two records of models held against each other, in order of computation: forward, then backward, then the updates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.foreign import files, formulas, matching, words
from triport.parity_tests.tool.foreign.files import Record
from triport.parity_tests.tool.foreign.formulas import base
from triport.parity_tests.tool.foreign.matching import Match
from triport.parity_tests.tool.foreign.names import Names

STATISTICS = ("running_mean", "running_var")
COUNTERS = ("num_batches_tracked",)  # which Paddle does not have
# stage -> its row of the table of bounds in float64 and in float32, and whether float32 is held by lengths
ROWS = {
    "forward": ("float64-deep", "trace", False),
    "outputs": ("float64-deep", "trace", False),
    "loss": ("float64-deep", "forward-full", False),
    "backward": ("float64-gradient", "trace-gradient", True),
    "gradients": ("float64-gradient", "trace-gradient", True),
    "batch-norm statistics": ("float64-deep", "trace", False),
    "optimiser update": ("float64", "optimizer", False),
    "weights": ("float64-weight", "trace", False),
}


@dataclass(frozen=True)
class Line:
    """One array held against the other's: one row of the comparison."""

    stage: str
    step: int
    name: str  # in A
    other: str  # in B
    kind: str  # of the module, "" where it is not known
    error: float  # largest difference over the largest value
    mean: float  # mean difference over the largest value
    cosine: float
    allowed: float
    limit: str = ""  # the bound that `allowed` comes from; "" where not a bit may differ
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that was compared, in order of computation."""

    a: Record
    b: Record
    match: Match
    lines: tuple[Line, ...]
    settings: tuple[str, ...]  # in which matched modules differ
    notes: tuple[str, ...]  # differences of the frameworks that are allowed for

    @property
    def first(self) -> int | None:
        """The place of the first line that departs, or None."""
        return next((i for i, line in enumerate(self.lines) if not line.agrees), None)

    def modules(self) -> dict[str, dict[str, Line]]:
        """Of each matched call its lines of "forward" and "backward"."""
        out: dict[str, dict[str, Line]] = {}
        for line in self.lines:
            if line.stage in ("forward", "backward") and not line.name.endswith("/input"):
                out.setdefault(line.name, {})[line.stage] = line
        return out


def compare(a: Record, b: Record, names: Names | None = None) -> Comparison:
    """Hold record b against record a."""
    match = matching.match(a, b, names or Names())
    return Comparison(
        a, b, match, tuple(_lines(a, b, match)), tuple(words.settings(a, b, match)), tuple(words.notes(a, b))
    )


# ---------------------------------------------------------------- in order of computation
def _lines(a: Record, b: Record, match: Match) -> Iterator[Line]:
    for name in a.part("input/"):
        other = b.arrays.get(f"input/{name}")
        if other is not None:
            number, _, key = name.partition("/")
            yield _exact("inputs", int(number), key, a.arrays[f"input/{name}"], other)
    for name, array in a.part("first/").items():
        other = match.array(b, "first/", name)
        if other is not None and not name.endswith(COUNTERS):
            yield _exact("initial values", 0, name, array, other, " + ".join(match.names.of(name)))
    for call in match.calls:
        yield from _module(a, b, match, call)
    for name in a.part("out/output"):
        other = b.arrays.get(f"out/output{name}")
        if other is not None:
            yield from _line(a, b, "outputs", 0, f"output{name}", a.arrays[f"out/output{name}"], other)
    for step in range(min(a.steps, b.steps)):
        yield from _of_step(a, b, match, step)


def _of_step(a: Record, b: Record, match: Match, step: int) -> Iterator[Line]:
    mine, other = a.arrays.get(f"step{step}/loss"), b.arrays.get(f"step{step}/loss")
    if mine is not None and other is not None:
        yield from _line(a, b, "loss", step, "loss", mine, other)
    if step == 0:
        for call in reversed(match.calls):
            gradient, other = a.arrays.get(f"grad/{call}"), match.output(b, call, "grad")
            if gradient is not None and other is not None:
                yield from _line(a, b, "backward", 0, call, gradient, other, match.calls[call])
    gradients = a.part(f"step{step}/grad/")
    for name in reversed(gradients):
        other = match.array(b, f"step{step}/grad/", name)
        if other is not None:
            sibling = gradients.get(f"{name.rpartition('.')[0]}.weight", gradients[name])
            least = float(np.abs(sibling).max(initial=0.0)) if name.endswith("bias") else 0.0
            yield from _line(a, b, "gradients", step, name, gradients[name], other, match.names.of(name), least)
    yield from _statistics(a, b, match, step)
    yield from _updates(a, b, match, step)


def _module(a: Record, b: Record, match: Match, call: str) -> Iterator[Line]:
    """A module's input where it was computed outside of any, and its output."""
    targets = match.calls[call]
    given = a.arrays.get(f"in/{call}"), b.arrays.get(f"in/{targets[0]}")
    if given[0] is not None and given[1] is not None and given[0].dtype.kind == "f":
        yield from _line(a, b, "forward", 0, f"{call}/input", given[0], given[1], [f"{targets[0]}/input"])
    other = match.output(b, call)
    assert other is not None
    for line in _line(a, b, "forward", 0, call, a.arrays[f"out/{call}"], other, targets):
        yield _own_formula(a, b, targets, line)


def _own_formula(a: Record, b: Record, targets: list[str], line: Line) -> Line:
    """The line, departing too where one side alone misses its class's formula on its own input."""
    if not line.agrees or len(targets) > 1:
        return line
    found = formulas.missed(a, line.name), formulas.missed(b, targets[0])
    misses = [miss for miss in found if miss is not None]
    exact = a.modules[base(line.name)]["exact"] and b.modules[base(targets[0])]["exact"]
    if exact and len(misses) == 2 and min(misses) <= line.allowed < max(misses):
        return replace(line, error=max(misses))
    return line


def _statistics(a: Record, b: Record, match: Match, step: int) -> Iterator[Line]:
    """Running statistics: each side against its framework's rule where its input is known, else with each other."""
    for name, array in a.part(f"step{step}/after/").items():
        module, _, key = name.rpartition(".")
        other = match.array(b, f"step{step}/after/", name)
        if key not in STATISTICS or other is None or a.about["mode"] != "train":
            continue
        targets = match.names.of(module)
        momenta = [
            record.modules.get(n, {}).get("settings", {}).get("momentum")
            for record, n in ((a, module), (b, targets[0]))
        ]
        rules = _rules(a, module, step), _rules(b, targets[0], step)
        if momenta[0] == momenta[1] and all(key in rule for rule in rules):
            error = max(rule[key] for rule in rules)
            limit = _limit(a, b, "batch-norm statistics", step)
            if limit is not None:
                yield Line("batch-norm statistics", step, name, match.names.of(name)[0], "batch norm", error, error,
                           cosine(array, other), limit[1], limit[0], "against its rule on its own input")  # fmt: skip
        elif momenta[0] == momenta[1] and a.about["backend"] != b.about["backend"]:
            continue  # of later steps no input is recorded, and the frameworks' rules differ
        else:
            deviation = a.arrays.get(f"step{step}/after/{module}.running_var") if key == "running_mean" else None
            least = 0.0 if deviation is None else float(np.sqrt(deviation.max()))
            yield from _line(a, b, "batch-norm statistics", step, name, array, other, match.names.of(name), least)


def _rules(record: Record, name: str, step: int) -> dict[str, float]:
    return formulas.statistics(record, name, step) if name in record.modules else {}


def _updates(a: Record, b: Record, match: Match, step: int) -> Iterator[Line]:
    """Parameters after a step: what the two optimizers made of what each had; without a rule the arrays themselves."""
    same = a.about.get("optimizer") == b.about.get("optimizer")
    misses = (formulas.updates(a), formulas.updates(b)) if same else (None, None)
    for name in a.part(f"step{step}/grad/"):
        key = f"step{step}/after/{name}"
        other = match.array(b, f"step{step}/after/", name)
        if other is None:
            continue
        targets = match.names.of(name)
        limit = _limit(a, b, "optimiser update", step)
        assert limit is not None  # every precision proves the rules
        if misses[0] is not None and misses[1] is not None and len(targets) == 1 and (step, targets[0]) in misses[1]:
            size = max(float(np.abs(a.arrays[key]).max()), float(np.abs(other).max()), 1e-12)
            difference = np.abs(misses[1][step, targets[0]] - misses[0][step, name])
            yield Line("optimiser update", step, name, targets[0], "", float(difference.max()) / size,
                       float(difference.mean()) / size, cosine(a.arrays[key], other), limit[1], limit[0])  # fmt: skip
        elif misses[0] is None:  # an optimizer of one's own
            yield from _line(a, b, "weights", step, name, a.arrays[key], other, targets)


# ---------------------------------------------------------------- one line
def _limit(a: Record, b: Record, stage: str, step: int) -> tuple[str, float] | None:
    """The row and bound of a stage; None where float32 proves nothing."""
    wide, rough, _ = ROWS[stage]
    oneflow = "oneflow" in (a.about["backend"], b.about["backend"]) and a.about["backend"] != b.about["backend"]
    if oneflow and stage == "optimiser update":
        return "optimizer", LIMITS["optimizer"]
    if oneflow and step:
        return None  # its optimizers have moved the weights by what float32 settings make of an update
    if files.coarse(a, b):
        return (rough, LIMITS[rough]) if step == 0 or stage == "optimiser update" else None
    row = "float64-training" if step and stage not in ("optimiser update", "weights") else wide
    return row, LIMITS[row]


def _line(
    a: Record,
    b: Record,
    stage: str,
    step: int,
    name: str,
    mine: NDArray,
    other: NDArray,
    targets: list[str] | None = None,
    least: float = 0.0,
) -> Iterator[Line]:
    """One array of both, where shapes meet and the precision lets them be compared."""
    limit = _limit(a, b, stage, step)
    if limit is None:
        return
    names, kind = " + ".join(targets or [name]), a.modules.get(base(name), {}).get("kind", "")
    if mine.shape != other.shape:
        if math.prod(mine.shape) != math.prod(other.shape) or stage not in ("outputs", "loss"):
            note = f"shapes {mine.shape} and {other.shape}"
            yield Line(stage, step, name, names, kind, math.inf, math.inf, 0.0, limit[1], limit[0], note)
            return
        other = other.reshape(mine.shape)
    largest, mean, length = errors(mine, other, least)
    by_length = files.coarse(a, b) and ROWS[stage][2]
    error = length if by_length else largest
    yield Line(stage, step, name, names, kind, error, mean, cosine(mine, other), limit[1], limit[0])


def _exact(stage: str, step: int, name: str, mine: NDArray, other: NDArray, target: str = "") -> Line:
    if mine.shape != other.shape:
        note = f"shapes {mine.shape} and {other.shape}"
        return Line(stage, step, name, target or name, "", math.inf, math.inf, 0.0, 0.0, note=note)
    largest, mean, _ = errors(mine, other)
    return Line(stage, step, name, target or name, "", largest, mean, cosine(mine, other), 0.0)


def errors(a: NDArray, b: NDArray, least: float = 0.0) -> tuple[float, float, float]:
    """Largest and mean difference over the largest value of either (at least `least`), and of lengths."""
    if a.size == 0:
        return 0.0, 0.0, 0.0
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = max(float(np.abs(a).max()), float(np.abs(b).max()), least, 1e-12)
    difference = np.abs(b - a)
    length = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), least * math.sqrt(a.size), 1e-12)
    return float(difference.max()) / size, float(difference.mean()) / size, float(np.linalg.norm(b - a)) / length


def cosine(a: NDArray, b: NDArray) -> float:
    """Of the angle between two arrays; 1 where both are 0, NaN where their sizes differ."""
    if a.size != b.size:
        return math.nan
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(not a.any() and not b.any())
