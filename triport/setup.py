"""`triport setup`: makes the environments from the lock files, checks that each framework imports, says what works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from triport import doctor, environments, installer, pythons
from triport.core.errors import UserError
from triport.core.options import Parser

EPILOG = (
    "Environments are created in .venvs, or in $TRIPORT_VENVS. uv installs them, with its settings and pip's indexes "
    "and find-links; a complete environment is kept, an incomplete or outdated one is rebuilt."
)
GETTING_PYTHON = (
    "no working Python {versions} was found (looked on PATH, in the folders of pyenv, asdf, mise, uv, conda and "
    "Homebrew, and uv could not fetch one). Get one with `pyenv install {first}`, `conda create -n python{first} "
    "python={first}` or your system's packages, then: triport setup {framework}"
)


class Impossible(UserError):
    """This machine cannot have the framework."""


def main(argv: Sequence[str]) -> int:
    """Run `triport setup [torch] [paddle] [oneflow] [kernels]`."""
    p = Parser(prog="triport setup", description="Make the frameworks' environments.", epilog=EPILOG)
    text = "torch, paddle, oneflow, all, or kernels (only compiles the loader's C code); default: torch"
    p.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help=text)
    p.add_argument(
        "--where-possible", action="store_true", help="report what this machine does not support, and continue"
    )
    p.add_argument("--list", action="store_true", help="make nothing; print which of them are set up")
    options = p.parse_args(list(argv))
    names = environments.FRAMEWORKS if options.frameworks == ["all"] else options.frameworks or ["torch"]
    if options.list:
        print(*[name for name in names if environments.interpreter(name)])
        return 0
    if "kernels" in names:
        print(f"kernels: {compile_kernels(environments.base_python())}")
        names = [name for name in names if name != "kernels"]
    return setup(names, options.where_possible) if names else 0


def setup(frameworks: Sequence[str], where_possible: bool = False) -> int:
    """Make the environments of `frameworks`, print a table of what works, return 0 if all do, else 1.

    With `where_possible`, what this machine cannot have is said and does not count.
    """
    wanted = [environments.known(name) for name in dict.fromkeys(frameworks)]
    if not environments.CHECKOUT:
        remedies = "; ".join(environments.remedy(name) for name in wanted)
        raise UserError(
            f"environments are made from a checkout of the project; this is an installed package. Instead: {remedies}"
        )
    rows, failed, left_out = [], 0, []
    for framework in wanted:
        try:
            with environments.locked(framework):
                rows.append((framework, *make(framework)))
        except (UserError, OSError) as trouble:
            reason = re.split(r"\. | \(", str(trouble))[0]
            if where_possible and isinstance(trouble, Impossible):
                left_out.append(f"*** {environments.TITLES[framework]} IS LEFT OUT: {trouble} ***")
                rows.append((framework, "left out", reason))
                continue
            failed += 1
            print(f"{framework}: {trouble}", file=sys.stderr, flush=True)
            rows.append((framework, "does not work", reason))
    print()
    for name, works, what in rows:
        print(f"  {name:<9}{works:<15}{what}")
    print(*left_out, sep="\n", end="\n" if left_out else "", file=sys.stderr, flush=True)
    return 1 if failed else 0


def make(framework: str) -> tuple[str, str]:
    """Make one environment, or leave it where it is whole. Returns two cells: whether it works, and what it is."""
    if reason := environments.obstacle(framework):
        raise Impossible(reason)
    if environments.state(framework) == "ready":
        try:
            found = version(framework)
        except UserError as trouble:
            print(f"{framework} is there but broken ({trouble}); making it again", flush=True)
        else:
            return "works", describe(framework, found, add_source(framework))
    base = choose_python(framework)
    folder = environments.begin(framework)
    print(f"{framework}: making {folder} with {base}", flush=True)
    uv("venv", "--quiet", "--allow-existing", "--no-project", "--python", str(base), str(folder))
    install(framework)
    found = version(framework)
    environments.write_stamp(framework, version=found, source=False)
    return "works", describe(framework, found, add_source(framework))


def choose_python(framework: str) -> Path:
    """Return the interpreter to build on, found here or fetched by uv, or raise Impossible that says how to get one."""
    versions = environments.PYTHONS[framework]
    if base := pythons.find(versions):
        return base
    try:
        uv("python", "install", versions[0])
    except UserError:
        text = GETTING_PYTHON.format(versions=" or ".join(versions), first=versions[0], framework=framework)
        raise Impossible(text) from None
    command = [installer.uv(), "python", "find", "--managed-python", "--no-project", versions[0]]
    return Path(subprocess.run(command, env=installer.variables(), capture_output=True, text=True).stdout.strip())


def install(framework: str) -> None:
    """Install what the lock files say and the project itself, and compile the loader's kernels."""
    where = ("--python", str(environments.python(framework)))
    lock, builders = environments.lock(framework), environments.lock("builders")
    more: list[str] = []
    if framework == "torch":
        # The CPU build where pip's or uv's settings offer it, else what the package index has.
        hashed = ("--no-deps", "--require-hashes", "-r", str(environments.lock("torch-cpu")))
        try:
            uv("pip", "install", *where, "--dry-run", *hashed, silent=True)
            more = [str(environments.lock("torch-cpu"))]
        except UserError:
            more = [str(environments.lock("torch-index"))]
    uv("pip", "sync", *where, "--require-hashes", "--build-constraints", str(builders), str(lock), *more)
    uv("pip", "install", *where, "--no-deps", "--no-build-isolation", "--editable", str(environments.ROOT))
    if (kernels := compile_kernels(environments.python(framework))) != "compiled":
        print(f"the loader's C code is not compiled, Pillow does its work: {kernels}", flush=True)


def compile_kernels(python: Path) -> str:
    """Compile the loader's C code for this machine. Returns "compiled", or why Pillow does the work."""
    command = [str(python), "-m", "triport.core.augment.native"]
    answer = subprocess.run(command, env=environments.with_project(os.environ), capture_output=True, text=True)
    return (answer.stdout.strip() or answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]


def add_source(framework: str) -> str:
    """Build what the second lock file names, if that was not done yet. Returns a remark; failing is not an error."""
    lock = environments.lock(f"{framework}-source")
    if not lock.exists() or environments.stamp(framework).get("source"):
        return ""
    where = ("--python", str(environments.python(framework)))
    try:
        uv("pip", "install", *where, "--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(lock))
    except UserError as trouble:
        compiler = "" if shutil.which("c++") or shutil.which("g++") else " (no C++ compiler was found)"
        print(f"LiBai could not be built{compiler}: {trouble}", flush=True)
        return f"without LiBai{compiler}: fine-tuning through it is off. Then again: triport setup {framework}"
    environments.write_stamp(framework, version=environments.stamp(framework).get("version"), source=True)
    return ""


def uv(*words: str, silent: bool = False) -> None:
    """Run uv."""
    installer.run(installer.uv(), *words, silent=silent)


def version(framework: str) -> str:
    """Return the version of the framework in its environment, or raise UserError where it does not work."""
    return str(doctor.answer(framework, environments.python(framework))["version"])


def describe(framework: str, version: str, remark: str) -> str:
    """Return the table's last cell."""
    where = environments.home() / framework
    return f"{environments.TITLES[framework]} {version} in {where}{'; ' + remark if remark else ''}"
