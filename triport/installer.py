"""uv, which installs the environments: found on PATH or installed into one of its own, and given pip's settings."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from triport import environments
from triport.core.errors import UserError

LEAST = (0, 8)  # the oldest uv that is taken from PATH
# pip's settings and what uv calls them, for where uv has no setting of its own.
SETTINGS = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
# What would select another interpreter, or for another environment than the one that is named.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON")


@functools.cache
def uv() -> str:
    """Return a uv that works: the one on PATH if it is new enough, else one in an environment of its own, made here."""
    if (found := shutil.which("uv")) and release(found) >= LEAST:
        return found
    python = environments.python("tools")
    own = str(python.with_name("uv"))
    with environments.locked("tools"):
        if environments.state("tools") != "ready" or release(own) < LEAST:
            folder = environments.begin("tools")
            print(f"installing uv into {folder}", flush=True)
            run(base(), "-m", "venv", str(folder))
            lock = ("--require-hashes", "--only-binary=:all:", "-r", str(environments.lock("tools")))
            run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *lock)
            environments.write_stamp("tools")
    return own


def release(program: str) -> tuple[int, ...]:
    """Return the major and minor version that a uv prints, or () if it does not start."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.match(r"uv (\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, found.groups())) if found and answer.returncode == 0 else ()


def base() -> str:
    """Return this interpreter, or the one beneath it where this is a virtual environment."""
    beneath = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return str(beneath) if sys.prefix != sys.base_prefix and beneath.exists() else sys.executable


@functools.cache
def variables() -> dict[str, str]:
    """Return the variables for uv and pip: the shell's, and pip's settings for uv where it has none of its own."""
    shell = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    answer = subprocess.run([base(), "-m", "pip", "config", "list"], capture_output=True, text=True, env=shell)
    return {**translated(answer.stdout), **shell}


def translated(listing: str) -> dict[str, str]:
    """Return what `pip config list` prints as variables of uv."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"^(?:global|install|:env:)\.([\w-]+)=('.*'|\".*\")$", listing, re.MULTILINE):
        if key in SETTINGS:
            words = str(ast.literal_eval(value)).split()
            found[SETTINGS[key]] = ("," if key == "find-links" else " ").join(words)
    # pip takes the best of all indexes; whose file it is does not matter where its hash is checked.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **found} if found else {}


def run(*command: str, silent: bool = False) -> None:
    """Run a command, its messages on standard error. Raises UserError if it fails."""
    nothing = subprocess.DEVNULL
    # The set-up's lock goes along (close_fds): should this process be killed, it holds until the command has ended.
    code = subprocess.run(
        command, env=variables(), close_fds=False, stdout=nothing if silent else 2, stderr=nothing if silent else None
    ).returncode
    if code:
        words = " ".join(word for word in command[:4] if not word.startswith(os.sep))
        raise UserError(f"{Path(command[0]).name} {words} ended with exit code {code}; see its messages above")
