"""The expressions of a Python configuration: worked out where they are plain, written down where they are code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from triport.core.spec.foreign.values import CONSTANTS, Call, Lazy, Symbol, Tree

MAX_ITEMS, MAX_NUMBER = 10_000, 1 << 200


class Stop(Exception):
    """Something that is not carried out, without its file and line yet."""


def limited(items: Any) -> list[Any]:
    """Return the items of a plain sequence, of which there may be so many only."""
    if not isinstance(items, (list, tuple, dict, range, str)):
        raise Stop(f"{items} cannot be gone through")
    found = list(islice(items, MAX_ITEMS + 1))
    if len(found) > MAX_ITEMS:
        raise Stop(f"more than {MAX_ITEMS} items are too many for a configuration")
    return found


def merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Put a tree into another: trees into trees, anything else in place of what was there (as mmengine does)."""
    for key, value in new.items():
        if isinstance(value, dict) and value.get("_delete_"):
            old[key] = {name: item for name, item in value.items() if name != "_delete_"}
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = value


def _sized(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise Stop("a number is too large for a configuration")
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_ITEMS:
        raise Stop(f"more than {MAX_ITEMS} items are too many for a configuration")
    return value


def _times(left: Any, right: Any) -> Any:
    for items, count in ((left, right), (right, left)):
        if isinstance(items, (str, list, tuple)) and isinstance(count, int) and len(items) * count > MAX_ITEMS:
            raise Stop(f"more than {MAX_ITEMS} items are too many for a configuration")
    return left * right


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > 200:
        raise Stop("a number is too large for a configuration")
    return base**exponent


BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: _times, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: _power,
}  # fmt: skip
UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
BUILTINS: dict[str, Callable[..., Any]] = {
    "int": int, "float": float, "bool": bool, "str": str, "abs": abs, "min": min, "max": max, "round": round,
    "len": len, "sum": sum, "range": range, "tuple": lambda x=(): tuple(limited(x)), "list": lambda x=(): limited(x),
    "reversed": lambda x: limited(x)[::-1], "sorted": lambda x: sorted(limited(x)),
    "zip": lambda *x: list(zip(*map(limited, x))),
}  # fmt: skip
TREES = ("dict", "OmegaConf.create", "DictConfig", "ConfigDict", "Config", "OrderedDict", "deepcopy", "copy.deepcopy")
METHODS = ("update", "copy", "get", "pop", "items", "keys", "values", "append", "extend", "setdefault", "insert")
TEXT_METHODS = ("join", "split", "replace", "lower", "upper", "strip", "startswith", "endswith")


