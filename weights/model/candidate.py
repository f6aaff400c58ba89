"""A state of a file read through one table of a layout, held against what its architecture asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triport.core.errors import UserError
from triport.weights.canonical import Architecture, Shape, architecture, method_of, part, parts
from triport.weights.layouts.layout import Layout, Names, read_names, shown
from triport.weights.model.reasons import in_field_words
from triport.weights.model.states import State


@dataclass
class Candidate:
    """A state read through one table of a layout, held against what its architecture asks for."""

    layout: Layout
    family: str
    state: State
    names: Names
    shapes: dict[str, Shape]  # canonical
    architecture: Architecture | None = None
    unfit: bool = False  # its names make a kind of model that this layout does not hold
    fault: str = ""  # why there is no architecture
    missing: list[str] = field(default_factory=list)  # canonical names
    uncounted: list[str] = field(default_factory=list)  # counters that this layout does not write
    extra: list[str] = field(default_factory=list)  # canonical names that the architecture does not have
    wrong: list[tuple[str, Shape, Shape]] = field(default_factory=list)  # name, shape, shape asked for
    same: list[Layout] = field(default_factory=list)  # other layouts that read the file alike
    beside: list[tuple[str, str]] = field(default_factory=list)  # other models in the file: place, what takes it
    remedy: str = ""  # what takes a part that reads, where this does not fit

    @property
    def known(self) -> int:
        """How many of the file's names the table knows."""
        return len(self.state.arrays) - len(self.names.unknown)

    @property
    def faults(self) -> int:
        """Names and shapes that are not as they should be."""
        names = len(self.names.unknown) + len(self.names.twice) + len(self.missing) + len(self.extra)
        return names + len(self.wrong) + bool(self.fault)

    def first_fault(self) -> str:
        """The first thing that is not as this layout has it, for people."""
        if self.names.unknown:
            name = self.names.unknown[0]
            reason = in_field_words(name)
            return f"it does not know '{shown(name)}'" + (f" ({reason})" if reason else "")
        if self.names.twice:
            return f"two arrays of the file would be '{self.names.twice[0]}'"
        if self.fault:
            return self.fault
        if self.wrong:
            name, shape, asked = self.wrong[0]
            return f"'{name}' has the shape {shape}, not {asked}"
        if self.extra:
            return f"a {self.architecture.describe() if self.architecture else 'model'} has no '{self.extra[0]}'"
        return f"'{self.missing[0]}' is missing" if self.missing else "nothing differs"


def examine(layout: Layout, family: str, state: State, headless: bool = False) -> Candidate:
    """Read a state through one table.

    headless: a head that is no classifier's of this encoder is unknown, as where the encoder alone is asked for.
    """
    names = read_names(layout, family, state.arrays)
    names.leave_mask_token()
    shapes = names.shapes(layout, {name: array.shape for name, array in state.arrays.items()})
    foreign = headless and _foreign_head(shapes)
    if foreign:
        names.leave([name for name in names.found if part(name) == "head"])
        shapes = {name: shape for name, shape in shapes.items() if name in names.found}
    found = Candidate(layout, family, state, names, shapes)
    if not shapes:
        return found
    if layout.marks and not any(name in state.arrays for name in layout.marks):
        found.unfit, found.fault = True, f"it has no '{layout.marks[0]}'"
        return found
    method = method_of(shapes)
    if foreign and "encoder" not in layout.methods:
        found.unfit, found.fault = True, "it holds no encoder alone"
        return found
    if method not in layout.methods or (layout.needs and not set(layout.needs) & set(parts(shapes))):
        found.unfit, found.fault = True, f"it holds no {method} of this kind"
        return found
    try:
        found.architecture = architecture(shapes)
        expected = found.architecture.expected()
    except UserError as fault:
        found.fault = str(fault)
        return found
    for name, parameter in expected.items():
        if name not in shapes:
            counter = parameter.role == "counter" and not layout.counters
            (found.uncounted if counter else found.missing).append(name)
        elif shapes[name] != parameter.shape:
            found.wrong.append((name, shapes[name], parameter.shape))
    found.extra = [name for name in shapes if name not in expected]
    return found


def _foreign_head(shapes: Mapping[str, Shape]) -> bool:
    """Whether there is a head that is no linear layer on the encoder's features, with or without a norm before it."""
    if method_of(shapes) != "classifier":
        return False
    stem = "fc" if "conv1.weight" in shapes else "head"
    matrix = shapes.get(f"{stem}.1.weight" if f"{stem}.0.running_mean" in shapes else f"{stem}.weight", ())
    width = shapes.get("cls_token", ())[-1:]
    return len(matrix) != 2 or (bool(width) and matrix[1:] != width)
