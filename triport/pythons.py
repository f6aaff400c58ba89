"""Finds Python interpreters of a wanted version that really work: on PATH, in version managers' folders, through uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What an environment needs of its interpreter: the version, and venv with pip (Debian packs these apart).
QUESTION = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"

# Where version managers keep interpreters; {v} is the version ("3.10").
FOLDERS = (
    "{PYENV_ROOT}/versions/{v}*/bin/python{v}",
    "~/.pyenv/versions/{v}*/bin/python{v}",
    "{ASDF_DATA_DIR}/installs/python/{v}*/bin/python{v}",
    "~/.asdf/installs/python/{v}*/bin/python{v}",
    "~/.local/share/mise/installs/python/{v}*/bin/python{v}",
    "{UV_PYTHON_INSTALL_DIR}/cpython-{v}*/bin/python{v}",
    "~/.local/share/uv/python/cpython-{v}*/bin/python{v}",
    "{CONDA_PREFIX}/bin/python{v}",
    "~/miniconda3/envs/*/bin/python{v}",
    "~/miniforge3/envs/*/bin/python{v}",
    "~/anaconda3/envs/*/bin/python{v}",
    "~/miniconda3/bin/python{v}",
    "~/miniforge3/bin/python{v}",
    "~/anaconda3/bin/python{v}",
    "/opt/homebrew/opt/python@{v}/bin/python{v}",
    "/usr/local/opt/python@{v}/bin/python{v}",
    "/usr/local/bin/python{v}",
    "/opt/python/{v}*/bin/python{v}",
)


def find(versions: tuple[str, ...]) -> Path | None:
    """Return a working interpreter of the first of `versions` ("3.11") that has one, or None."""
    for version in versions:
        tried = set()
        for candidate in candidates(version):
            if candidate not in tried and works(candidate, version):
                return candidate
            tried.add(candidate)
    return None


def candidates(version: str) -> Iterator[Path]:
    """Yield the places where an interpreter of `version` may be, the likeliest first; some may not work."""
    if sys.version_info[:2] == tuple(int(part) for part in version.split(".")):
        # In a virtual environment the interpreter beneath it: what is built on that outlives this environment.
        inside = sys.prefix != sys.base_prefix
        yield Path(sys.base_prefix, "bin", f"python{version}") if inside else Path(sys.executable)
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = Path(folder, f"python{version}")
        if candidate.is_file():
            yield candidate
    for pattern in FOLDERS:
        yield from matches(pattern, version)
    yield from through_uv(version)


def matches(pattern: str, version: str) -> list[Path]:
    """Return the files that a pattern of FOLDERS names, the newest release first."""
    try:
        filled = str(Path(pattern.format_map({**os.environ, "v": version})).expanduser())
    except KeyError:  # its variable is not set
        return []
    if "*" not in filled:
        return [Path(filled)] if Path(filled).is_file() else []
    return sorted(Path("/").glob(filled.lstrip("/")), key=release, reverse=True)


def release(path: Path) -> tuple[int, ...]:
    """Return the numbers in a path such as …/versions/3.10.13/bin/python3.10, so that 3.10.13 sorts after 3.10.9."""
    return tuple(int(word) for word in "".join(c if c.isdigit() else " " for c in str(path)).split())


def through_uv(version: str) -> Iterator[Path]:
    """Yield the interpreter that uv knows or can fetch, where uv is installed."""
    uv = shutil.which("uv")
    if uv is None:
        return
    for command in (["find"], ["install", "--quiet"], ["find"]):
        words = [uv, "python", *command, version]
        try:
            answer = subprocess.run(words, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired):
            return
        if command[0] == "find" and answer.returncode == 0 and answer.stdout.strip():
            yield Path(answer.stdout.strip().splitlines()[-1])
            return


def works(candidate: Path, version: str) -> bool:
    """Say whether the interpreter starts, is of `version` and can make environments. A shim that fails does not."""
    # Variables that a virtual environment or a launcher left behind would speak for the wrong interpreter.
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}
    try:
        answer = subprocess.run(
            [str(candidate), "-c", QUESTION], capture_output=True, text=True, timeout=60, env=clean, cwd=os.sep
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version
