"""What a layout is: how a project names, stacks and arranges the arrays of these models in its files.

One table per layout, read in both directions. Names decide the role of an array, and the role what happens to it;
a shape never does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TypeVar

from triport.weights.canonical import Family, Method, Shape
from triport.weights.layouts.tables import Rule, Table

MAX_SHOWN = 120  # characters
INDEX = re.compile(r"(0|[1-9][0-9]{0,2})\Z")
Value = TypeVar("Value")
Heads = tuple[int, "int | None"]  # of the encoder and of MAE's decoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One project's way to write these models down."""

    name: str
    title: str
    framework: str  # "torch", "paddle", "oneflow"; "any" for files of any framework
    methods: tuple[Method, ...]  # what it can hold
    families: Mapping[str, Table]  # "vit", "resnet", and kinds of these: "vit-mean", "vit-probe", "vit-bare"
    needs: tuple[str, ...] = ()  # one of these parts has to be there for a file to be recognised as this layout's
    container: str = ""  # the key of the state in the file's outermost dict; "" where the state is outermost itself
    prefix: str = ""  # stands in front of every name that is written
    in_out: bool = False  # fully connected weights are (in, out)
    by_head: bool = False  # rows of the fused projection go by head, in each q, k, v
    counters: bool = True  # batch norms have `num_batches_tracked`
    marks: tuple[str, ...] = ()  # one of these names has to be in a file for it to be recognised as this layout's
    ignored: Mapping[str, str] = field(default_factory=dict)  # name pattern -> why such an array is left out
    archs: Mapping[str, Heads] = field(default_factory=dict)  # the file's own architecture words -> heads
    position_first: bool = False  # pos_embed stands before cls_token
    notice: str = ""  # licence of the weights that this layout's project released
    pooling: tuple[str, ...] = ("token",)  # features that it can express: "token" after norm, "mean" with fc_norm
    head_norm: bool = False  # it has a place for a batch norm before the head
    norm_eps: float | None = 1e-6  # of the layer norms of its project's models; None where its files may differ
    read_only: bool = False  # it cannot hold all that recognising or using its files asks for, so none is written
    remark: str = ""  # what a reader of a written file has to know
    remark_width: int = 0  # the width of the only models that the remark is about, 0 for all

    def family_for(self, names: Collection[str], family: Family) -> str | None:
        """The table for canonical names of a family; None where the layout has none."""
        for ending, mark in (("-mean", "fc_norm.weight"), ("-probe", "head.0.running_mean")):
            if family + ending in self.families and mark in names:
                return family + ending
        return family if family in self.families else None

    def rearrangements(self, rule: Rule, canonical: str) -> tuple[str, ...]:
        """What happens to an array on its way into this layout, in order; the way back undoes it in reverse."""
        rearrangements = []
        if rule.role in ("qkv", "qkv-bias") and self.by_head:
            rearrangements.append("decoder heads" if "decoder_blocks." in canonical else "heads")
        if rule.role in ("linear", "qkv") and self.in_out:
            rearrangements.append("transpose")
        if len(rule.foreign) > 1:
            rearrangements.append("thirds")
        return tuple(rearrangements)

    def canonical_shape(self, rule: Rule, shapes: list[Shape]) -> Shape:
        """Shape of the canonical array that a file's arrays of these shapes become."""
        shape = shapes[0]
        if len(shapes) > 1 and shape:
            shape = (sum(s[0] if s else 0 for s in shapes), *shape[1:])
        if rule.role in ("linear", "qkv") and self.in_out:
            shape = shape[::-1]
        return shape


