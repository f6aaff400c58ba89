"""Asks a backend in its own interpreter: one ask = one process = one folder.

    answers = ask("oneflow", [Question("forward", {"spec": spec, "arrays": arrays, "inputs": inputs})])

The folder holds ask.json + ask.safetensors -> answer.safetensors or error.json, log.txt and stack.txt. It is removed
after an answer and kept after a failure, which names it. Importing a framework takes seconds, so an ask may hold many
questions.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport import environments, job, launch
from triport.core.errors import UserError
from triport.core.machine import die_with_parent
from triport.parity_tests.tool import parcel, worker

TAIL = 15  # lines of the log that a message shows


@dataclass(frozen=True)
class Question:
    """A function of a backend's probe and its keyword arguments."""

    function: str
    given: Mapping[str, Any] = field(default_factory=dict)


class Failure(UserError):
    """No answer. The subclasses say why."""


class Missing(Failure):
    """The framework is not here; the message has the remedy."""


class Raised(Failure):
    """The probe raised an exception."""


class Crashed(Failure):
    """The process died without a word."""


class Hung(Failure):
    """The process gave no answer in time and was ended."""


def ask(backend: str, questions: Sequence[Question], **how: Any) -> list[Any]:
    """Ask one process, get the answers in order. `how`: see `ask_ranks`. Raises a Failure."""
    return ask_ranks(backend, [questions], **how)[0]


def near(backend: str, questions: Sequence[Question], *, probe: str | None = None, **how: Any) -> list[Any]:
    """As `ask`, but this very interpreter answers: for tests that plant faults in it. `how` has no effect."""
    module = importlib.import_module(probe or f"triport.backends.{backend}.probe")
    return [getattr(module, question.function)(**question.given) for question in questions]


def ask_ranks(
    backend: str,
    questions: Sequence[Sequence[Question]],
    *,
    timeout: float = 600,
    threads: int = 1,
    probe: str | None = None,
    python: Path | None = None,
    keep: Path | None = None,
) -> list[list[Any]]:
    """Ask processes that work together, started by the framework's launcher: questions and answers by rank.

    timeout: seconds for all questions together. threads: of each process; one makes sums come in one order.
    probe, python: another module than the backend's probe, another interpreter than the framework's.
    keep: a folder to make and to leave in place, for a look at what was said.
    Raises a Failure where any rank leaves no answer.
    """
    processes = len(questions)
    place = launch.Place(backend, python or _interpreter(backend), processes)
    folder = keep or Path(tempfile.mkdtemp(prefix=f"triport-ask-{backend}-"))
    folder.mkdir(parents=True, exist_ok=True)
    printed = {
        "probe": probe or f"triport.backends.{backend}.probe",
        "questions": [[{"function": q.function, "given": dict(q.given)} for q in of_rank] for of_rank in questions],
    }
    parcel.write(printed, folder / "ask.json", folder / "ask.safetensors")
    began = time.monotonic()
    code = _run(place, folder, timeout, threads)
    answers = [worker.file(folder, "answer.safetensors", rank) for rank in range(processes)]
    if code != 0 or not all(path.is_file() for path in answers):
        raise _failure(backend, folder, processes, code, time.monotonic() - began)
    values = [parcel.read(path) for path in answers]
    if keep is None:
        shutil.rmtree(folder)
    return values


def _interpreter(backend: str) -> Path:
    """The interpreter that has the framework; raises Missing with the remedy."""
    environments.known(backend)
    try:
        return environments.require(backend)
    except UserError as error:
        raise Missing(str(error)) from None


# ---------------------------------------------------------------- the process
def _run(place: launch.Place, folder: Path, timeout: float, threads: int) -> int | None:
    """Run the worker to its end. Returns its exit code, or None where it had to be ended."""
    environment = {**launch.without_ranks(launch.variables(place)), "OMP_NUM_THREADS": str(threads)}
    environment |= {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [str(place.python), "-m", "triport.parity_tests.tool.worker", str(folder)]
    if place.processes > 1:  # a process of this program watches over the framework's launcher
        words = [place.framework, str(place.python), str(place.processes), str(folder)]
        command = [sys.executable, "-m", "triport.parity_tests.tool.ask", *words]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=environments.ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process, folder, place.processes)


def _end(process: subprocess.Popen[bytes], folder: Path, processes: int) -> None:
    """End a process and all it started; those that hang are first asked where they stand."""
    if process.poll() is None:
        for rank in range(processes):
            with contextlib.suppress(OSError, ValueError, IndexError):
                stack = worker.file(folder, "stack.txt", rank).read_text()
                os.kill(int(stack.splitlines()[0]), signal.SIGUSR1)
        time.sleep(0.5)
        for _ in range(3 if processes > 1 else 0):  # three requests end a job at once
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        if processes > 1:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _together(framework: str, python: str, processes: str, folder: str) -> int:
    """Run the worker as several processes through the framework's launcher, watched over; returns the exit code."""
    place = launch.Place(framework, Path(python), int(processes))
    private = job.private_folder()

    def start(more: dict[str, str]) -> Any:
        return launch.start(place, ["triport.parity_tests.tool.worker", folder], more, private)

    return job.run(start, launcher=framework != "oneflow", folder=private)


# ---------------------------------------------------------------- what went wrong
def _failure(backend: str, folder: Path, processes: int, code: int | None, seconds: float) -> Failure:
    """The failure that the folder and the exit code tell of, in words."""
    logs = [worker.file(folder, "log.txt", rank) for rank in range(processes)]
    lines = [path.read_text(errors="replace").strip().splitlines() if path.is_file() else [] for path in logs]
    rest = f" All of it is in {folder}." + "".join(f"\n  {line}" for log in lines for line in log[-TAIL:])
    for rank in range(processes):
        path = worker.file(folder, "error.json", rank)
        if path.is_file():
            printed = json.loads(path.read_text())
            if printed["type"] == UserError.__name__:  # it is written for the user as it is
                return Raised(printed["message"])
            who = backend if processes == 1 else f"rank {rank} of {backend}"
            if printed["missing"] and printed["missing"].partition(".")[0] == backend:
                remedy = f"Remedy: triport setup {backend}"
                return Missing(f"{backend} cannot be imported by its interpreter. {remedy}.{rest}")
            what = f"{printed['type']}: {printed['message']} ({printed['where']})"
            return Raised(f"{who} failed at '{printed['asked']}': {what}.{rest}")
    if code is None:
        where = "".join(_standing(folder, rank, processes) for rank in range(processes))
        return Hung(f"{backend} gave no answer in {seconds:.0f} s and was ended{where}.{rest}")
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        how += " (out of memory, or killed by hand)" if code == -signal.SIGKILL else ""
    return Crashed(f"{backend} {how} and left no answer.{rest}")


def _standing(folder: Path, rank: int, processes: int) -> str:
    """Where a process that hung stood: the innermost frame of its stack."""
    path = worker.file(folder, "stack.txt", rank)
    frames = [line.strip() for line in path.read_text().splitlines()[2:]] if path.is_file() else []
    who = "it" if processes == 1 else f"rank {rank}"
    return f"; {who} stood at {frames[0]}" if frames else ""


if __name__ == "__main__":
    sys.exit(_together(*sys.argv[1:]))
