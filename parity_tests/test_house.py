"""The rules of the house, held against the source: who may use whom, twin files, names and sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import recipe

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "weights", "backends", "triport", "parity_tests", "benchmarks")
FRAMEWORKS = ("torch", "paddle", "oneflow")
PURE = {"numpy", "PIL", "safetensors", "ml_dtypes", "rich", "tomli", "tomllib"}  # what core and weights may import

# Backends: each file imports lower ones only. The models know neither optimisers nor processes.
ORDER = {
    **dict.fromkeys(("layers", "optim", "distributed"), 0),
    **dict.fromkeys(("vit", "resnet"), 1),
    **dict.fromkeys(("mae", "moco", "classify"), 2),
    "build": 3,
    "learner": 4,
    **dict.fromkeys(("pretrain", "linear", "finetune", "evaluate", "probe"), 5),
}
MODELS = ("layers", "vit", "resnet", "mae", "moco", "classify", "build")
SPECIAL = {"oneflow": "libai_", "paddle": "passl_"}  # files that know another project, at any height
# files that one backend has alone, below all others, and why
OWN = {
    "backends/paddle/quiet.py": "imports Paddle without its chatter",
    "backends/paddle/kernels.py": "what Paddle's CPU kernels do slowly or roughly, done with its good ones",
    "backends/oneflow/quiet.py": "imports OneFlow without its chatter",
    "backends/oneflow/numerics.py": "all in which OneFlow's numbers would differ, in one place",
}

# file -> room that it uses against the order of rooms, and why
EXCEPTIONS = {
    ("core/prepare.py", "weights"): "a run may begin from any project's checkpoint; imported when --weights is given",
    ("core/measure.py", "weights"): "so may an evaluation",
}
# (file, name) -> why one backend may differ from its twins there
DIFFERENCES = {
    ("backends/paddle/build.py", "turned"): "Paddle keeps the weights of linear layers (in, out)",
    ("backends/torch/layers.py", "attend"): "PyTorch has a fused attention to choose",
}

LONGEST_FILE, LONGEST_FUNCTION = 250, 40
LONG_FILES = {
    "core/spec.py": "the whole vocabulary in one place",
    "core/loop.py": "the training loop, read from top to bottom",
    "weights/canonical.py": "all that names and shapes tell of a model",
}
LONG_FUNCTIONS = {"core/run.py:train": "a run, put together from top to bottom"}

FORBIDDEN = {"cfg", "args", "utils", "util", "misc", "helper", "helpers", "manager", "engine"}
# Written in parts, so that this file does not hold what it looks for.
MACHINE = re.compile(r"(^|[^a-z.\w])/(work|farm|root|tmp)/[a-z]")
HOSTS = [f"{name}.{end}" for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))


def sources(*rooms: str) -> list[Path]:
    """All Python files of these rooms, of all rooms if none is named."""
    return sorted(path for room in rooms or ROOMS for path in (ROOT / room).rglob("*.py"))


def shown(path: Path) -> str:
    """A path as the tables above write it."""
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    """The file's syntax, as the oldest supported Python reads it."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def imports(module: ast.Module) -> Iterator[str]:
    """The dotted names that a file imports anywhere, also within functions; `from a import b` gives a and a.b."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are written out, not relative"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside(path: Path) -> set[str]:
    """The packages that a file imports, without the standard library."""
    tops = {name.partition(".")[0] for name in imports(tree(path))}
    return {top for top in tops if top not in sys.stdlib_module_names}


def backends() -> list[str]:
    """The backends that exist."""
    return [name for name in FRAMEWORKS if (ROOT / "backends" / name).is_dir()]


# ---------------------------------------------------------------- who may use whom
def test_there_is_something_to_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources()} >= {"core", "weights", "backends", "triport"}


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("core", PURE | {"core"}), ("weights", PURE | {"core", "weights"})],
)
def test_the_ground_floors_import_no_framework(room: str, allowed: set[str]) -> None:
    wrong = [
        (shown(path), name)
        for path in sources(room)
        for name in sorted(outside(path) - allowed)
        if (shown(path), name) not in EXCEPTIONS
    ]
    assert not wrong


def test_exceptions_are_still_needed() -> None:
    for file, room in EXCEPTIONS:
        assert room in outside(ROOT / file), f"{file} no longer imports {room}: strike the exception"
    for file in LONG_FILES:
        assert length(ROOT / file) > LONGEST_FILE, f"{file} is short now: strike the exception"


@pytest.mark.parametrize("framework", backends())
def test_a_backend_imports_itself_and_what_is_below(framework: str) -> None:
    extra = {"oneflow": {"libai", "flowvision", "omegaconf"}, "paddle": {"yaml"}}.get(framework, set())
    for path in sources(f"backends/{framework}"):
        special = path.name.startswith(SPECIAL.get(framework, "-"))
        allowed = {"core", "weights", "backends", "numpy", framework} | (extra if special else set())
        assert outside(path) <= allowed, (shown(path), outside(path) - allowed)
        others = [name for name in imports(tree(path)) if name.startswith("backends.")]
        assert all(name.split(".")[1] == framework for name in others), (shown(path), others)


@pytest.mark.parametrize("framework", backends())
def test_layers_within_a_backend(framework: str) -> None:
    for path in sources(f"backends/{framework}"):
        if path.name.startswith(SPECIAL.get(framework, "-")):
            continue
        height = -1 if shown(path) in OWN else ORDER.get(path.stem)
        assert height is not None, f"{shown(path)} is not in the plan; what one backend has alone stands in OWN"
        for name in imports(tree(path)):
            below = name.removeprefix(f"backends.{framework}").strip(".").partition(".")[0]
            if name.startswith(f"backends.{framework}.") and below in ORDER:
                assert ORDER[below] < height, f"{shown(path)} imports {below}, which is not below it"
                assert path.stem not in MODELS or below not in ("optim", "distributed"), shown(path)


def test_the_roof_imports_no_framework() -> None:
    for path in sources("triport"):
        assert not outside(path) & {*FRAMEWORKS, "libai"}, shown(path)


def test_nobody_imports_the_tests_or_the_recipes() -> None:
    for path in sources():
        tests = path.is_relative_to(ROOT / "parity_tests") or path.is_relative_to(ROOT / "benchmarks")
        assert "configs" not in outside(path), shown(path)
        assert tests or "parity_tests" not in outside(path), shown(path)


def test_backends_are_no_packages() -> None:
    # An __init__.py would make `import torch` inside backends/torch mean the folder for tools that run files.
    assert not list((ROOT / "backends").rglob("__init__.py"))


def test_importing_the_project_imports_no_framework() -> None:
    names = [shown(path).removesuffix(".py").replace("/", ".") for path in sources("core", "weights", "triport")]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    program += f"print(*sorted({set(FRAMEWORKS)!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


# ---------------------------------------------------------------- twins
def surface(module: ast.Module) -> dict[str, list[str]]:
    """A file's public functions with the names of their parameters, its public classes with those of their methods."""
    found: dict[str, list[str]] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = []
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
                    found[f"{node.name}.{part.name}"] = parameters(part)
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    """The names of a function's parameters in order."""
    given = function.args
    stars = [star.arg for star in (given.vararg, given.kwarg) if star]
    return [part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs)] + stars


