"""The environments of the three frameworks: where each stands, whether it is whole, and how it is made.

Standard library only: this runs before anything is installed. An environment is whole when its stamp, written
last, says what its lock file says; anything else is half-made or outdated and is made again from nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from triport.core import atomic
from triport.core.errors import UserError, closest

FRAMEWORKS = ("torch", "paddle", "oneflow")
TITLES = {"torch": "PyTorch", "paddle": "Paddle", "oneflow": "OneFlow"}
# Which Python each framework is put on, the best first: 3.11 is what most of the tests were run on.
PYTHONS = {
    "torch": ("3.11", "3.12", "3.13", "3.10"),
    "paddle": ("3.11", "3.12", "3.13", "3.10"),
    "oneflow": ("3.10",),  # OneFlow 0.9.0 has no wheel for a later one
}
ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = (ROOT / "pyproject.toml").is_file() and (ROOT / "locks").is_dir()  # else an installed package
BASE = ("numpy", "PIL", "safetensors", "ml_dtypes", "rich", *(() if sys.version_info >= (3, 11) else ("tomli",)))
STAMP = "triport.json"  # in each environment: empty at first, filled when it is whole


def home() -> Path:
    """Return the folder of all environments: $TRIPORT_VENVS, or .venvs in the project."""
    return Path(os.environ.get("TRIPORT_VENVS") or ROOT / ".venvs").expanduser().resolve()


def known(framework: str) -> str:
    """Return the framework's name, or raise UserError with the nearest one."""
    if framework not in FRAMEWORKS:
        choices = ", ".join(FRAMEWORKS)
        raise UserError(f"no framework '{framework}' ({choices}).{closest(framework, FRAMEWORKS)}")
    return framework


def python(framework: str) -> Path:
    """Return the interpreter of the framework's environment, which need not exist."""
    return home() / framework / "bin" / "python"


def lock(name: str) -> Path:
    """Return a lock file: a framework's, or "torch-cuda", "oneflow-source", "builders", "tools"."""
    return ROOT / "locks" / f"{name}.txt"


def fingerprint(framework: str) -> str:
    """Return the hash of what the environment should hold. Comments of the lock files don't count."""
    text = "\n".join(path.read_text() for path in sorted(lock(framework).parent.glob(f"{framework}*.txt")))
    lines = [line.strip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line and line[0] != "#").encode()).hexdigest()


def obstacle(framework: str) -> str:
    """Return why this machine cannot have the framework; empty where it can."""
    if framework == "oneflow" and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "OneFlow 0.9.0 has wheels for Linux on x86-64 only. The other two frameworks are not affected"
    return ""


def remedy(framework: str) -> str:
    """Return what brings the framework here."""
    if CHECKOUT:
        return f"triport setup {framework}"
    if framework == "oneflow" and sys.version_info[:2] != (3, 10):
        return "install triport with its extra [oneflow] into an environment with Python 3.10"
    return f"{shlex.quote(sys.executable)} -m pip install 'triport[{framework}]'"


def stamp(framework: str) -> dict[str, object]:
    """Return what the environment's stamp says; empty where there is none or it cannot be read."""
    try:
        found = json.loads((home() / framework / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    # Environments hold absolute paths: one that was moved or copied does not count.
    return found if isinstance(found, dict) and found.get("folder") == str(home() / framework) else {}


def write_stamp(framework: str, **facts: object) -> None:
    """Say that the environment is whole. The last act of making it."""
    target = home() / framework / STAMP
    content = {"lock": fingerprint(framework), "folder": str(home() / framework), **facts}
    atomic.write_text(target, json.dumps(content, indent=1) + "\n")


def state(framework: str) -> str:
    """Return "ready", "outdated" (another lock file), "half-made" or "absent"."""
    if not (home() / framework).exists():
        return "absent"
    found = stamp(framework)
    if not found or not python(framework).exists():
        return "half-made"
    return "ready" if found.get("lock") == fingerprint(framework) else "outdated"


def is_here(framework: str) -> bool:
    """Say whether the framework is installed in this interpreter, without importing it."""
    try:
        return importlib.util.find_spec(framework) is not None
    except (ImportError, ValueError):
        return False


def interpreter(framework: str) -> Path | None:
    """Return an interpreter that has the framework: this one, else its environment's, else None."""
    if is_here(known(framework)):
        return Path(sys.executable)
    return python(framework) if state(framework) in ("ready", "outdated") else None


def require(framework: str) -> Path:
    """Return an interpreter that has the framework, or raise UserError with the remedy."""
    found = interpreter(framework)
    if found is None:
        raise UserError(f"{TITLES[framework]} is not set up here. Remedy: {remedy(framework)}")
    return found


def base_python() -> Path:
    """Return an interpreter that has what core and weights import: this one, else any environment's.

    Raises UserError when there is none.
    """
    if all(is_here(name) for name in BASE):
        return Path(sys.executable)
    made = (name for name in FRAMEWORKS if state(name) in ("ready", "outdated"))
    framework = next(made, None)
    if framework is None:
        remedy = "triport setup torch" if CHECKOUT else f"{shlex.quote(sys.executable)} -m pip install triport"
        raise UserError(f"no environment is set up here. Remedy: {remedy}")
    return python(framework)


def with_project(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the project on Python's path, where it is a checkout: all run the same code."""
    if not CHECKOUT:
        return dict(environment)
    before = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(ROOT))]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *before])}


@contextmanager
def locked(framework: str) -> Iterator[None]:
    """Hold the lock against a second set-up of the same environment; wait while another holds it."""
    import fcntl  # not on every system; nothing else here needs it

    home().mkdir(parents=True, exist_ok=True)
    with open(home() / f"{framework}.lock", "w") as handle:
        # Handed on to uv: should this process be killed, the lock holds until uv, too, has ended.
        os.set_inheritable(handle.fileno(), True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{framework}: another set-up is at work; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # the system frees the lock with the last process that holds it, however that ends


def begin(framework: str) -> Path:
    """Make the environment's empty folder, in place of what this program made there before. Returns the folder.

    Raises UserError where the folder is somebody else's.
    """
    folder = (home() / framework).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).exists():
        raise UserError(f"{folder} was not made by triport, so it is left alone. Remedy: move it away, then try again")
    old = folder.with_name(f".{folder.name}.old")  # moved first: what a killed removal leaves is still known as ours
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / STAMP).write_text("{}")
    return folder
