"""`triport parity upgrade`: records in two environments, or at two commits, and compares, in one command.

An environment is a framework's name (torch), an interpreter or its folder, or `git:REVISION`: the code of this
repository at that revision, in the environment of --backend or --python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from triport import environments
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.parity_tests.tool.foreign import env, record

RECIPE = "tiny/test_mae_vit"
GIT = "git:"


@dataclass(frozen=True)
class Side:
    """Where one of the two records is made."""

    label: str
    python: Path
    framework: str
    variables: dict[str, str]
    code: Path | None  # the code of another revision, None for this one


def parser() -> Parser:
    """The options; the rest goes to `record`."""
    found = Parser(prog="triport parity upgrade", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = found.add_argument
    add(
        "--from", dest="before", required=True, metavar="ENV", help="torch, an interpreter, its folder, or git:REVISION"
    )
    add("--to", dest="after", required=True, metavar="ENV", help="the same")
    add("--from-env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable of --from alone")
    add("--to-env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable of --to alone")
    add("--backend", choices=environments.FRAMEWORKS, help="the framework (that of the environments)")
    add("--python", metavar="PATH", help="with git:REVISION: the interpreter (the framework's environment)")
    add("--recipe", metavar="RECIPE", help=f"({RECIPE}, where no --model is given)")
    add("--model", metavar="MODULE:NAME", help="a model of one's own in place of a recipe, with --inputs and the other "
        "options of `record --model`")  # fmt: skip
    add("--threads", default="1", metavar="N", help="of the math library (1)")
    add("--out", type=Path, default=Path("runs/upgrade"), metavar="DIR", help="where the records go (runs/upgrade)")
    return found


def main(argv: Sequence[str]) -> int:
    """Record twice and compare: 0 within bounds, 1 they depart, 2 a mistake of the user."""
    options, rest = parser().parse_known_args(list(argv))
    if options.model and options.recipe:
        raise UserError("--recipe and --model exclude each other.")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="triport-upgrade-") as folder:
        sides = [
            side(options, "from", options.before, options.from_env, Path(folder) / "from"),
            side(options, "to", options.after, options.to_env, Path(folder) / "to"),
        ]
        if sides[0].framework != sides[1].framework:
            names = " and ".join(each.framework for each in sides)
            raise UserError(f"{names} are two frameworks: use `triport parity record` on each, and `compare`.")
        message(*sides)
        files = [options.out / f"{name}.safetensors" for name in ("from", "to")]
        for each, file in zip(sides, files):
            recorded(each, options, rest, file)
    module = "foreign.compare" if options.model else "compare"
    more = ["--out", str(options.out / "upgrade")] if options.model else []
    return int(import_module(f"triport.parity_tests.tool.{module}").main([*map(str, files), *more]))


def side(options: argparse.Namespace, label: str, where: str, variables: Sequence[str], folder: Path) -> Side:
    """One of the two. Raises UserError."""
    table = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--{label}-env {text}: write NAME=VALUE.")
        table[name] = value
    if not where.startswith(GIT):
        python, framework = env.located(where, options.backend)
        return Side(where, python, framework, table, None)
    framework = options.backend or "torch"
    python = record.interpreter(framework, options.python)
    return Side(where, python, framework, table, revision(where.removeprefix(GIT), folder))


def revision(name: str, folder: Path) -> Path:
    """The files of this folder's repository at a revision, written to `folder`. Raises UserError."""
    top = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
    if top.returncode:
        raise UserError(f"{GIT}{name}: {Path.cwd()} is not in a git repository.")
    archive = folder.with_suffix(".tar")
    folder.mkdir()
    command = ["git", "-C", top.stdout.strip(), "archive", "--format=tar", "-o", str(archive), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{GIT}{name}: {done.stderr.strip().splitlines()[-1]}.")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]
    archive.unlink()
    return folder


def message(a: Side, b: Side) -> None:
    """Print what differs in the two environments and may matter."""
    ours, theirs = (env.gathered(str(each.python), each.framework, each.variables) for each in (a, b))
    found = env.differences(ours, theirs)
    for d in found:
        if d.effect != env.NO:
            print(f"{d.name}: {d.a} -> {d.b} ({d.effect}: {d.why})")
    print(env.sentence(ours, theirs, found), flush=True)


def recorded(each: Side, options: argparse.Namespace, rest: Sequence[str], file: Path) -> None:
    """Make one record. Raises UserError where that fails."""
    words = list(rest)
    if options.model:
        module, words = "foreign.record", ["--model", options.model, "--threads", options.threads, *words]
    else:
        module, words = "__main__", ["record", options.recipe or RECIPE, *words]
    words += ["--backend", each.framework, "-o", str(file.resolve())]
    variables = {**os.environ, **dict.fromkeys(record.THREADS, options.threads), **each.variables}
    if options.model:
        variables[record.THERE] = "1"
    variables = environments.with_project(variables)
    where = None
    if each.code is not None:
        inside = each.code / Path.cwd().relative_to(_top())
        project = (each.code / "triport" / "environments.py").is_file()  # triport itself at that revision
        variables["PYTHONPATH"] = os.pathsep.join([str(each.code), variables.get("PYTHONPATH", "")])
        where = inside if options.model else each.code if project else None
        words = [_absolute(word) for word in words]
    command = [str(each.python), "-m", f"triport.parity_tests.tool.{module}".removesuffix(".__main__"), *words]
    if subprocess.run(command, env=variables, cwd=where, check=False).returncode:
        raise UserError(f"recording in {each.label} failed: see above.")


def _absolute(word: str) -> str:
    """A file of data by its whole path: the process runs elsewhere."""
    path = Path(word)
    return str(path.resolve()) if path.suffix in (".npz", ".json", ".safetensors") and path.exists() else word


def _top() -> Path:
    done = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())