def unlike(one: dict[str, list[str]], other: dict[str, list[str]]) -> list[str]:
    """The names that only one of two files has, or with other parameters."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def test_a_difference_between_twins_is_seen() -> None:
    plain = "def f(a, b): ...\nclass C:\n    def g(self): ...\n    def _h(self, x): ...\n"
    assert unlike(surface(ast.parse(plain)), surface(ast.parse(plain))) == []
    renamed = plain.replace("b)", "c)").replace("g(self)", "g(self, *, y=1)").replace("_h(self, x)", "_h(self)")
    assert unlike(surface(ast.parse(plain)), surface(ast.parse(renamed))) == ["C.g", "f"]
    assert unlike(surface(ast.parse(plain)), surface(ast.parse(plain + "def k(): ...\n"))) == ["k"]


def twins(framework: str) -> set[str]:
    """The files of a backend that the others must have too."""
    files = sources(f"backends/{framework}")
    special = SPECIAL.get(framework, "-")
    return {path.name for path in files if not path.name.startswith(special) and shown(path) not in OWN}


@pytest.mark.parametrize("framework", backends()[1:])
def test_backends_are_twins(framework: str) -> None:
    first = backends()[0]
    assert twins(framework) == twins(first)
    found = {}
    for file in sorted(twins(first)):
        told = {name for one in (first, framework) for where, name in DIFFERENCES if where == f"backends/{one}/{file}"}
        found[file] = [name for name in unlike(*both(first, framework, file)) if name not in told]
    assert {file: names for file, names in found.items() if names} == {}


def both(one: str, other: str, file: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The surfaces of a file in two backends."""
    return surface(tree(ROOT / "backends" / one / file)), surface(tree(ROOT / "backends" / other / file))


# ---------------------------------------------------------------- how it is written
@pytest.mark.parametrize("room", ROOMS)
def test_a_file_says_what_it_is_in_its_first_line(room: str) -> None:
    for path in sources(room):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert re.match(r'"""\S', first) and ast.get_docstring(tree(path)), shown(path)


def test_annotations_are_not_evaluated() -> None:
    # `X | None` and the like would fail on the oldest supported Python where they are evaluated.
    for path in sources():
        module = tree(path)
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(module)):
            assert "__future__" in set(imports(module)), shown(path)


def length(path: Path) -> int:
    """The file's number of lines."""
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("room", ["core", "weights", "backends", "triport"])
def test_files_are_short(room: str) -> None:
    long = {shown(path): length(path) for path in sources(room) if length(path) > LONGEST_FILE}
    assert {file: lines for file, lines in long.items() if file not in LONG_FILES} == {}


@pytest.mark.parametrize("room", ["core", "weights", "backends", "triport"])
def test_functions_are_short(room: str) -> None:
    long = {}
    for path in sources(room):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - body_start(node) + 1
                if lines > LONGEST_FUNCTION and f"{shown(path)}:{node.name}" not in LONG_FUNCTIONS:
                    long[f"{shown(path)}:{node.name}"] = lines
    assert long == {}


def body_start(function: ast.FunctionDef) -> int:
    """The line where a function begins to do something: after signature and docstring."""
    told = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.body[1 if told else 0].lineno


@pytest.mark.parametrize("room", ROOMS)
def test_names(room: str) -> None:
    for path in sources(room):
        for name in {path.stem, *defined(tree(path))}:
            assert not FORBIDDEN & set(name.lower().split("_")), f"{shown(path)}: '{name}' says too little"


def defined(module: ast.Module) -> Iterator[str]:
    """The names that a file gives: functions, classes, parameters, variables."""
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


# ---------------------------------------------------------------- what is handed out
def texts() -> Iterator[tuple[str, str]]:
    """All tracked texts: path and content."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [shown(path) for path in sources()]
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            yield name, path.read_text(encoding="utf-8", errors="replace")


def test_no_text_tells_of_one_machine() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE.search(line) or any(host in line for host in HOSTS)
    ]
    assert found == []


def test_nothing_is_left_unfinished() -> None:
    found = [shown(path) for path in sources() if UNFINISHED.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_every_recipe_loads() -> None:
    names = recipe.names()
    assert len(names) > 20
    for name in names:
        assert recipe.load(name).name == name
