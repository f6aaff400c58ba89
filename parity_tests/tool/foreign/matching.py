"""Which module of one record corresponds to which of another: by a given map or name, then by order, kind and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from triport.parity_tests.tool.foreign.files import Record
from triport.parity_tests.tool.foreign.formulas import base
from triport.parity_tests.tool.foreign.names import Names

BY_MAP, BY_NAME, BY_ORDER = "map", "name", "order and shape"


@dataclass(frozen=True, eq=False)
class Match:
    """Calls of A with those of B, in A's order of computation."""

    calls: dict[str, list[str]]  # a call of A -> the calls of B whose outputs are its, one behind the other
    how: dict[str, str]  # a module of A -> BY_MAP, BY_NAME or BY_ORDER
    names: Names  # with what was matched by order
    alone: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))  # modules of A and of B with no other

    def output(self, record: Record, call: str, kind: str = "out") -> NDArray | None:
        """What B has for a call of A: "out", "in" or "grad". Several are joined along the last axis."""
        names = self.calls[call]
        found = [record.input_of(n) if kind == "in" else record.arrays.get(f"{kind}/{n}") for n in names]
        if kind == "in":
            found = found[:1]  # they share it
        arrays = [array for array in found if array is not None]
        if len(arrays) < len(found):
            return None
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    def array(self, record: Record, prefix: str, name: str) -> NDArray | None:
        """What B has for an array of A, such as prefix "step0/grad/": several are joined along the first axis."""
        found = [record.arrays.get(f"{prefix}{target}") for target in self.names.of(name)]
        arrays = [array for array in found if array is not None]
        if len(arrays) < len(found):
            return None
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def match(a: Record, b: Record, names: Names) -> Match:
    """Match the modules of two records."""
    mine, theirs = calls(a), calls(b)
    pairs, how, taken = {}, dict[str, str](), set[str]()
    for call in mine:
        targets = names.of(call)
        if all(target in theirs for target in targets):
            pairs[call] = targets
            taken |= {base(target) for target in targets}
            how[base(call)] = BY_NAME if targets == [call] else BY_MAP
    left = [call for call in mine if call not in pairs and base(call) not in how and token(a, call)]
    right = [call for call in theirs if base(call) not in taken and token(b, call)]
    table = dict(names.table)
    for block in SequenceMatcher(
        None, [token(a, c) for c in left], [token(b, c) for c in right], autojunk=False
    ).get_matching_blocks():
        for one, other in zip(left[block.a : block.a + block.size], right[block.b : block.b + block.size]):
            pairs[one] = [other]
            how[base(one)] = BY_ORDER
            taken.add(base(other))
            if a.part(f"first/{base(one)}."):
                table[base(one)] = base(other)
    ordered = {call: pairs[call] for call in mine if call in pairs}
    alone = (
        _unpaired(a, [base(call) for call in mine], set(how)),
        _unpaired(b, [base(call) for call in theirs], taken),
    )
    return Match(ordered, how, Names(table), alone)


def calls(record: Record) -> list[str]:
    """The outputs of modules in order of computation."""
    found = [name.removeprefix("out/") for name in record.arrays if name.startswith("out/")]
    return [name for name in found if base(name) in record.modules]


def token(record: Record, call: str) -> tuple[object, ...] | None:
    """By what modules of other names count as the same: kind, shapes of weights and output. None: by nothing."""
    name = base(call)
    known = record.modules[name]
    if not known["kind"] or known["kind"] == "dropout":
        return None
    own = sorted(tuple(array.shape) for key, array in record.part(f"first/{name}.").items() if array.ndim)
    part = "[" in call and call.partition("[")[2]
    return known["kind"], tuple(own), tuple(record.arrays[f"out/{call}"].shape), part


def _unpaired(record: Record, modules: Sequence[str], paired: set[str]) -> list[str]:
    """Modules of a known kind that the other record does not have."""
    known = record.modules
    return [n for n in dict.fromkeys(modules) if n not in paired and known[n]["kind"] not in ("", "dropout")]
