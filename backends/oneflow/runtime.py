"""OneFlow, imported quietly and with the right matrix kernels; every file of this backend takes it from here."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType

from triport.core.cluster import drop_no_rank
from triport.core.machine import amd_with_avx2, die_with_parent

__all__ = ["F", "Tensor", "flow", "leave", "nn"]

drop_no_rank(os.environ)  # OneFlow may have been imported before us
ALONE = int(os.environ.get("WORLD_SIZE", 1)) == 1
PATIENCE = float(os.environ.get("TRIPORT_WAIT", 300))  # seconds for all processes to be there
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def prepare() -> None:
    """Set what OneFlow reads from the environment while it is imported, where the user did not."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    if amd_with_avx2():  # its OpenBLAS takes new AMD processors for old ones without AVX
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
    if not ALONE:
        for name in PROXIES:  # the ranks would look for each other there
            os.environ.pop(name, None)
        sys.excepthook = end_at_once
        end_with_launcher()
        wait_for_rank_0(PATIENCE)


def end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception and end: an orderly end would wait for ranks that wait for this one."""
    traceback.print_exception(kind, error, trace)
    leave(1)


def end_with_launcher() -> None:
    """Ask Linux to end this process when its launcher ends; OneFlow's own leaves its ranks running."""
    die_with_parent()


def wait_for_rank_0(seconds: float) -> None:
    """In later ranks wait until rank 0 listens: OneFlow looks for it once and then sleeps for ten seconds."""
    deadline = time.monotonic() + seconds
    address = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", 0))
    while int(os.environ.get("RANK", 0)) > 0:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=1).close()
            return
        if time.monotonic() > deadline:
            complain(f"nobody listens at {address[0]}:{address[1]} after {seconds:.0f} s", "is the first one started?")
            leave(1)
        time.sleep(0.05)


def complain(what: str, question: str) -> None:
    """Say why this process ends."""
    print(f"triport: rank {os.environ.get('RANK', 0)}: {what}; {question}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Within, a small child ends this process when the time is up: OneFlow waits for its peers for ever, in C++."""
    if ALONE:
        yield
        return
    parent = os.getpid()
    done, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        if not select.select([done], [], [], seconds)[0]:
            world = os.environ["WORLD_SIZE"]
            complain(f"not all {world} processes are there after {seconds:.0f} s", "are the other machines started?")
            os.kill(parent, signal.SIGTERM)
        os._exit(0)
    os.close(done)
    try:
        yield
    finally:
        os.close(ends)
        os.waitpid(child, 0)


def leave(code: int) -> None:
    """End the process. One rank that failed goes at once, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code and not ALONE:
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within, nothing reaches standard error, also from native code; an exception is shown after it."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


prepare()
_before = dict(os.environ)
_hook = sys.excepthook
with watched(PATIENCE), muted():  # "libibverbs not available" and the like
    import oneflow as flow
    import oneflow.nn.functional as F
    from oneflow import Tensor, nn
sys.excepthook = _hook
for _name in set(os.environ) - set(_before):  # RANK=-1 and its like, which other programs would inherit
    del os.environ[_name]