@dataclass
class Names:
    """A file's names read through one table."""

    found: dict[str, tuple[Rule, tuple[str, ...]]] = field(default_factory=dict)  # canonical -> rule, file's names
    constants: list[tuple[Rule, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)  # file's name, why
    unknown: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)  # canonical names of which the file has a share only
    twice: list[str] = field(default_factory=list)  # canonical names that two of the file's arrays claim

    def shapes(self, layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Canonical names and shapes."""
        return {
            name: layout.canonical_shape(rule, [tuple(shapes[f]) for f in files])
            for name, (rule, files) in self.found.items()
        }

    def leave(self, names: Iterable[str]) -> None:
        """Take canonical names out as unknown."""
        for name in names:
            self.unknown += self.found.pop(name)[1]

    def leave_mask_token(self) -> None:
        """Take out a mask token that no decoder stands beside: an encoder's own, which whole images never show."""
        if "mask_token" in self.found and not any(name.startswith("decoder_") for name in self.found):
            _, files = self.found.pop("mask_token")
            self.ignored += [(name, "a mask token without MAE's decoder") for name in files]


def printable(text: str) -> str:
    """A text whose letters that would steer a terminal, or that it cannot show, are spelt as Python spells them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(name: str) -> str:
    """A name from a file as a line of text may have it: printable, and not endless."""
    text = printable(name)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def read_names(layout: Layout, family: str, names: Iterable[str]) -> Names:
    """Read a file's names through one of a layout's tables."""
    known, result = _foreign(layout, family), Names()
    shares: dict[str, tuple[Rule, dict[int, str]]] = {}
    for name in names:
        hit = _find(known, name)
        if hit is None:
            reason = _find(_ignored(layout), name)
            if reason is None:
                result.unknown.append(name)
            else:
                result.ignored.append((name, reason[0]))
            continue
        (rule, place), slots = hit
        if rule.canonical is None:
            result.constants.append((rule, name))
            continue
        canonical = _fill(rule.canonical, slots)
        _, parts = shares.setdefault(canonical, (rule, {}))
        if place in parts or shares[canonical][0] is not rule:
            result.twice.append(canonical)
        parts[place] = name
    for canonical, (rule, parts) in shares.items():
        if len(parts) == len(rule.foreign):
            result.found[canonical] = (rule, tuple(parts[k] for k in range(len(parts))))
        else:
            result.incomplete.append(canonical)
            result.unknown.extend(parts.values())
    return result


def write_name(layout: Layout, family: str, canonical: str) -> tuple[Rule, tuple[str, ...]] | None:
    """The rule for a canonical name and its names in a file of the layout, the prefix apart; None without a rule."""
    hit = _find(_canonical(layout, family), canonical)
    if hit is None:
        return None
    rule, slots = hit
    return rule, tuple(_fill(foreign, slots) for foreign in rule.foreign)


def constants(layout: Layout, family: str) -> list[Rule]:
    """Rules of arrays that a file has and the canonical model has not."""
    return [rule for rule in layout.families[family] if rule.canonical is None and not rule.role.endswith("?")]


# ---------------------------------------------------------------- looking names up
# Patterns by signature: a name with every number replaced by #. Of each: its own numbers and its slots, by place.
Fixed = tuple[tuple[int, str], ...]
Index = dict[str, list[tuple[Fixed, tuple[int, ...], Value]]]


def _indexed(patterns: Iterable[tuple[str, Value]]) -> Index[Value]:
    index: Index[Value] = {}
    for pattern, value in patterns:
        signature, fixed, slots = _places(pattern)
        index.setdefault(signature, []).append((fixed, slots, value))
    return index


@cache  # many tables have the same patterns
def _places(pattern: str) -> tuple[str, Fixed, tuple[int, ...]]:
    """A pattern's signature, its numbers and its slots."""
    signature, words = _signature(pattern), pattern.split(".")
    marks = [place for place, mark in enumerate(signature.split(".")) if mark == "#"]
    fixed = tuple((place, words[place]) for place in marks if words[place] != "#")
    return signature, fixed, tuple(place for place in marks if words[place] == "#")


@cache
def _foreign(layout: Layout, family: str) -> Index[tuple[Rule, int]]:
    rules = layout.families[family]
    return _indexed((name, (rule, place)) for rule in rules for place, name in enumerate(rule.foreign))


@cache
def _canonical(layout: Layout, family: str) -> Index[Rule]:
    return _indexed((rule.canonical, rule) for rule in layout.families[family] if rule.canonical is not None)


@cache
def _ignored(layout: Layout) -> Index[str]:
    return _indexed(layout.ignored.items())


@lru_cache(maxsize=1 << 16)  # every table asks for the same names
def _signature(name: str) -> str:
    return ".".join("#" if INDEX.match(word) or word == "#" else word for word in name.split("."))


def _find(index: Index[Value], name: str) -> tuple[Value, list[str]] | None:
    """What stands in an index for a name, and the numbers in its slots."""
    patterns = index.get(_signature(name), ())
    words = name.split(".") if patterns else []
    if "#" in words:  # the mark of a slot, which no name has
        return None
    for fixed, slots, value in patterns:
        if all(words[place] == word for place, word in fixed):
            return value, [words[place] for place in slots]
    return None


def _fill(pattern: str, slots: list[str]) -> str:
    numbers = iter(slots)
    return ".".join(next(numbers) if word == "#" else word for word in pattern.split("."))
