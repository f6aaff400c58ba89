"""The rules of the architecture, checked on the source: who may import whom, twin files, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from triport.core.spec import recipe

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "weights", "backends", "triport", "parity_tests", "benchmarks")  # the top-level folders with code
FRAMEWORKS = ("torch", "paddle", "oneflow")
# what core and weights may import
PURE = {"numpy", "PIL", "safetensors", "ml_dtypes", "rich", "tomli", "tomllib", "tomli_w"}
PURE |= {"matplotlib", "tensorboardX", "scipy"}  # extras, imported where they are used

# Backends: each file imports lower ones only. The models know neither optimizers nor processes.
ORDER = {
    "tensors": 0,
    **dict.fromkeys(("layers", "optim", "distributed"), 1),
    **dict.fromkeys(("vit", "resnet"), 2),
    **dict.fromkeys(("mae", "moco", "classify"), 3),
    "build": 4,
    "learner": 5,
    "sharding": 4,
    **dict.fromkeys(("pretrain", "linear", "finetune", "evaluate", "probe"), 6),
}
MODELS = ("layers", "vit", "resnet", "mae", "moco", "classify", "build")
FOREIGN = {"oneflow": "libai", "paddle": "passl"}  # the package that knows another project, at any height
# files that one backend has alone, below all others unless they stand in ORDER, and why
OWN = {
    "backends/torch/kernels.py": "fused kernels of batch norms over several processes and of attention on CPUs",
    "backends/torch/report.py": "what a GPU tells of a step a step later",
    "backends/torch/feed.py": "the way of a batch to a GPU",
    "backends/torch/scaling.py": "the loss scale of float16",
    "backends/torch/compiled.py": "torch.compile, checked by the first loss",
    "backends/torch/ending.py": "the end of a process among several, which gloo's threads can abort",
    "backends/torch/memory.py": "activations computed twice",
    "backends/torch/shared_gradients.py": "gradients of one machine's processes, averaged in memory that they share",
    "backends/torch/sharding.py": "fully_shard: parameters divided among processes",
    "backends/paddle/runtime.py": "imports Paddle without its chatter",
    "backends/paddle/kernels.py": "what Paddle's CPU kernels do slowly or roughly, done with its good ones",
    "backends/oneflow/runtime.py": "imports OneFlow without its chatter",
    "backends/oneflow/graph.py": "a step compiled by nn.Graph, with the update outside",
    "backends/oneflow/numerics.py": "all in which OneFlow's numbers would differ, in one place",
}

# file -> package that it imports against the order, and why
EXCEPTIONS = {
    ("weights/model/reading.py", "typing_extensions"): "for type checkers alone: Unpack is in typing from 3.11 on",
    ("triport/verify.py", "parity_tests"): "the numpy reference, imported for `convert --verify`",
    ("triport/parity.py", "parity_tests"): "the parity tool's own interface in Python: recording somebody's model",
    ("core/run/initial.py", "weights"): "a run may begin from any project's checkpoint; imported for --weights",
    ("core/run/subject.py", "weights"): "so may an evaluation",
    ("core/run/resume.py", "weights"): "and one may go on from another project's checkpoint; imported for --resume",
    ("core/spec/foreign/passl.py", "yaml"): "PASSL's files are YAML; imported where one is read",
}
# (file, name) -> why one backend may differ from its twins there
DIFFERENCES = {
    ("backends/oneflow/layers.py", "BatchNorm.take"): "OneFlow's graphs give statistics and change no buffer",
    ("backends/paddle/layers.py", "LayerNorm"): "Paddle's kernel takes eps in float32, so float64 is written out",
    ("backends/paddle/layers.py", "LayerNorm.forward"): "the same",
    (
        "backends/torch/learner.py",
        "Learner.__init__",
    ): "PyTorch's alone computes activations twice where it is asked to",
    ("backends/torch/layers.py", "attend"): "PyTorch has a fused attention to choose",
    ("backends/torch/tensors.py", "local"): "PyTorch's alone divides tensors among processes",
}

FORBIDDEN = {"cfg", "args", "utils", "util", "misc", "helper", "helpers", "manager", "engine"}
# Written in parts, so that this file does not hold what it looks for.
MACHINE = re.compile(r"(^|[^a-z.\w])/(work|farm|root|tmp)/[a-z]")
HOSTS = [f"{name}.{end}" for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))


def sources(*parts: str) -> list[Path]:
    """All Python files of these parts, of all parts if none is named."""
    return sorted(path for part in parts or PARTS for path in (ROOT / part).rglob("*.py"))


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
            if node.module != "triport":  # `from triport import weights` imports the name, not all of triport
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside(path: Path) -> set[str]:
    """The packages that a file imports, without the standard library; of this project "core", "weights" and so on."""
    tops = {own(name) for name in imports(tree(path))}
    return {top for top in tops if top not in sys.stdlib_module_names}


def own(name: str) -> str:
    """The package of a dotted name: triport.core.errors gives "core", triport.launch "triport", PIL.Image "PIL"."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    return second if first == "triport" and second in PARTS else first


def backends() -> list[str]:
    """The backends that exist."""
    return [name for name in FRAMEWORKS if (ROOT / "backends" / name).is_dir()]


# ---------------------------------------------------------------- who may use whom
def test_there_is_something_to_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources()} >= {"core", "weights", "backends", "triport"}


@pytest.mark.parametrize(
    ("part", "allowed"),
    [("core", PURE | {"core"}), ("weights", PURE | {"core", "weights"})],
)
def test_core_and_weights_import_no_framework(part: str, allowed: set[str]) -> None:
    wrong = [
        (shown(path), name)
        for path in sources(part)
        for name in sorted(outside(path) - allowed)
        if (shown(path), name) not in EXCEPTIONS
    ]
    assert not wrong


