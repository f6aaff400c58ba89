"""Reads configurations that are Python files (LiBai's, mmengine's) without executing them.

A restricted interpreter of the syntax tree: assignments, deletions, if, for, imports, literals, arithmetic, subscripts,
comprehensions and a few pure builtins. Classes and functions of the other project stand as names (`Symbol`), calls of
them are written down (`Call`), never made. Everything else is refused with its line. No import of Python's takes place.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.expressions import Expressions, Stop, limited
from triport.core.spec.foreign.values import CONSTANTS, Symbol, Tree

MAX_BYTES, MAX_FILES, MAX_STEPS = 1 << 20, 200, 100_000
Scope = dict[str, Any]


class Files:
    """The files of one checkout, each read once: where imports and LiBai's get_config look."""

    def __init__(self, roots: Sequence[Path], own: dict[str, Callable[..., Any]]) -> None:
        """roots: folders in which imports are looked for, in order; own: functions by name that are done here."""
        self.roots, self.own = list(roots), own
        self.scopes: dict[Path, Scope] = {}
        self.trees: dict[Path, ast.Module] = {}
        self.steps = 0

    def load(self, path: Path) -> Scope:
        """Return the names that a file sets; a file that imports itself sees what stands by then."""
        path = path.resolve()
        if path not in self.scopes:
            if len(self.scopes) >= MAX_FILES:
                raise UserError(f"{path}: the configuration reaches over more than {MAX_FILES} files")
            self.scopes[path] = {"__file__": str(path), "__name__": path.stem}
            Module(self, path, self.scopes[path]).run(self.tree(path).body)
        return self.scopes[path]

    def tree(self, path: Path) -> ast.Module:
        """Return a file's syntax."""
        if path not in self.trees:
            try:
                text = path.read_bytes()
                if len(text) > MAX_BYTES:
                    raise UserError(f"{path} is longer than any configuration: {len(text)} bytes")
                self.trees[path] = ast.parse(text.decode())
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {path}: {error}") from None
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise UserError(f"{path} is not a Python file: {type(error).__name__}: {error}") from None
        return self.trees[path]

    def find(self, dotted: str, near: Path | None = None) -> Path | None:
        """Return the file of a module of the checkout, looked for in the folder `near` alone or in the roots."""
        parts = dotted.split(".") if dotted else []
        for root in [near] if near is not None else self.roots:
            base = root.joinpath(*parts)
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                if parts and path.is_file():
                    return path.resolve()
        return None

    def value(self, path: Path, name: str) -> Any:
        """Return a name of a module: a class or function as a Symbol without reading further, a value by reading."""
        body = self.tree(path).body
        code = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if any(isinstance(node, code) and node.name == name for node in body):
            return Symbol(f"{path.stem}.{name}")
        if path.name == "__init__.py" and name not in _assigned(body):
            return Symbol(f"{path.parent.name}.{name}")  # a package hands on what lies in its modules
        found = self.load(path)
        if name not in found:
            raise UserError(f"{path} has no '{name}'")
        return found[name]


class Module(Expressions):
    """One file as it is read, statement by statement."""

    def __init__(self, files: Files, path: Path, scope: Scope) -> None:
        """Read `path` into `scope`."""
        super().__init__(scope, files.own)
        self.files, self.path = files, path

    def run(self, body: Iterable[ast.stmt]) -> None:
        """Carry out statements; a UserError names file and line."""
        for node in body:
            self.files.steps += 1
            try:
                if self.files.steps > MAX_STEPS:
                    raise Stop("the file does too much for a configuration")
                getattr(self, f"do_{type(node).__name__}", self.refuse)(node)
            except Stop as error:
                raise UserError(f"{self.path}, line {node.lineno}: {error}") from None
            except RecursionError:
                raise UserError(f"{self.path}, line {node.lineno}: nested too deeply") from None
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
                fault = f"{type(error).__name__}: {error}"
                raise UserError(f"{self.path}, line {node.lineno}: {fault}") from None

    def refuse(self, node: ast.stmt) -> None:
        """Refuse what a configuration has no need of."""
        raise Stop(f"'{type(node).__name__.lower()}' is not carried out: configurations are read, not executed")

    # ------------------------------------------------------------ statements
    def do_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        whole = ast.BinOp(left=_as_load(node.target), op=node.op, right=node.value)
        self.assign(node.target, self.value(ast.copy_location(whole, node)))

    def do_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                del self.scope[target.id]
            elif isinstance(target, ast.Attribute):
                del self.tree(target.value)[target.attr]
            else:
                del self.value(target.value)[self.value(target.slice)]  # type: ignore[attr-defined]

    def do_Expr(self, node: ast.Expr) -> None:
        self.value(node.value)  # a docstring, config.update(...), sys.path.append(...)

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Assert(self, node: ast.Assert) -> None:
        if not self.value(node.test):
            raise Stop("an assertion of the file does not hold")

    def do_If(self, node: ast.If) -> None:
        main = ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        self.run(node.body if not main and self.truth(node.test) else node.orelse)

    def do_For(self, node: ast.For) -> None:
        for item in limited(self.value(node.iter)):
            self.assign(node.target, item)
            self.run(node.body)

    def do_With(self, node: ast.With) -> None:
        for item in node.items:
            if ast.unparse(item.context_expr) != "read_base()":
                raise Stop(f"'with {ast.unparse(item.context_expr)}' is not carried out")
        self.run(node.body)

    def do_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope[node.name] = Symbol(f"{self.path.stem}.{node.name}")

    def do_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.scope[node.name] = Symbol(f"{self.path.stem}.{node.name}")

    # ------------------------------------------------------------ imports
    def do_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            self.scope[alias.asname or first] = Symbol(alias.name if alias.asname else first)

    def do_ImportFrom(self, node: ast.ImportFrom) -> None:
        module, near = node.module or "", None
        if node.level:
            near = self.path.parents[node.level - 1]
        path = self.files.find(module, near)
        for alias in node.names:
            if alias.name == "*":
                self._all(path, module)
            else:
                self.scope[alias.asname or alias.name] = self._name(path, module, near, alias.name)

    def _all(self, path: Path | None, module: str) -> None:
        if path is None:
            raise Stop(f"'from {module} import *': {module} is not in this checkout")
        names = {name: value for name, value in self.files.load(path).items() if not name.startswith("_")}
        self.scope.update(names)

    def _name(self, path: Path | None, module: str, near: Path | None, name: str) -> Any:
        inside = self.files.find(f"{module}.{name}" if module else name, near)
        if path is None and inside is not None:
            return Tree(self.files.load(inside))  # `from configs.models import mae_vit`
        if path is None:
            if near is not None:
                raise Stop(f"'.{module}' with '{name}' is not beside this file")
            return CONSTANTS.get(name, Symbol(f"{module}.{name}"))
        return self.files.value(path, name)


def _assigned(body: Sequence[ast.stmt]) -> set[str]:
    """The names that statements set, at the top of a file."""
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _as_load(target: Any) -> ast.expr:
    return ast.parse(ast.unparse(target), mode="eval").body
