"""Two traces held against each other, array by array in order of computation.

Each array is held to the bound of its stage in the coarser precision of the two traces (`precision.py`). Optimiser and
momentum encoder are judged by what they made of the recorded gradients and weights, so a fault before them does not
count twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError, closest
from triport.parity_tests.tool import formulas, pooled
from triport.parity_tests.tool.align import align
from triport.parity_tests.tool.precision import Bound, bound, coarser, of_formula
from triport.parity_tests.tool.trace import Trace

OUTPUTS = ("mask", "q1", "q2", "k1", "k2", "prediction", "features", "logits", "loss")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Line:
    """One array held against the other's: one row of the comparison."""

    stage: str
    step: int
    name: str
    error: float  # largest difference over the largest value
    allowed: float
    mean: float = 0.0  # mean difference over the largest value
    limit: str = ""  # the bound that `allowed` comes from; "" where not a bit may differ

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """How many times what is allowed the difference is."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.allowed if self.allowed else (math.inf if self.error else 0.0)


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
            if key not in worst or line.excess > worst[key].excess:
                worst[key] = line
        return worst


def compare(a: Trace, b: Trace, stage: str | None = None) -> Comparison:
    """Hold trace b against trace a. Raises UserError where they are of different models."""
    if a.recipe.model != b.recipe.model:
        raise UserError(f"{a.name} is a trace of {a.recipe.name} and {b.name} of {b.recipe.name}: different models.")
    lines = tuple(line for line in _lines(a, b) if stage in (None, line.stage))
    if not lines:
        stages = list(dict.fromkeys(line.stage for line in _lines(a, b)))
        raise UserError(f"no stage '{stage}' in them ({', '.join(stages)}).{closest(stage or '', stages)}")
    return Comparison(a, b, lines, tuple(_alone(a, b)))


# ---------------------------------------------------------------- in order of computation
def _lines(a: Trace, b: Trace) -> Iterator[Line]:
    for name in a.part("first/"):
        yield from _line(a, b, "initial values", 0, name, f"first/{name}", exact=True)
    for i in range(min(a.steps, b.steps)):
        for name in a.part(f"inputs/{i}/"):
            yield from _line(a, b, "inputs", i, name, f"inputs/{i}/{name}", exact=True)
        yield from _missed(a, b, i, "momentum update")
        yield from _keys(a, b, i)
        layers = list(a.part("layers/")) if i == 0 else []
        for name in layers:
            yield from _layer(a, b, name)
        for name in OUTPUTS:
            yield from _line(a, b, "loss" if name == "loss" else "outputs", i, name, f"step{i}/{name}")
        for name in reversed(layers):
            yield from _line(a, b, "backward", i, name, f"backward/{name}")
        for name in reversed(list(a.part(f"step{i}/grad/"))):
            yield from _line(a, b, "gradients", i, name, f"step{i}/grad/{name}")
        for name in a.part("first/"):
            if name.endswith(STATISTICS):
                yield from _line(a, b, "batch-norm statistics", i, name, f"step{i}/{name}")
        yield from _missed(a, b, i, "optimiser")


def stored(a: Trace, b: Trace, stage: str, step: int) -> Bound | None:
    """The bound of a stage in two traces."""
    lars = a.recipe.optimizer.kind == "lars"  # whose lengths of large arrays are rounded sums
    return bound(stage, coarser(a.precision, b.precision), step, lars)


def _line(a: Trace, b: Trace, stage: str, step: int, name: str, key: str, exact: bool = False) -> Iterator[Line]:
    """One array of both traces, where both have it and the precision lets them be compared."""
    if key not in a.arrays or key not in b.arrays:
        return
    pair = align(a.arrays[key], b.arrays[key])
    if pair is None:
        if stage == "initial values":
            raise UserError(
                f"{name} has shape {a.arrays[key].shape} in {a.name} and {b.arrays[key].shape} in {b.name}."
            )
        return
    if stage == "backward":
        pair = pooled.without_ties(a, name, pair)
    largest, mean, length = errors(*pair, least=max(_measure(a, key), _measure(b, key)))
    if exact:
        yield Line(stage, step, name, largest, 0.0, mean)
        return
    limit = stored(a, b, stage, step)
    if limit is not None:
        yield Line(stage, step, name, length if limit.by_length else largest, limit.limit, mean, limit.row)


def _measure(trace: Trace, key: str) -> float:
    """The `neighbour` of an array of a trace; of gradients' biases and running means alone."""
    return neighbour(trace.arrays, key) if "/grad/" in key or key.endswith("running_mean") else 0.0


def neighbour(arrays: Mapping[str, NDArray], key: str) -> float:
    """Another measure of what may be 0 in truth: of a running mean the deviation, of a norm's bias its weight; or 0."""
    if key.endswith("running_mean"):
        variance = arrays.get(key.replace("running_mean", "running_var"))
        return 0.0 if variance is None else float(np.sqrt(variance.max()))
    weight = arrays.get(key.replace(".bias", ".weight")) if key.endswith(".bias") else None
    alike = weight is not None and weight.shape == arrays[key].shape
    return float(np.abs(weight).max()) if weight is not None and alike else 0.0


def _layer(a: Trace, b: Trace, name: str) -> Iterator[Line]:
    """A layer's output, held against the other's and, where it has one, against its formula on its own input."""
    for line in _line(a, b, "forward", 0, name, f"layers/{name}"):
        own = [miss for trace in (a, b) if (miss := formulas.layer(trace, name)) is not None]
        allowed = of_formula(a.precision, b.precision)
        if line.agrees and len(own) == 2 and min(own) <= allowed < max(own):
            line = replace(line, error=max(own), allowed=allowed)
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
            state = "optimiser state" if name.startswith("state/") else "optimiser update"
            which = stage if stage == "momentum update" else state
            limit = stored(a, b, which, step)
            assert limit is not None  # every precision proves the rules
            largest, mean = float(difference.max(initial=0.0)) / size, float(difference.mean()) / size
            yield Line(which, step, name.removeprefix("state/"), largest, limit.limit, mean, limit.row)


def _keys(a: Trace, b: Trace, step: int) -> Iterator[Line]:
    """Keys of the later steps, held against what each trace's own momentum encoder makes of the views."""
    ours, theirs = (formulas.keys(trace, step) if step > 0 else {} for trace in (a, b))
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name]
        size, difference = max(one.size, other.size, 1e-12), np.abs(other.by - one.by)
        limit = stored(a, b, "keys", step)
        assert limit is not None
        largest, mean = float(difference.max()) / size, float(difference.mean()) / size
        yield Line("momentum update", step, name, largest, limit.limit, mean, limit.row)


def errors(a: NDArray, b: NDArray, least: float = 0.0) -> tuple[float, float, float]:
    """Largest and mean difference of two arrays over the largest value of either, and of lengths over the longer one.

    What is 0 in truth has no better side: neither array is taken for the right one. The largest value counts as
    `least` where it is less.
    """
    if a.size == 0:
        return 0.0, 0.0, 0.0
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size, difference = max(float(np.abs(a).max()), float(np.abs(b).max()), least, 1e-12), np.abs(b - a)
    length = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), least * math.sqrt(a.size), 1e-12)
    return float(difference.max()) / size, float(difference.mean()) / size, float(np.linalg.norm(b - a)) / length


def _alone(a: Trace, b: Trace) -> Iterator[str]:
    ours, theirs = a.part("layers/"), b.part("layers/")
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs or align(ours[name], theirs[name]) is None:
            yield name
