"""A job of several processes: starts a launcher, shows rank 0, ends everything when one dies, says which and why."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from triport.core.machine import adopt_orphans, die_with_parent
from triport.core.record.console import show
from triport.processes import end_all, is_alive

PATIENCE = 15.0  # seconds that a launcher gets to end the other ranks after one has failed
DIRECT = 3.0  # seconds that ranks without a launcher get to end by themselves
STOPPING = 60.0  # the same once the job was asked to stop: a checkpoint may be in writing
PREFIX = "triport-job-"
LOCKS: list[TextIO] = []  # of the folders of this process's jobs; the system frees them when it ends
LAST_WORDS = 25  # lines shown of a failed process


@dataclass
class Job:
    """What runs: one launcher, or the processes themselves where a framework has no launcher to rely on."""

    folder: Path
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    caught: int = 0  # the last signal that was handed on
    times: int = 0
    codes: list[int | None] = field(default_factory=list)  # of the children that ended by themselves
    noticed: dict[int, float] = field(default_factory=dict)  # when a rank was first seen to be gone without a word

    def ranks(self) -> list[dict[str, Any]]:
        """Return the records that the processes of this node wrote (triport/rank.py), in rank order."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("rank-*.json")]
        return sorted(found, key=lambda record: int(record["rank"]))

    def failures(self) -> list[dict[str, Any]]:
        """Return the records of processes that ended badly, the first to do so first."""
        bad = []
        for record in self.ranks():
            if record["code"] is None and not is_alive(record["process"]):
                # It may have written its last word between the reading and the look.
                record = json.loads((self.folder / f"rank-{record['rank']}.json").read_text())
                if record["code"] is None:
                    record["code"] = -signal.SIGKILL
                    record["when"] = self.noticed.setdefault(record["rank"], time.time())
            if record["code"]:
                bad.append(record)
        return sorted(bad, key=lambda record: float(record["when"]))

    def known(self) -> list[int]:
        """Return the processes that are known by number, for systems without /proc."""
        return [child.pid for child in self.children] + [
            record[name] for record in self.ranks() for name in ("process", "child")
        ]

    def hand_on(self, caught: int, frame: FrameType | None = None) -> None:
        """Pass a signal to the training processes themselves, so that they can stop at a safe place."""
        self.caught, self.times = caught, self.times + 1
        targets = [record["process"] for record in self.ranks() if record["code"] is None]
        for process in targets or [child.pid for child in self.children if child.poll() is None]:
            with contextlib.suppress(OSError):
                os.kill(process, caught)


Start = Callable[[dict[str, str]], Iterator[tuple[list[str], dict[str, str]]]]


def run(start: Start, launcher: bool, folder: Path) -> int:
    """Run a job to its end and return its exit code.

    start(variables): yields a command and its environment for each child, which hold `variables`.
    launcher: whether there is one child that starts and ends the ranks itself.
    folder: private, empty; removed at the end.
    """
    adopt_orphans()
    job = Job(folder)
    with shown(folder) as variables:
        # nohup: who ignores the end of the terminal goes on doing so, here and in the ranks.
        caught = [
            number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) if not ignores(number)
        ]
        if ignores(signal.SIGHUP):
            variables["TRIPORT_NOHUP"] = "1"  # a launcher in between may undo what its children inherit
        before = {number: signal.signal(number, job.hand_on) for number in caught}
        try:
            for command, environment in start(variables):
                job.children.append(begin(command, environment, folder, launcher))
            watch(job, PATIENCE if launcher else DIRECT)
        finally:
            # What counts is how things stood before this job ended the rest.
            job.codes, failures = [child.poll() for child in job.children], job.failures()
            end_all(os.getpid(), job.known())
            for child in job.children:
                child.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
    return conclude(job, failures, launcher)


def ignores(number: int) -> bool:
    """Say whether this process was started to live through the end of its terminal, as by nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def begin(command: list[str], environment: dict[str, str], folder: Path, launcher: bool) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, ended with this process. A launcher's chatter goes to a file."""
    with (folder / "launcher.log").open("ab") as chatter:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=chatter,
            stderr=chatter,
            start_new_session=True,
            # Asked, not killed: so that a launcher ends its own processes first.
            preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
        )


