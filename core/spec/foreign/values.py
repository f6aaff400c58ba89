"""The values of a Python configuration that is read without being executed: trees, names of code, recorded calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Tree(dict[str, Any]):
    """A dict, a DictConfig or a ConfigDict of a configuration; its items can be reached as attributes."""


@dataclass(frozen=True)
class Symbol:
    """A class, a function or a module of the other project: its dotted name, none of its code."""

    name: str

    @property
    def last(self) -> str:
        """The name without the modules it lies in."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """A call of the other project's code, written down instead of being made."""

    target: Symbol
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = [*map(repr, self.positional), *(f"{key}={value!r}" for key, value in self.named.items())]
        return f"{self.target}({', '.join(inside)})"


@dataclass(frozen=True)
class Lazy:
    """LiBai's LazyCall(X) before its arguments are given."""

    target: Any


# Constants of flowvision and timm that configurations reckon with.
CONSTANTS: dict[str, Any] = {
    "IMAGENET_DEFAULT_MEAN": (0.485, 0.456, 0.406),
    "IMAGENET_DEFAULT_STD": (0.229, 0.224, 0.225),
    "IMAGENET_INCEPTION_MEAN": (0.5, 0.5, 0.5),
    "IMAGENET_INCEPTION_STD": (0.5, 0.5, 0.5),
}


def plain(value: Any) -> Any:
    """A value as dicts, lists and plain values: a recorded call of one argument of its own kind as that argument."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Symbol):
        return value.last
    if isinstance(value, Call):
        return {"_target_": value.target.last, **{f"_{i}": plain(v) for i, v in enumerate(value.positional)}} | {
            key: plain(item) for key, item in value.named.items()
        }
    return value
