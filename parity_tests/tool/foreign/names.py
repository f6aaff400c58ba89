"""Names of one model's modules and arrays in the words of another: prefixes, `*` for a number, three parts of a qkv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Names:
    """A map from names of A to names of B. The longest rule that fits the beginning of a name is used, once.

    `*` stands for one part of a name, on both sides. A list names the modules of B whose outputs, rows and biases stand
    one after another in the one of A: {"blocks.*.attn.qkv": ["blocks.*.q", "blocks.*.k", "blocks.*.v"]}.
    """

    table: Mapping[str, str | list[str]] = field(default_factory=dict)

    def of(self, name: str) -> list[str]:
        """The names in B of a module or array of A: one, or one for each part."""
        best: tuple[int, list[str]] = (-1, [name])
        for left, right in self.table.items():
            pattern = re.escape(left).replace(r"\*", r"([^.@]+)")
            match = re.match(rf"{pattern}(?=$|[.@\[])", name)
            if match and match.end() > best[0]:
                rights = [right] if isinstance(right, str) else right
                found = [_filled(r, match.groups()) + name[match.end() :] for r in rights]
                best = match.end(), [part.removeprefix(".") for part in found]
        return best[1]

    def onto(self, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Arrays of A under the names of B; those of a joined module are cut along their first axis."""
        out: dict[str, NDArray] = {}
        for name, array in arrays.items():
            targets = self.of(name)
            out |= dict(zip(targets, np.split(array, len(targets)) if len(targets) > 1 else [array]))
        return out

    def joined(self, names: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
        """Names of A that are several in B, and which."""
        for name in names:
            targets = self.of(name)
            if len(targets) > 1:
                yield name, targets


def _filled(text: str, groups: tuple[str, ...]) -> str:
    """A right side with its stars filled from the left in order."""
    for group in groups:
        text = text.replace("*", group, 1)
    return text