def watch(job: Job, patience: float) -> None:
    """Wait for the children. Once a process has failed, the others get a while, and no longer."""
    deadline = None
    while any(child.poll() is None for child in job.children):
        time.sleep(0.1)
        if deadline is None and job.failures():
            deadline = time.monotonic() + (STOPPING if job.caught else patience)
        if job.times > 2 or (deadline is not None and time.monotonic() > deadline):
            return


def conclude(job: Job, failures: list[dict[str, Any]], launcher: bool) -> int:
    """Say what failed, remove the job's folder, return the exit code."""
    code = exit_code(failures, [child.returncode for child in job.children])
    killed = job.codes[0] if launcher and job.codes else None
    if job.caught and code:
        code = 128 + job.caught
    elif killed is not None and killed < 0:
        show(f"triport: the launcher was ended by {signal.Signals(-killed).name}, and its ranks with it", sys.stderr)
    elif failures:
        # What the first process of the node printed was shown; with code 2 it named the remedy.
        explained = any(record["first"] and record["code"] == 2 for record in failures)
        for record in [] if explained else failures[:1]:
            report(record, job.folder)
    elif code:
        # No process failed, so the launcher did. Paddle's dumps the environment beside its logs: never show those.
        show(f"triport: the launcher ended with code {code}:\n{tail(job.folder / 'launcher.log')}", sys.stderr)
    shutil.rmtree(job.folder, ignore_errors=True)
    return code


def exit_code(failures: list[dict[str, Any]], codes: list[int]) -> int:
    """Return the code of the first process that failed, else of the first child."""
    first = next((record["code"] for record in failures), None) or next((code for code in codes if code), 0)
    return int(first) if first >= 0 else 128 - int(first)


def report(record: dict[str, Any], folder: Path) -> None:
    """Print which process failed, how, and its last words if they were not shown already."""
    code, words = record["code"], ""
    how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += " (out of memory, or killed by hand)"
    if not record["first"]:
        words = tail(folder / f"rank-{record['rank']}.log")
    show(f"triport: rank {record['rank']} {how}{':' if words else '.'}", sys.stderr)
    if words:
        show(words, sys.stderr)


def tail(path: Path) -> str:
    """Return the last lines of a log, indented."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()[-LAST_WORDS:]
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines)


@contextlib.contextmanager
def shown(folder: Path) -> Iterator[dict[str, str]]:
    """Open the streams to which rank 0 writes: a terminal by its name, anything else through a pipe in the folder.

    Yields the environment variables that name them. What is in the pipes at the end is still shown.
    """
    variables = {"TRIPORT_JOB": str(folder)}
    stop = threading.Event()
    threads = []
    for name, descriptor in (("TRIPORT_OUT", 1), ("TRIPORT_ERROR", 2)):
        if os.isatty(descriptor):
            variables[name] = os.ttyname(descriptor)
            continue
        pipe = folder / name.lower()
        os.mkfifo(pipe, 0o600)
        variables[name] = str(pipe)
        # Opened for both, so that it never reaches an end while processes come and go.
        source = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        threads.append(threading.Thread(target=copy, args=(source, descriptor, stop), daemon=True))
        threads[-1].start()
    try:
        yield variables
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def copy(source: int, target: int, stop: threading.Event) -> None:
    """Copy what comes through a pipe until told to stop, and then what is still in it."""
    ending = False
    while not ending:
        ending = stop.is_set()
        with contextlib.suppress(BlockingIOError):  # empty for now
            while block := os.read(source, 65536):
                # If nobody reads our output any more, the ranks must still not block on theirs.
                with contextlib.suppress(BrokenPipeError):
                    write(target, block)
        time.sleep(0 if ending else 0.05)
    os.close(source)


def write(target: int, block: bytes) -> None:
    """Write all of a block."""
    view = memoryview(block)
    while view:
        view = view[os.write(target, view) :]


def private_folder() -> Path:
    """Make a folder that nobody else can read, locked until this process ends; remove those that killed jobs left."""
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    LOCKS.append((folder / "lock").open("w"))
    fcntl.flock(LOCKS[-1], fcntl.LOCK_EX)
    return folder


def remove_abandoned(place: Path) -> None:
    """Remove this user's job folders in `place` that no living job has locked."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or still being made
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
