"""Plain values (as TOML gives them) -> frozen dataclasses, checked against their annotations; and back."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from triport.core.errors import UserError, closest

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
hints = functools.cache(get_type_hints)


def read(wanted: Any, value: Any, where: str = "") -> Any:
    """Return `value` as the annotated type `wanted`, or raise a UserError that names the dotted field `where`.

    Tables become dataclasses, lists tuples, whole numbers floats where a float is wanted; one whole number
    stands for a Pair of it, and the text "none" for None where that is allowed. Nothing else is converted.
    """
    origin = get_origin(wanted)
    if dataclasses.is_dataclass(wanted):
        return _record(wanted, value, where)
    if origin in (Union, types.UnionType):
        return _union(get_args(wanted), value, where)
    if origin is Literal:
        return _choice(get_args(wanted), value, where)
    if origin is tuple:
        return _items(get_args(wanted), value, where)
    if origin is dict:
        table = _table(value, where)
        return {key: read(get_args(wanted)[1], item, _join(where, key)) for key, item in table.items()}
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise UserError(f"{where}: expected {NAMES[wanted]}, got {_shown(value)}.")
    if wanted is float and not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, got {value}.")
    return value


def plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists, all the way down: what `read` takes back."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _record(wanted: Any, value: Any, where: str) -> Any:
    table, fields, types_ = _table(value, where), dataclasses.fields(wanted), hints(wanted)
    for key in table:
        if key not in types_:
            raise UserError(f"Unknown field '{_join(where, key)}'.{closest(key, types_)}")
    nothing = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is nothing and f.default_factory is nothing]
    missing = [_join(where, name) for name in needed if name not in table]
    if missing:
        raise UserError(f"Missing field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}.")
    return wanted(**{key: read(types_[key], item, _join(where, key)) for key, item in table.items()})


def _union(members: Sequence[Any], value: Any, where: str) -> Any:
    if type(None) in members:  # the only other union that the vocabulary has: X | None
        (wanted,) = (member for member in members if member is not type(None))
        return None if value in (None, "none") else read(wanted, value, where)
    kinds = {get_args(hints(member)["kind"])[0]: member for member in members}
    table = _table(value, where)
    if "kind" not in table:
        raise UserError(f"Missing field '{_join(where, 'kind')}': one of {', '.join(kinds)}.")
    return _record(kinds[_choice(tuple(kinds), table["kind"], _join(where, "kind"))], table, where)


def _choice(choices: Sequence[Any], value: Any, where: str) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    near = closest(value, choices) if isinstance(value, str) and isinstance(choices[0], str) else ""
    raise UserError(f"{where}: {_shown(value)} is not one of {', '.join(map(str, choices))}.{near}")


def _items(wanted: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if wanted == (int, int) and type(value) is int:  # Pair: 224 is (224, 224)
        value = [value, value]
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: expected a list, got {_shown(value)}.")
    if wanted[-1] is not Ellipsis and len(value) != len(wanted):
        raise UserError(f"{where}: expected {len(wanted)} values, got {len(value)}.")
    each = [wanted[0]] * len(value) if wanted[-1] is Ellipsis else wanted
    return tuple(read(kind, item, _join(where, str(i))) for i, (kind, item) in enumerate(zip(each, value, strict=True)))


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a table of fields, got {_shown(value)}.")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"the table {value!r}" if isinstance(value, dict) else repr(value)
