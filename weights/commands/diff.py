"""Two checkpoints of any layouts held against each other, in canonical names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triport.core.selection import EVERYTHING, Selection
from triport.weights.arrays import Lazy
from triport.weights.commands.deliver import same_bits
from triport.weights.model.model import select
from triport.weights.model.opening import Opened, open_model
from triport.weights.model.reading import Choices, Reading

if TYPE_CHECKING:
    from triport.weights.model.reading import Unpack


@dataclass
class Change:
    """One array that is not equal."""

    name: str
    greatest: float  # absolute difference
    mean: float
    scale: float  # greatest absolute value of the first


@dataclass
class Difference:
    """What two checkpoints do not share."""

    first: str
    second: str
    layouts: tuple[str, str]
    equal: int = 0  # arrays equal to the bit
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def same(self, bound: float = 0) -> bool:
        """Whether names and shapes agree and no value differs by more than `bound`."""
        names = self.only_first or self.only_second or self.shapes
        return not names and all(change.greatest <= bound for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {**dataclasses.asdict(self), "same": self.same()}


def diff(
    first: str | Path,
    second: str | Path,
    *,
    second_from: str | None = None,
    second_selection: Selection = EVERYTHING,
    **choices: Unpack[Choices],
) -> Difference:
    """Compare two checkpoints.

    Where one holds a bare encoder and the other more, encoders are compared. Counters that a layout does not have
    are left out. second_from, second_selection: the second's layout, where its keys leave a choice, and what to read
    of it; choices: the fields of `Reading`, from_ and selection for the first, the others for both.
    """
    how = Reading(**choices)
    second_how = replace(how, from_=second_from, selection=second_selection)
    both = [open_model(first, how), open_model(second, second_how)]
    found = Difference(str(first), str(second), (both[0].candidate.layout.name, both[1].candidate.layout.name))
    _align(both, found)
    for opened, other in (both, both[::-1]):
        opened.model.heads = opened.model.heads or other.model.heads
        opened.model.decoder_heads = opened.model.decoder_heads or other.model.decoder_heads
    made = {name for opened in both for name, piece in opened.model.pieces.items() if "made" in piece.done}
    first_arrays, second_arrays = ({n: a for n, a in _arrays(opened).items() if n not in made} for opened in both)
    if made:
        found.notes.append(f"{len(made)} counters are not compared: one of the layouts does not have them")
    found.only_first = [name for name in first_arrays if name not in second_arrays]
    found.only_second = [name for name in second_arrays if name not in first_arrays]
    for name in first_arrays:
        if name in second_arrays:
            _compare(found, name, first_arrays[name], second_arrays[name])
    return found


def _arrays(opened: Opened) -> dict[str, Lazy]:
    """Canonical arrays, and those that the layout does not know under their own names."""
    unknown = {name: opened.candidate.state.arrays[name] for name in opened.candidate.names.unknown}
    return opened.model.arrays() | unknown


def _align(both: list[Opened], found: Difference) -> None:
    methods = [opened.model.architecture.method for opened in both]
    if methods[0] == methods[1]:
        return
    for opened, method in zip(both, methods, strict=True):
        if method != "encoder":
            opened.model = select(opened.model, "encoder", opened.report)
    found.notes.append(f"one holds {methods[0]}, the other {methods[1]}: their encoders are compared")


def _compare(found: Difference, name: str, first: Lazy, second: Lazy) -> None:
    if first.shape != second.shape:
        found.shapes.append((name, first.shape, second.shape))
        return
    if same_bits(first, second):
        found.equal += 1
        return
    wide = np.complex128 if "complex" in first.dtype + second.dtype else np.float64
    a, b = (array.read().astype(wide).reshape(-1) for array in (first, second))  # a counter has no axis to index
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
    gap[a == b] = 0  # infinities
    gap[np.isnan(a) & np.isnan(b)] = 0
    gap[np.isnan(gap)] = np.inf
    mean = float(gap.mean()) if gap.size else 0.0
    found.changes.append(Change(name, float(gap.max(initial=0)), mean, float(np.nanmax(np.abs(a), initial=0))))
