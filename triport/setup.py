"""`triport setup`: makes the environments from the lock files, checks that each framework imports, says what works."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from triport import environments, pythons
from triport.core.errors import UserError
from triport.core.options import Parser

BUILDERS = ("pip", "setuptools", "wheel")  # installed first, at the lock file's versions
CHECKS = {
    "torch": "import torch; torch.ones(2, 2) @ torch.ones(2, 2); print(torch.__version__)",
    "paddle": "import paddle; paddle.ones([2, 2]) @ paddle.ones([2, 2]); print(paddle.__version__)",
    "oneflow": "import oneflow; oneflow.ones(2, 2) @ oneflow.ones(2, 2); print(oneflow.__version__)",
}
EPILOG = (
    "Environments stand in .venvs, or in $TRIPORT_VENVS. pip's own settings hold (index, proxy, find-links, cache); "
    "a whole environment is left as it is, a half-made or outdated one is made anew."
)
QUIET = {"GLOG_minloglevel": "3", "PYTHONWARNINGS": "ignore"}
GETTING_PYTHON = (
    "no working Python {versions} was found (looked on PATH, in the folders of pyenv, asdf, mise, uv, conda and "
    "Homebrew, and through uv). Get one with `uv python install {first}`, `pyenv install {first}`, "
    "`conda create -n python{first} python={first}` or your system's packages, then: triport setup {framework}"
)


def main(argv: Sequence[str]) -> int:
    """Run `triport setup [torch] [paddle] [oneflow]`."""
    p = Parser(prog="triport setup", description="Make the frameworks' environments.", epilog=EPILOG)
    p.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help="torch, paddle, oneflow, or all; default: torch")
    frameworks = p.parse_args(list(argv)).frameworks
    return setup(environments.FRAMEWORKS if frameworks == ["all"] else frameworks)


def setup(frameworks: Sequence[str]) -> int:
    """Make the environments of `frameworks`, print a table of what works, return 0 if all do, else 1."""
    rows, failed = [], 0
    for framework in dict.fromkeys([environments.known(name) for name in frameworks] or ["torch"]):
        try:
            with environments.only_one(framework):
                rows.append((framework, *make(framework)))
        except (UserError, OSError) as trouble:
            failed += 1
            print(f"{framework}: {trouble}", file=sys.stderr, flush=True)
            rows.append((framework, "does not work", re.split(r"\. | \(", str(trouble))[0]))
    print()
    for name, works, what in rows:
        print(f"  {name:<9}{works:<15}{what}")
    return 1 if failed else 0


def make(framework: str) -> tuple[str, str]:
    """Make one environment, or leave it where it is whole. Returns two cells: whether it works, and what it is."""
    if environments.state(framework) == "ready":
        try:
            found = check(framework)
        except UserError as trouble:
            say(framework, f"is there but broken ({trouble}); making it anew")
        else:
            return "works", describe(framework, found, add_source(framework))
    base = choose_python(framework)
    if environments.state(framework) != "absent":
        say(framework, f"removing the {environments.state(framework)} environment")
        environments.remove(framework)
    folder = environments.begin(framework)
    say(framework, f"making {shown(folder)} with {base}")
    log = environments.home() / f"{framework}.log"
    with log.open("w") as output:
        run(framework, [str(base), "-m", "venv", str(folder)], output)
        install(framework, output)
    found = check(framework)
    environments.write_stamp(framework, version=found, source=False)
    return "works", describe(framework, found, add_source(framework))


def choose_python(framework: str) -> Path:
    """Return the interpreter to build on, or raise UserError that says how to get one."""
    if framework == "oneflow" and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise UserError("OneFlow 0.9.0 has wheels for Linux on x86-64 only. The other two frameworks are not affected")
    versions = environments.PYTHONS[framework]
    base = pythons.find(versions)
    if base is None:
        text = GETTING_PYTHON.format(versions=" or ".join(versions), first=versions[0], framework=framework)
        raise UserError(text)
    return base


def install(framework: str, output: TextIO) -> None:
    """Install the lock file and put the project on the environment's path."""
    path, _ = environments.lock(framework)
    wanted = environments.requirements(path)
    if not wanted:
        raise UserError(f"{path} is missing: environments are made from a checkout of the project")
    builders = [line for line in wanted if re.split("[=<> ]", line)[0] in BUILDERS]
    pip(framework, [*builders], output)
    # Paddle's and OneFlow's lock files are complete. Torch's leaves the CUDA packages to the wheel that is taken.
    complete = [] if framework == "torch" else ["--no-deps"]
    pip(framework, [*complete, "-r", str(path)], output, count=len(wanted))
    pip(framework, ["--no-deps", "--no-build-isolation", "--editable", str(environments.ROOT)], output)