@pytest.mark.parametrize("part", ["core", "weights"])
def test_packages_import_each_other_one_way(part: str) -> None:
    uses: dict[str, set[str]] = {}
    for path in sources(part):
        package = shown(path.parent).replace("/", ".")
        folders = {
            f"triport.{shown(folder).replace('/', '.')}" for folder in (ROOT / part).rglob("*") if folder.is_dir()
        }
        for name in imports(tree(path)):
            if name.startswith(f"triport.{part}."):
                inside = max((folder for folder in folders if f"{name}.".startswith(f"{folder}.")), key=len, default="")
                if inside and inside != f"triport.{package}":
                    uses.setdefault(package, set()).add(inside.removeprefix("triport."))
    order = TopologicalSorter(uses)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"packages import each other: {' <- '.join(error.args[1])}")


def test_exceptions_are_still_needed() -> None:
    for file, part in EXCEPTIONS:
        assert part in outside(ROOT / file), f"{file} no longer imports {part}: strike the exception"


@pytest.mark.parametrize("framework", backends())
def test_a_backend_imports_itself_and_what_is_below(framework: str) -> None:
    extra = {"oneflow": {"libai", "flowvision", "omegaconf"}}.get(framework, set())
    for path in sources(f"backends/{framework}"):
        special = path.parent.name == FOREIGN.get(framework)
        allowed = {"core", "weights", "backends", "numpy", framework} | (extra if special else set())
        assert outside(path) <= allowed, (shown(path), outside(path) - allowed)
        others = [name for name in imports(tree(path)) if name.startswith("triport.backends.")]
        assert all(name.split(".")[2] == framework for name in others), (shown(path), others)


@pytest.mark.parametrize("framework", backends())
def test_layers_within_a_backend(framework: str) -> None:
    for path in sources(f"backends/{framework}"):
        if path.parent.name == FOREIGN.get(framework):
            continue
        height = ORDER.get(path.stem, -1 if shown(path) in OWN else None)
        assert height is not None, f"{shown(path)} is not in the plan; what one backend has alone stands in OWN"
        for name in imports(tree(path)):
            below = name.removeprefix(f"triport.backends.{framework}").strip(".").partition(".")[0]
            if name.startswith(f"triport.backends.{framework}.") and below in ORDER:
                assert ORDER[below] < height, f"{shown(path)} imports {below}, which is not below it"
                assert path.stem not in MODELS or below not in ("optim", "distributed"), shown(path)


def test_the_public_package_imports_no_framework() -> None:
    for path in sources("triport"):
        assert not outside(path) & {*FRAMEWORKS, "libai"}, shown(path)


def test_nobody_imports_the_tests_or_the_recipes() -> None:
    for path in sources():
        tests = path.is_relative_to(ROOT / "parity_tests") or path.is_relative_to(ROOT / "benchmarks")
        assert "configs" not in outside(path), shown(path)
        known = (shown(path), "parity_tests") in EXCEPTIONS
        assert tests or known or "parity_tests" not in outside(path), shown(path)


def test_backends_are_no_packages() -> None:
    # An __init__.py would make `import torch` inside backends/torch mean the folder for tools that run files.
    assert not list((ROOT / "backends").rglob("__init__.py"))


def test_importing_the_project_imports_no_framework() -> None:
    names = [shown(path).removesuffix(".py").replace("/", ".") for path in sources("core", "weights", "triport")]
    names = [name if name.startswith("triport") else f"triport.{name}" for name in names]
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
    files = (ROOT / "backends" / framework).glob("*.py")
    return {path.name for path in files if shown(path) not in OWN}


@pytest.mark.parametrize("framework", backends()[1:])
def test_backends_are_twins(framework: str) -> None:
    first = backends()[0]
    assert twins(framework) == twins(first)
    found = {}
    for file in sorted(twins(first)):
        message = {
            name for one in (first, framework) for where, name in DIFFERENCES if where == f"backends/{one}/{file}"
        }
        pair = [without_overrides(each) for each in both(first, framework, file)]
        found[file] = [name for name in unlike(*pair) if name not in message]
    assert {file: names for file, names in found.items() if names} == {}


@cache
def shared() -> set[tuple[str, tuple[str, ...]]]:
    """Methods of the classes in core/backend, and their parameters."""
    found = [surface(tree(path)) for path in sources("core/backend")]
    return {(name.partition(".")[2], tuple(given)) for one in found for name, given in one.items() if "." in name}


def without_overrides(one: dict[str, list[str]]) -> dict[str, list[str]]:
    """A surface without what overrides the shared classes: a framework that needs to say more there may."""
    return {name: given for name, given in one.items() if (name.partition(".")[2], tuple(given)) not in shared()}


def both(one: str, other: str, file: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The surfaces of a file in two backends."""
    return surface(tree(ROOT / "backends" / one / file)), surface(tree(ROOT / "backends" / other / file))


# ---------------------------------------------------------------- how it is written
@pytest.mark.parametrize("part", PARTS)
def test_a_file_says_what_it_is_in_its_first_line(part: str) -> None:
    for path in sources(part):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert re.match(r'"""\S', first) and ast.get_docstring(tree(path)), shown(path)


def test_annotations_are_not_evaluated() -> None:
    # `X | None` and the like would fail on the oldest supported Python where they are evaluated.
    for path in sources():
        module = tree(path)
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(module)):
            assert "__future__" in set(imports(module)), shown(path)


@pytest.mark.parametrize("part", PARTS)
def test_names(part: str) -> None:
    for path in sources(part):
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
