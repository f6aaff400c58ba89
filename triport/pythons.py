"""Finds Python interpreters of a wanted version that really work: on PATH, in version managers' folders.

uv looks on PATH too, but stops at the first that fails, as a pyenv shim does whose version is not switched on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Where version managers keep interpreters; {v} is the version ("3.10").
FOLDERS = (
    "{PYENV_ROOT}/versions/{v}*",
    "~/.pyenv/versions/{v}*",
    "{ASDF_DATA_DIR}/installs/python/{v}*",
    "~/.asdf/installs/python/{v}*",
    "~/.local/share/mise/installs/python/{v}*",
    "{UV_PYTHON_INSTALL_DIR}/cpython-{v}*",
    "~/.local/share/uv/python/cpython-{v}*",
    "{CONDA_PREFIX}",
    "~/*conda*",
    "~/*forge*",
    "~/*conda*/envs/*",
    "~/*forge*/envs/*",
    "/opt/homebrew/opt/python@{v}",
    "/usr/local/opt/python@{v}",
    "/usr/local",
    "/opt/python/{v}*",
)


def find(versions: tuple[str, ...]) -> Path | None:
    """Return a working interpreter of the first of `versions` ("3.11") that has one, or None."""
    for version in versions:
        for candidate in dict.fromkeys(candidates(version)):
            if works(candidate, version):
                return candidate
    return None


def candidates(version: str) -> Iterator[Path]:
    """Yield the files that may be an interpreter of `version`, the likeliest first; some may not work."""
    name = f"python{version}"
    if sys.version_info[:2] == tuple(int(part) for part in version.split(".")):
        # In a virtual environment the interpreter beneath it: what is built on that outlives this environment.
        yield Path(sys.base_prefix, "bin", name) if sys.prefix != sys.base_prefix else Path(sys.executable)
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield Path(folder, name)
    for pattern in FOLDERS:
        try:
            filled = Path(pattern.format_map({**os.environ, "v": version})).expanduser() / "bin" / name
        except KeyError:  # its variable is not set
            continue
        yield from sorted(Path("/").glob(str(filled).lstrip("/")), key=release, reverse=True)


def release(path: Path) -> tuple[int, ...]:
    """Return the numbers in a path such as …/versions/3.10.13/bin/python3.10, so that 3.10.13 sorts after 3.10.9."""
    return tuple(int(word) for word in "".join(c if c.isdigit() else " " for c in str(path)).split())


def works(candidate: Path, version: str) -> bool:
    """Say whether the interpreter starts and is of `version`. A shim that fails does not."""
    # Variables that a virtual environment or a launcher left behind would select the wrong interpreter.
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}
    command = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean, cwd=os.sep)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version
