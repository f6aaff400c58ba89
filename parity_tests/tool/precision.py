"""Which bound of the table a part of a trace is held to, by the precision it was computed in."""

from __future__ import annotations

from dataclasses import dataclass

from triport.parity_tests.tool.bounds import LIMITS

PRECISIONS = ("bfloat16", "float32", "float64")  # the coarsest first
RULES = ("optimiser update", "optimiser state", "momentum update")


@dataclass(frozen=True)
class Bound:
    """A row of the table, and whether lengths of differences are held to it in place of single values."""

    row: str
    by_length: bool = False

    @property
    def limit(self) -> float:
        """The largest relative difference that is allowed."""
        return LIMITS[self.row]


def coarser(a: str, b: str) -> str:
    """The one of two precisions that rounds more."""
    return min(a, b, key=PRECISIONS.index)


def of_formula(a: str, b: str) -> float:
    """How far a layer may be from its formula on its own input, in the coarser one of two precisions."""
    return LIMITS["float64"] if coarser(a, b) == "float64" else LIMITS["forward"] / 2  # one layer, not a whole model


def bound(stage: str, precision: str, step: int = 0, lars: bool = False) -> Bound | None:
    """The bound of a stage in a step; None where the precision proves nothing.

    After the first step float32 proves the update rules alone: a ReLU that rounding has switched moves losses and
    gradients by more than many a fault does. In float64 every step is held.
    """
    if precision == "float64":
        if stage in RULES or stage == "keys":
            return Bound("float64")
        if step > 0:
            return Bound("float64-training")
        return Bound("float64-gradient" if stage in ("backward", "gradients") else "float64")
    if stage in RULES:
        return Bound("trace" if lars and stage == "optimiser state" else "optimizer")
    if step > 0 and stage != "keys":
        return None
    if precision == "bfloat16":
        rows = {"loss": "loss", "backward": "gradient", "gradients": "gradient"}
        return Bound(f"bfloat16-{rows.get(stage, 'output')}", by_length=stage != "loss")
    if stage in ("backward", "gradients"):
        return Bound("trace-gradient", by_length=True)
    return Bound("forward-full" if stage == "loss" else "trace")
