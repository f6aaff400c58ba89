"""Another project's configuration as one table of settings, of which none is dropped silently."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport.core.errors import UserError, closest
from triport.core.spec.spec import Pair

ALIKE = 0.8  # of two names, from which one is taken for a slip of the other


@dataclass
class Settings:
    """The file's settings by dotted key, list items by number. What was taken is gone; what is left is named."""

    path: Path
    left: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    taken: dict[str, Any] = field(default_factory=dict)  # what was struck off, for settings that depend on another
    own: list[str] = field(default_factory=list)  # overrides of the recipe that come after the file
    asked: dict[str, None] = field(default_factory=dict)  # every key that was looked for
    unread: list[str] = field(default_factory=list)  # what was dropped for a reason that is not its own
    added: dict[str, str] = field(default_factory=dict)  # keys that an option set beside those of the file

    def take(self, key: str, default: Any = ...) -> Any:
        """Return a setting and strike it off. Without a default it must be there and not null."""
        self.asked[key] = None
        if key in self.left:
            self.used.append(key)
            self.taken[key] = self.left[key]
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
            raise UserError(f"{self.path}: {key} is '{text}', which is not a number") from None

    def whole(self, key: str, default: Any = ...) -> int:
        """A whole number."""
        number = self.number(key, default)
        if number % 1 != 0:
            raise UserError(f"{self.path}: {key} is {number}, which is not a whole number")
        return int(number)

    def flag(self, key: str, default: Any = ...) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key} is {value!r}; it has to be True or False")
        return value

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

    def pair(self, key: str, default: Any = ...) -> Pair:
        """A size (height, width); one whole number stands for a square."""
        if isinstance(literal(self.left.get(key)), (list, tuple)):
            rows, columns = self.numbers(key, 2)
            return int(rows), int(columns)
        side = self.whole(key, default)
        return side, side

    def only(self, key: str, allowed: Any, default: Any = ...) -> None:
        """Take a setting that can have one value only here."""
        value = self.take(key, allowed if default is ... else default)
        if value != allowed:
            raise UserError(f"{self.path}: {key} is {value!r}; here it can only be {allowed!r}")

    def one_of(self, key: str, choices: Sequence[Any], default: Any = ...) -> Any:
        """Take a setting that can have some values only here."""
        value = self.take(key, default)
        if value not in choices:
            shown = ", ".join(map(repr, choices))
            raise UserError(f"{self.path}: {key} is {value!r}; here it can only be {shown}")
        return value

    def one_folder(self, keys: Sequence[str], given: Sequence[str]) -> str | None:
        """The folder that all of the settings name, one for each split; unread where the run has --data."""
        if "--data" in [word.partition("=")[0] for word in given]:
            return None
        roots = [str(root) for root in (self.take(key, None) for key in keys) if root]
        if len({str(Path(root)) for root in roots}) > 1:
            raise UserError(
                f"{self.path}: the splits lie in different folders, {' and '.join(roots)}: name one with --data"
            )
        return roots[0] if roots else None

    def forget(self, key: str, why: str) -> None:
        """Take a setting, or all below a key, and say what becomes of it."""
        found = [name for name in self.left if not key or name == key or name.startswith(f"{key}.")]
        values = {name: self.left.pop(name) for name in found}
        self.unread += [name for name in found if name != key]
        shown = ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
        if shown:
            self.remarks.append(f"{shown}: {why}")

    def forget_all(self, reasons: Mapping[str, str]) -> None:
        """Say of each setting that is left what becomes of it: `reasons` by key; the key "" is for all the rest."""
        for key, why in reasons.items():
            self.forget(key, why)

    def check_spelling(self) -> None:
        """UserError where a setting that nothing read is spelt almost as one that was looked for in vain.

        Of one that an option added, almost as any that was looked for: who types it wants an effect.
        """
        for name in self.unread:
            parent, _, last = name.rpartition(".")
            wanted = {key.rpartition(".")[2]: key for key in self.asked if key.rpartition(".")[0] == parent}
            if name not in self.added:
                wanted = {short: key for short, key in wanted.items() if key not in self.taken}
            near = difflib.get_close_matches(last, wanted, n=1, cutoff=ALIKE)
            if near:
                where = f"{self.added[name]}: " if name in self.added else ""
                raise UserError(f"{where}{self.path}: nothing reads {name}. Did you mean '{wanted[near[0]]}'?")

    def has(self, key: str) -> bool:
        """Say whether there is a setting of this key that is not null, or one below it."""
        return self.left.get(key) is not None or bool(self.inside(key))

    def inside(self, key: str) -> list[str]:
        """The names below a key."""
        start = f"{key}." if key else ""
        return list(dict.fromkeys(name[len(start) :].partition(".")[0] for name in self.left if name.startswith(start)))

    def override(self, key: str, value: Any, option: str) -> None:
        """Set a setting as the command line says: one that is there, or one beside others that are."""
        parents = {name.rpartition(".")[0] for name in self.left}
        if key not in self.left and key.rpartition(".")[0] not in parents:
            raise UserError(f"{option}: {self.path} has no '{key}'.{closest(key, self.left)}")
        for name in [name for name in self.left if name.startswith(f"{key}.")]:
            del self.left[name]
        if key not in self.left:
            self.added[key] = option
        self.left[key] = value


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """A tree of maps and lists as one table; lists of plain values stay whole."""
    if isinstance(tree, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in tree):
        return {where: tree}
    if isinstance(tree, (dict, list, tuple)) and tree:
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
