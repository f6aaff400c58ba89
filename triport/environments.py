"""The environments of the three frameworks: where each stands, whether it is whole, and how it is made.

Standard library only: this runs before anything is installed. An environment is whole when its stamp, written
last, says what its lock file says; anything else is a half-made or outdated one and is made anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
GROUND = ("numpy", "PIL", "safetensors", "ml_dtypes", "rich", *(() if sys.version_info >= (3, 11) else ("tomli",)))
STAMP = "triport.json"  # written last
MARK = "made-by-triport"  # written first: only what bears it is ever removed


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


def lock(framework: str) -> tuple[Path, Path]:
    """Return the lock file, and the one of what is built from source after it (it need not exist)."""
    return ROOT / "locks" / f"{framework}.txt", ROOT / "locks" / f"{framework}-source.txt"


def requirements(path: Path) -> list[str]:
    """Return the requirement lines of a lock file without comments; none if there is no such file."""
    if not path.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def fingerprint(framework: str) -> str:
    """Return the hash of what the environment should hold. Comments of the lock files don't count."""
    wanted = [requirements(path) for path in lock(framework)]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def stamp(framework: str) -> dict[str, object]:
    """Return what the environment's stamp says; empty where there is none or it cannot be read."""
    try:
        found = json.loads((home() / framework / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    # Environments hold absolute paths: one that was moved or copied is none.
    return found if isinstance(found, dict) and found.get("folder") == str(home() / framework) else {}


def write_stamp(framework: str, **facts: object) -> None:
    """Say that the environment is whole. The last act of making it."""
    target = home() / framework / STAMP
    said = {"lock": fingerprint(framework), "folder": str(home() / framework), **facts}
    fresh = target.with_suffix(".new")
    fresh.write_text(json.dumps(said, indent=1) + "\n")
    fresh.replace(target)


def state(framework: str) -> str:
    """Return "ready", "outdated" (another lock file), "half-made" or "absent"."""
    if not (home() / framework).exists():
        return "absent"
    said = stamp(framework)
    if not said or not python(framework).exists():
        return "half-made"
    return "ready" if said.get("lock") == fingerprint(framework) else "outdated"


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
        raise UserError(f"{TITLES[framework]} is not set up here. Remedy: triport setup {framework}")
    return found


def ground() -> Path:
    """Return an interpreter that has what core and weights import: this one, else any environment's.

    Raises UserError when there is none.
    """
    if all(is_here(name) for name in GROUND):
        return Path(sys.executable)
    made = (name for name in FRAMEWORKS if state(name) in ("ready", "outdated"))
    framework = next(made, None)
    if framework is None:
        raise UserError("no environment is set up here. Remedy: triport setup torch")
    return python(framework)


def with_project(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the project on Python's path, where it is a checkout: all run the same code."""
    if not (ROOT / "pyproject.toml").is_file():
        return dict(environment)
    before = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(ROOT))]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *before])}


@contextmanager
def only_one(framework: str) -> Iterator[None]:
    """Hold the lock against a second set-up of the same environment; wait while another holds it."""
    import fcntl  # not on every system; nothing else here needs it

    home().mkdir(parents=True, exist_ok=True)
    with open(home() / f"{framework}.lock", "w") as handle:
        # Handed on to pip: should this process be killed, the lock holds until pip, too, has ended.
        os.set_inheritable(handle.fileno(), True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{framework}: another set-up is at work; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # the system frees the lock with the last process that holds it, however that ends


def begin(framework: str) -> Path:
    """Make the environment's empty folder and mark it as this program's own. Returns the folder."""
    folder = home() / framework
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


def remove(framework: str) -> None:
    """Delete an environment that this program made; the mark goes last, so that an interruption can be repeated.

    Raises UserError where the folder is somebody else's.
    """
    folder = home() / framework
    if not (folder / MARK).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} was not made by triport, so it is left alone. Remedy: move it away, then try again")
    (folder / STAMP).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()
    shutil.rmtree(folder)