def add_source(framework: str) -> str:
    """Build what the second lock file names, if that was not done yet. Returns a remark; failing is no error."""
    _, path = environments.lock(framework)
    if not environments.requirements(path) or environments.stamp(framework).get("source"):
        return ""
    with (environments.home() / f"{framework}-source.log").open("w") as output:
        try:
            pip(framework, ["--no-deps", "--no-build-isolation", "-r", str(path)], output, count=1)
        except UserError as trouble:
            compiler = "" if shutil.which("c++") or shutil.which("g++") else " (no C++ compiler was found)"
            say(framework, f"LiBai could not be built{compiler}: {trouble}")
            return f"without LiBai{compiler}: fine-tuning through it is off. Then again: triport setup {framework}"
    facts = {**environments.stamp(framework), "source": True}
    environments.write_stamp(framework, version=facts.get("version"), source=True)
    return ""


def pip(framework: str, words: list[str], output: TextIO, count: int = 0) -> None:
    """Run the environment's pip. `count`: how many packages the lock file names, for the progress line."""
    command = [str(environments.python(framework)), "-m", "pip", "install", "--disable-pip-version-check", *words]
    run(framework, command, output, count)


def run(framework: str, command: list[str], output: TextIO, count: int = 0) -> None:
    """Run a command with its output in the log, telling how far it is. Raises UserError with its last words."""
    output.write(f"\n$ {' '.join(command)}\n")
    output.flush()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    seen, last = 0, ""
    with (
        heartbeat(framework) as tell,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=clean,
            close_fds=False,  # the set-up's lock goes along
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            output.flush()
            last = line.strip() if line.strip().startswith("ERROR") or not last.startswith("ERROR") else last
            seen += line.startswith(("Collecting ", "Processing "))
            if count:
                tell("installing" if line.startswith("Installing") else f"fetched {min(seen, count)} of {count}")
    if process.returncode:
        raise UserError(f"{last[:300] or 'the command failed'}. All of it is in {shown(Path(output.name))}")


@contextlib.contextmanager
def heartbeat(framework: str) -> Iterator[Callable[[str], None]]:
    """Within this, a line every ten seconds says what was told last and how long it has taken."""
    began, doing, done = time.monotonic(), [""], threading.Event()

    def beat() -> None:
        while not done.wait(10):
            say(framework, f"{doing[-1] or 'at work'} ({time.monotonic() - began:.0f} s)")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield doing.append
    finally:
        done.set()
        thread.join()


def check(framework: str) -> str:
    """Import the framework and multiply two matrices in its environment. Returns its version."""
    command = [str(environments.python(framework)), "-c", CHECKS[framework]]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **QUIET})
    except (OSError, subprocess.TimeoutExpired) as trouble:
        raise UserError(f"{framework} does not start: {trouble}") from trouble
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise UserError(f"{framework} does not import: {reason}")
    return answer.stdout.strip().splitlines()[-1]


def describe(framework: str, version: str, remark: str) -> str:
    """Return the table's last cell."""
    where = shown(environments.home() / framework)
    return f"{environments.TITLES[framework]} {version} in {where}{'; ' + remark if remark else ''}"


def shown(path: Path) -> str:
    """Return a path as short as it can be from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def say(framework: str, text: str) -> None:
    """Print a progress line at once."""
    print(f"{framework}: {text}", flush=True)
