"""PASSL's YAML files as tables of settings, of which none is dropped silently."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from triport.core.errors import UserError, closest


@dataclass
class Settings:
    """The file's settings by dotted key, list items by number. What was taken is gone; what is left is named."""

    path: Path
    left: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def take(self, key: str, default: Any = ...) -> Any:
        """Return a setting and strike it off. Without a default it must be there and not null."""
        value = self.left.pop(key, None)
        if value is None and default is ...:
            raise UserError(f"{self.path} has no {key}")
        return default if value is None else value

    def number(self, key: str, default: Any = ...) -> float:
        """A number, also one that YAML takes for a text: 1e-3, 1.0/3.0."""
        text = str(self.take(key, default))
        over, _, under = text.partition("/")
        try:
            return float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{self.path}: {key} is '{text}', which is no number") from None

    def whole(self, key: str, default: Any = ...) -> int:
        """A whole number."""
        number = self.number(key, default)
        if number % 1 != 0:
            raise UserError(f"{self.path}: {key} is {number}, which is no whole number")
        return int(number)

    def numbers(self, key: str, count: int, default: Any = ...) -> tuple[float, ...]:
        """A list of numbers, also one that YAML takes for a text."""
        value = literal(self.take(key, default))
        try:
            found = tuple(map(float, value))
        except (TypeError, ValueError):
            found = ()
        if len(found) != count:
            raise UserError(f"{self.path}: {key} is {value!r}; it has to be {count} numbers")
        return found

    def only(self, key: str, allowed: Any, default: Any = ...) -> None:
        """Take a setting that can have one value only here."""
        value = self.take(key, allowed if default is ... else default)
        if value != allowed:
            raise UserError(f"{self.path}: {key} is {value!r}; here it can only be {allowed!r}")

    def forget(self, key: str, why: str) -> None:
        """Take a setting, or all below a key, and say what becomes of it."""
        found = [name for name in self.left if not key or name == key or name.startswith(f"{key}.")]
        values = {name: self.left.pop(name) for name in found}
        shown = ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
        if shown:
            self.remarks.append(f"{shown}: {why}")

    def inside(self, key: str) -> list[str]:
        """The names below a key."""
        start = f"{key}." if key else ""
        return list(dict.fromkeys(name[len(start) :].partition(".")[0] for name in self.left if name.startswith(start)))


def read(path: Path, overrides: Sequence[str]) -> Settings:
    """Read a file and apply overrides such as Global.epochs=150, whose values are Python literals or texts."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or "Global" not in tree or "Model" not in tree:
        raise UserError(f"{path} is no PASSL configuration: it has no Global and Model")
    left = flat(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or "=" in text:
            raise UserError(f"-o {override}: write one key=value, for example Global.epochs=150")
        parents = {name.rpartition(".")[0] for name in left}
        if key not in left and key.rpartition(".")[0] not in parents:
            raise UserError(f"-o {override}: {path} has no '{key}'.{closest(key, left)}")
        left[key] = literal(text)
    return Settings(path, left)


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """A tree of maps and lists as one table; lists of plain values stay whole."""
    if isinstance(tree, list) and not any(isinstance(item, (dict, list)) for item in tree):
        return {where: tree}
    if isinstance(tree, (dict, list)) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        below = [flat(value, f"{where}.{key}" if where else str(key)) for key, value in items]
        return {name: value for table in below for name, value in table.items()}
    return {where: tree}


def literal(text: Any) -> Any:
    """A Python literal that a text spells, else the text."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError):
        return text
