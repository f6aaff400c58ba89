"""Two traces held against each other, array by array in order of computation.

Each array may differ by a floor that any two sound float32 implementations need, or by a multiple of what one last bit
in weights and pixels did to it when the traces were recorded, whichever is more. Optimiser and momentum encoder are
judged by what they made of the recorded gradients and weights, so a fault before them does not count twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from parity_tests import formulas
from parity_tests.align import align
from parity_tests.bounds import LIMITS
from parity_tests.trace import Trace

OUTPUTS = ("mask", "q1", "q2", "k1", "k2", "prediction", "features", "logits", "loss")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SWITCHED = 16  # how much longer than its own element's a switched ReLU's effect may be: batch norms spread it
ZEROS, FEW = 0.01, 1e-2  # an array with this share of zeros comes out of a ReLU; more switches than so are no rounding


@dataclass(frozen=True)
class Line:
    """One array held against the other's: one row of the comparison."""

    stage: str
    step: int
    name: str
    error: float  # largest difference over the largest value
    allowed: float
    mean: float = 0.0  # mean difference over the largest value

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that was compared, in order of computation."""

    a: Trace
    b: Trace
    lines: tuple[Line, ...]
    alone: tuple[str, ...]  # layers that one trace has alone, or in shapes that do not meet

    @property
    def first(self) -> int | None:
        """The place of the first line that departs, or None."""
        return next((i for i, line in enumerate(self.lines) if not line.agrees), None)

    def stages(self) -> dict[tuple[int, str], Line]:
        """Of each step and stage the line nearest to its bound, or furthest over it."""
        worst: dict[tuple[int, str], Line] = {}
        for line in self.lines:
            key = (line.step, line.stage)
            if key not in worst or _excess(line) > _excess(worst[key]):
                worst[key] = line
        return worst


def compare(a: Trace, b: Trace, stage: str | None = None) -> Comparison:
    """Hold trace b against trace a. Raises UserError where they are of different models."""
    if a.recipe.model != b.recipe.model:
        raise UserError(f"{a.name} is a trace of {a.recipe.name} and {b.name} of {b.recipe.name}: different models.")
    lines = tuple(line for line in _lines(a, b) if stage in (None, line.stage))
    if not lines:
        raise UserError(f"nothing to compare{f' in the stage {stage}' if stage else ''}.")
    return Comparison(a, b, lines, tuple(_alone(a, b)))


# ---------------------------------------------------------------- in order of computation
def _lines(a: Trace, b: Trace) -> Iterator[Line]:
    switched = SWITCHED * math.sqrt(switches(a, b))
    for name in a.part("first/"):
        yield from _line(a, b, "first values", 0, name, f"first/{name}", exact=True)
    for i in range(min(a.steps, b.steps)):
        slack = switched if i > 0 else 0.0
        for name in a.part(f"inputs/{i}/"):
            yield from _line(a, b, "inputs", i, name, f"inputs/{i}/{name}", exact=True)
        yield from _missed(a, b, i, "momentum update")
        layers = list(a.part("layers/")) if i == 0 else []
        for name in layers:
            yield from _layer(a, b, name)
        for name in OUTPUTS:
            stage = "loss" if name == "loss" else "momentum update" if name in ("k1", "k2") and i > 0 else "outputs"
            yield from _line(a, b, stage, i, name, f"step{i}/{name}", slack)
        for name in reversed(layers):
            yield from _line(a, b, "backward", i, name, f"backward/{name}", switched)
        for name in reversed(list(a.part(f"step{i}/grad/"))):
            yield from _line(a, b, "gradients", i, name, f"step{i}/grad/{name}", switched)
        for name in a.part("first/"):
            if name.endswith(STATISTICS):
                yield from _line(a, b, "batch-norm statistics", i, name, f"step{i}/{name}", slack)
        yield from _missed(a, b, i, "optimiser")


def _line(
    a: Trace, b: Trace, stage: str, step: int, name: str, key: str, slack: float = 0.0, exact: bool = False
) -> Iterator[Line]:
    """One array of both traces, where both have it. Under `slack` their lengths are compared, not single values."""
    if key not in a.arrays or key not in b.arrays:
        return
    pair = align(a.arrays[key], b.arrays[key])
    if pair is None:
        if stage == "first values":
            raise UserError(
                f"{name} has shape {a.arrays[key].shape} in {a.name} and {b.arrays[key].shape} in {b.name}."
            )
        return
    floor = "gradient" if stage in ("backward", "gradients") else "trace"
    noise = max(a.noise.get(key, 0.0), b.noise.get(key, 0.0))
    limit = LIMITS["trace-statistics" if name.endswith(STATISTICS) else floor]
    allowed = 0.0 if exact else max(limit, LIMITS["trace-noise"] * noise)
    largest, mean, length = errors(*pair)
    if slack > allowed and largest > allowed:
        largest, allowed = length, slack
    yield Line(stage, step, name, largest, allowed, mean)


def switches(a: Trace, b: Trace) -> float:
    """The largest share of a ReLU's outputs that are 0 in one trace alone: their inputs were rounded across 0.

    Each switches one element of the gradient on or off, in any two sound implementations. So k of n of them may weigh
    sqrt(k / n) of the gradient's length, and what follows from the gradients differs as well.
    """
    share = 0.0
    for name, array in a.part("layers/").items():
        pair = align(array, b.arrays[f"layers/{name}"]) if f"layers/{name}" in b.arrays else None
        if pair is not None and pair[0].size and (pair[0] == 0).mean() > ZEROS:
            share = max(share, float(((pair[0] == 0) != (pair[1] == 0)).mean()))
    return share if share < FEW else 0.0


def _layer(a: Trace, b: Trace, name: str) -> Iterator[Line]:
    """A layer's output, held against the other's and, where it has one, against its formula on its own input."""
    for line in _line(a, b, "forward", 0, name, f"layers/{name}"):
        own = [miss for trace in (a, b) if (miss := formulas.layer(trace, name)) is not None]
        if line.agrees and len(own) == 2 and min(own) <= LIMITS["trace-layer"] < max(own):
            line = replace(line, error=max(own), allowed=LIMITS["trace-layer"])
        yield line


def _missed(a: Trace, b: Trace, step: int, stage: str) -> Iterator[Line]:
    """Both traces' distances from their formulas: what the two made of what each of them had."""
    rule = formulas.momentum if stage == "momentum update" else formulas.update
    if any(f"step{step}/state/step" not in trace.arrays for trace in (a, b)):
        return  # the reference has no optimiser
    ours, theirs = rule(a, step), rule(b, step)
    for name in ours:
        if name in theirs:
            one, other = ours[name], theirs[name]
            size = max(one.size, other.size, 1e-12)
            difference = np.abs(other.by - one.by)
            state = name.startswith("state/")
            lars = a.recipe.optimizer.kind == "lars"  # whose lengths of large arrays are rounded sums
            bound = LIMITS[("trace-lars" if lars else "optimizer-state") if state else "optimizer"]
            which = stage if stage == "momentum update" else "optimiser state" if state else "optimiser update"
            values = float(difference.max(initial=0.0)) / size, bound, float(difference.mean()) / size
            yield Line(which, step, name.removeprefix("state/"), *values)


def errors(a: NDArray, b: NDArray) -> tuple[float, float, float]:
    """Largest and mean difference of two arrays over the largest value of either, and of lengths over the longer one.

    What is 0 in truth has no better side: neither array is taken for the right one.
    """
    if a.size == 0:
        return 0.0, 0.0, 0.0
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size, difference = max(float(np.abs(a).max()), float(np.abs(b).max()), 1e-12), np.abs(b - a)
    length = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), 1e-12)
    return float(difference.max()) / size, float(difference.mean()) / size, float(np.linalg.norm(b - a)) / length


def _alone(a: Trace, b: Trace) -> Iterator[str]:
    ours, theirs = a.part("layers/"), b.part("layers/")
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs or align(ours[name], theirs[name]) is None:
            yield name


def _excess(line: Line) -> float:
    """How many times what is allowed."""
    if np.isnan(line.error):
        return float("inf")
    return line.error / line.allowed if line.allowed else (float("inf") if line.error else 0.0)
