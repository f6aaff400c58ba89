"""uv, which installs the environments: found on PATH or installed into one of its own, and given pip's settings."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from triport import environments
from triport.core.errors import UserError

LEAST = (0, 8)  # the oldest uv that has every option used here
TOOLS = "tools"  # the environment that holds uv
# pip's settings and what uv calls them. The variables of uv itself come first.
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-cache-dir": "UV_NO_CACHE",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
# What would speak for another interpreter, or for another environment than the one that is named.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON")


@functools.cache
def uv() -> str:
    """Return a uv that works: the one on PATH if it is new enough, else the one of the tools' environment, made here."""
    found = shutil.which("uv")
    if found and version(found) >= LEAST:
        return found
    own = environments.python(TOOLS).with_name("uv")
    with environments.only_one(TOOLS):
        if environments.state(TOOLS) == "ready" and version(str(own)) >= LEAST:
            return str(own)
        if environments.state(TOOLS) != "absent":
            environments.remove(TOOLS)
        folder = environments.begin(TOOLS)
        say(TOOLS, f"installing uv into {shown(folder)}")
        lock = str(environments.lock(TOOLS))
        run(TOOLS, [base(), "-m", "venv", str(folder)])
        pip = [str(environments.python(TOOLS)), "-m", "pip", "install", "--disable-pip-version-check"]
        run(TOOLS, [*pip, "--require-hashes", "--only-binary=:all:", "-r", lock])
        environments.write_stamp(TOOLS)
    return str(own)


def version(program: str) -> tuple[int, ...]:
    """Return the version that a uv prints, or () if it does not start."""
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
    """Return the environment variables for uv: the shell's, and pip's settings where uv has none of its own."""
    answer = subprocess.run([base(), "-m", "pip", "config", "list"], capture_output=True, text=True)
    shell = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**translated(answer.stdout), **shell}


def translated(listing: str) -> dict[str, str]:
    """Return what `pip config list` prints as variables of uv."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if key in SETTINGS and section in ("global", "install", ":env:"):
            with contextlib.suppress(ValueError, SyntaxError):
                words = str(ast.literal_eval(value)).split()
                found[SETTINGS[key]] = ("," if key == "find-links" else " ").join(words)
    if "UV_INDEX" in found:  # pip takes the best of all indexes; with hashes it does not matter whose it is
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def run(name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output in NAME.log, telling how far it is. Raises UserError with its last words."""
    log = environments.home() / f"{name}.log"
    lines: list[str] = []
    with (
        log.open("a") as output,
        heartbeat(name) as tell,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={name: value for name, value in (environment or os.environ).items() if name not in FOREIGN},
            close_fds=False,  # the set-up's lock goes along
        ) as process,
    ):
        output.write(f"\n$ {' '.join(command)}\n")
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            output.flush()
            if line.strip():
                lines.append(line.strip())
                tell(lines[-1])
    if process.returncode:
        reasons = [line for line in lines if re.match(r"(error|ERROR|×|├─▶|╰─▶|cause)\b", line)] or lines[-1:]
        reason = "; ".join(reasons)[:300] or "the command failed"
        raise UserError(f"{reason}. All of it is in {shown(log)}")


@contextlib.contextmanager
def heartbeat(name: str) -> Iterator[Callable[[str], None]]:
    """Within this, a line every ten seconds says what was told last and how long it has taken."""
    began, doing, done = time.monotonic(), [""], threading.Event()

    def beat() -> None:
        while not done.wait(10):
            say(name, f"{doing[-1][:100] or 'at work'} ({time.monotonic() - began:.0f} s)")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield doing.append
    finally:
        done.set()
        thread.join()


def shown(path: Path) -> str:
    """Return a path as short as it can be from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def say(name: str, text: str) -> None:
    """Print a progress line at once."""
    print(f"{name}: {text}", flush=True)
