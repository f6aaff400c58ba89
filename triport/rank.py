"""One process of a job: starts the real one as its child and writes down how that ended, whatever ended it.

A launcher starts this file in place of the backend's entry point. It stays small, so it lives through what may
befall a training process (no memory, a crash in native code, an exit that hangs), ends its child when the launcher
ends, and hands signals on. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

from triport.core import atomic
from triport.core.machine import die_with_parent

STOPPING = 45.0  # seconds that the first process gets to end after a signal; less than the job waits for all


def number(*names: str) -> int:
    """Return the first of these environment variables that is set, as a number; 0 where none is."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), 0)


def write(path: Path, what: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    atomic.write_text(path, json.dumps(what), durable=False)


def stream(name: str, log: Path, first: bool) -> IO[bytes] | None:
    """Return where a stream of the child goes: of the first process on a node to the job's own, of others to a log.

    `name`: the variable that holds the path of a terminal or of a pipe that the job reads.
    """
    path = os.environ.get(name)
    if not first:
        return log.open("ab", buffering=0)
    # The terminal is no longer this session's own, and must not become it.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb", buffering=0) if path else None


def main(words: list[str]) -> int:
    """Run `python -m MODULE ARGUMENTS…` as a child and return its exit code."""
    die_with_parent()
    nohup = os.environ.get("TRIPORT_NOHUP") == "1" or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the child inherits
    job = Path(os.environ["TRIPORT_JOB"])
    rank = number("PADDLE_TRAINER_ID", "RANK")
    first = number("PADDLE_LOCAL_RANK", "PADDLE_RANK_IN_NODE", "LOCAL_RANK") == 0
    log = job / f"rank-{rank}.log"
    out, error = stream("TRIPORT_OUT", log, first), stream("TRIPORT_ERROR", log, first)
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=error,
        preexec_fn=partial(die_with_parent, parent=os.getpid()),
    )

    stopped = False

    def hand_on(caught: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        child.send_signal(caught)

    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if caught != signal.SIGHUP or not nohup:
            signal.signal(caught, hand_on)
    record = {"rank": rank, "process": os.getpid(), "child": child.pid, "first": first, "code": None}
    write(job / f"rank-{rank}.json", record)
    code = child.wait()
    write(job / f"rank-{rank}.json", {**record, "code": code, "when": time.time()})
    if (code == 2 or stopped) and not first:
        wait_for_first(job, seconds=STOPPING if stopped else 5)
    return code if code >= 0 else 128 - code


def wait_for_first(job: Path, seconds: float) -> None:
    """Wait until the first process of this node has ended too: with a mistake of the user all meet the same one.

    The launcher ends the others once one has ended, and the first should get to say the message, which only it shows,
    and where a run was stopped to write its report.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        records = [json.loads(path.read_text()) for path in job.glob("rank-*.json")]
        if any(record["first"] and record["code"] is not None for record in records):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