class Expressions:
    """Works out expressions in the names of one file."""

    def __init__(self, scope: dict[str, Any], own: dict[str, Callable[..., Any]]) -> None:
        """scope: the file's names; own: functions of the other project, by their last name, that are done here."""
        self.scope, self.own = scope, own

    def value(self, node: ast.expr) -> Any:
        """Return what an expression is."""
        return _sized(getattr(self, f"of_{type(node).__name__}", self._refuse)(node))

    def _refuse(self, node: ast.expr) -> Any:
        raise Stop(f"'{ast.unparse(node)[:60]}' is not carried out: configurations are read, not executed")

    def truth(self, node: ast.expr) -> bool:
        """Return whether a condition holds; one about the other project's code cannot be known."""
        value = self.value(node)
        if isinstance(value, (Symbol, Call, Lazy)):
            raise Stop(f"whether '{ast.unparse(node)[:60]}' holds is not known without executing it")
        return bool(value)

    def tree(self, node: ast.expr) -> dict[str, Any]:
        """Return an expression that has to be a tree."""
        value = self.value(node)
        if not isinstance(value, dict):
            raise Stop(f"'{ast.unparse(node)[:60]}' has no settings")
        return value

    def assign(self, target: ast.expr, value: Any) -> None:
        """Give a name, an attribute or an item a value."""
        if isinstance(target, ast.Name):
            self.scope[target.id] = value
        elif isinstance(target, ast.Attribute):
            self.tree(target.value)[target.attr] = value
        elif isinstance(target, ast.Subscript):
            self.value(target.value)[self.value(target.slice)] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = limited(value)
            if len(items) != len(target.elts):
                raise Stop(f"{len(target.elts)} names for {len(items)} values")
            for part, item in zip(target.elts, items):
                self.assign(part, item)
        else:
            self._refuse(target)

    # ------------------------------------------------------------ plain values
    def of_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def of_List(self, node: ast.List) -> Any:
        return self._items(node.elts)

    def of_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _items(self, nodes: Iterable[ast.expr]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            found += limited(self.value(node.value)) if isinstance(node, ast.Starred) else [self.value(node)]
        return found

    def of_Dict(self, node: ast.Dict) -> Any:
        found = Tree()
        for key, item in zip(node.keys, node.values):
            found.update({self.value(key): self.value(item)} if key is not None else self.tree(item))
        return found

    def of_Name(self, node: ast.Name) -> Any:
        if node.id in self.scope:
            return self.scope[node.id]
        if node.id in BUILTINS or node.id in TREES:
            return Symbol(node.id)
        raise Stop(f"the name '{node.id}' is not known here")

    def of_Attribute(self, node: ast.Attribute) -> Any:
        value = self.value(node.value)
        if isinstance(value, Symbol):
            return CONSTANTS.get(node.attr, Symbol(f"{value.name}.{node.attr}"))
        if isinstance(value, dict) and node.attr in value:
            return value[node.attr]
        raise Stop(f"'{ast.unparse(node)[:60]}' is not set")

    def of_Subscript(self, node: ast.Subscript) -> Any:
        return self.value(node.value)[self.value(node.slice)]

    def of_Slice(self, node: ast.Slice) -> Any:
        return slice(*(None if part is None else self.value(part) for part in (node.lower, node.upper, node.step)))

    # ------------------------------------------------------------ reckoning
    def of_BinOp(self, node: ast.BinOp) -> Any:
        work = BINARY.get(type(node.op))
        return work(self.value(node.left), self.value(node.right)) if work else self._refuse(node)

    def of_UnaryOp(self, node: ast.UnaryOp) -> Any:
        work = UNARY.get(type(node.op))
        return work(self.value(node.operand)) if work else self._refuse(node)

    def of_BoolOp(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for part in node.values:
            value = self.value(part)
            if bool(value) == isinstance(node.op, ast.Or):
                break
        return value

    def of_Compare(self, node: ast.Compare) -> Any:
        values = [self.value(part) for part in (node.left, *node.comparators)]
        return all(COMPARE[type(op)](left, right) for op, left, right in zip(node.ops, values, values[1:]))

    def of_IfExp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.truth(node.test) else node.orelse)

    def of_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
        return "".join(str(self.value(part)) for part in parts)

    def of_ListComp(self, node: ast.ListComp) -> Any:
        if len(node.generators) != 1:
            self._refuse(node)
        part, found, before = node.generators[0], [], dict(self.scope)
        for item in limited(self.value(part.iter)):
            self.assign(part.target, item)
            if all(self.truth(test) for test in part.ifs):
                found.append(self.value(node.elt))
        self.scope.clear()
        self.scope.update(before)
        return found

    of_GeneratorExp = of_ListComp

    # ------------------------------------------------------------ calls
    def of_Call(self, node: ast.Call) -> Any:
        positional, named = self._items(node.args), dict[str, Any]()
        for word in node.keywords:
            named.update({word.arg: self.value(word.value)} if word.arg else self.tree(word.value))
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            if not isinstance(owner, Symbol):
                return self._method(owner, node.func.attr, positional, named)
        return self._called(self.value(node.func), positional, named)

    def _method(self, owner: Any, name: str, positional: list[Any], named: dict[str, Any]) -> Any:
        if isinstance(owner, dict) and name == "update":
            merge(owner, {**(positional[0] if positional else {}), **named})
            return None
        if isinstance(owner, (dict, list)) and name in METHODS:
            found = getattr(owner, name)(*positional, **named)
            return list(found) if name in ("items", "keys", "values") else found
        if isinstance(owner, str) and name in TEXT_METHODS:
            return getattr(owner, name)(*positional, **named)
        raise Stop(f"the method '{name}' of {type(owner).__name__} is not carried out")

    def _called(self, target: Any, positional: list[Any], named: dict[str, Any]) -> Any:
        if isinstance(target, Lazy):
            return Tree({"_target_": target.target, **named})
        if not isinstance(target, Symbol):
            raise Stop(f"{type(target).__name__} cannot be called")
        if target.name in TREES or target.last in TREES or target.name.endswith("OmegaConf.create"):
            return Tree(*positional, **named)
        if target.name in BUILTINS:
            return BUILTINS[target.name](*positional, **named)
        if target.last in self.own:
            return self.own[target.last](*positional, **named)
        return Call(target, tuple(positional), named)
