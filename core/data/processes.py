"""The loader's processes: they fill slots of shared memory, and the batches are views of it, never copied or pickled.

Workers are fresh interpreters that import neither the main script nor a framework, so this is safe beside torch,
paddle and oneflow with their threads. The memory has no name in any file system: when the last process that uses it
ends, however it ends, it is gone; and no limit on /dev/shm applies to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

import numpy as np

from triport.core.data.batches import BatchMaker, Broken, Job
from triport.core.data.worker import TASK, slot_arrays, slot_bytes, write_setup
from triport.core.errors import UserError
from triport.core.machine import nameless_memory

PARTS = 4  # parts of a micro-batch for each worker: enough to even out, few enough to cost nothing
TASKS = 1024  # tasks that are out at once at most: the pipe must hold them all, so that nobody waits to write
START = """import sys
sys.path.insert(0, sys.argv[1])
from triport.core.data.worker import main
main(*map(int, sys.argv[2:]))"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# glibc: keep freed memory, or every image's arrays are mapped and faulted in again, a quarter of all time
KEEP_MEMORY = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(64 << 20))

Made = tuple[Job, dict[str, np.ndarray], list[Broken]]  # job, arrays, broken images


@dataclass
class _Work:
    """A micro-batch in the making."""

    slot: int
    waiting: set[tuple[int, int]] = field(default_factory=set)  # parts not yet made
    broken: list[Broken] = field(default_factory=list)


class Pool:
    """`workers` processes that make micro-batches ahead of whoever asks.

    Memory: 2 * micro + 2 micro-batches of float32, that is what a step holds, as much being made, and two more.
    """

    def __init__(self, maker: BatchMaker, workers: int) -> None:
        self._maker, self._fields = maker, maker.fields
        self._size = slot_bytes(self._fields, maker.rows)
        self._slots = 2 * maker.micro + 2
        self._parts = max(1, min(PARTS * workers, TASKS // self._slots))
        self._free = deque(range(self._slots))
        self._lent: set[int] = set()
        self._work: dict[Job, _Work] = {}
        self._abandoned: dict[int, _Work] = {}  # by slot
        setup, slots = (nameless_memory("triport-loader") for _ in range(2))
        with open(setup, "wb", closefd=False) as file:
            write_setup(maker, file)
        os.ftruncate(slots, self._size * self._slots)
        self._memory = mmap.mmap(slots, 0)
        tasks, self._tasks = os.pipe()
        os.set_blocking(tasks, False)
        self._channels: dict[Connection, subprocess.Popen[bytes]] = {}
        self.close = weakref.finalize(self, _stop, self._channels, self._tasks, os.getpid())
        try:
            for _ in range(workers):
                self._start(tasks, setup, slots)
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in (tasks, setup, slots):
                os.close(descriptor)

    def _start(self, tasks: int, setup: int, slots: int) -> None:
        """Start a process of its own session, so that Ctrl-C in the terminal reaches the parent alone."""
        read, write = os.pipe()
        channel = Connection(read, writable=False)
        numbers = (tasks, write, setup, slots)
        root = str(Path(__file__).parents[3])
        try:
            self._channels[channel] = subprocess.Popen(
                [sys.executable, "-c", START, root, *map(str, numbers), str(os.getpid())],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**KEEP_MEMORY, **os.environ, **ONE_THREAD},
            )
        finally:
            os.close(write)

    # ---------------------------------------------------------------- work
    def batches(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """Yield (job, arrays, broken images) in the order of `jobs`, which are begun as far ahead as memory allows.

        The arrays are the caller's for as long as it keeps them: a slot is used again when nothing refers to it.
        """
        coming, asked = iter(jobs), deque[Job]()
        try:
            while self._begin(coming, asked) or asked:
                if not asked or self._work[asked[0]].waiting:
                    self._collect()
                    continue
                job = asked.popleft()
                work = self._work.pop(job)
                yield job, self._lend(job, work.slot), work.broken
        finally:
            for job in asked:
                work = self._work.pop(job)
                self._abandoned[work.slot] = work
            self._tidy()

    def _begin(self, coming: Iterator[Job], asked: deque[Job]) -> bool:
        """Hand out as many of the coming jobs as there are free slots; say whether more may come."""
        while self._free:
            if (job := next(coming, None)) is None:
                return False
            work = self._work[job] = _Work(self._free.popleft())
            asked.append(job)
            units = self._maker.units(job)
            cuts = np.linspace(0, units, min(self._parts, units) + 1).astype(int).tolist()
            for start, stop in pairwise(cuts):
                work.waiting.add((start, stop))
                with contextlib.suppress(BrokenPipeError):  # no worker is left: their answers will say why
                    os.write(self._tasks, TASK.pack(work.slot, *job, start, stop))
        return True

    def _collect(self) -> None:
        """Wait for the workers and note what they have made."""
        for channel in cast(list[Connection], wait(list(self._channels))):
            try:
                task, broken, error, trace = channel.recv()
            except (EOFError, OSError):
                raise self._died(channel) from None
            if error is not None:
                raise error from (RuntimeError("in a loader process:\n" + trace) if trace else None)
            slot, epoch, step, micro, start, stop = task
            abandoned = self._abandoned.get(slot)
            work = abandoned or self._work[Job(epoch, step, micro)]
            work.waiting.discard((start, stop))
            work.broken += broken
        self._tidy()

    def _tidy(self) -> None:
        for slot in [slot for slot, work in self._abandoned.items() if not work.waiting]:
            del self._abandoned[slot]
            self._free.append(slot)

    def _died(self, channel: Connection) -> Exception:
        code = self._channels[channel].wait()
        if code < 0:
            name = signal.Signals(-code).name
            return UserError(f"a loader process was ended by {name}, often for lack of memory; try fewer workers")
        return RuntimeError(f"a loader process ended with exit code {code}; its last words are above")

    def _lend(self, job: Job, slot: int) -> dict[str, np.ndarray]:
        """Return a slot's arrays, as views of the memory, or as copies where the caller keeps too many."""
        used = len(self._maker.samples(job)[0])
        if len(self._lent) > self._slots - 3:
            arrays = slot_arrays(self._memory, slot * self._size, self._fields, self._maker.rows, used)
            self._free.append(slot)
            return {name: array.copy() for name, array in arrays.items()}
        view = (ctypes.c_char * self._size).from_buffer(self._memory, slot * self._size)
        self._lent.add(slot)
        weakref.finalize(view, _give_back, slot, self._lent, self._free).atexit = False
        return slot_arrays(view, 0, self._fields, self._maker.rows, used)


def _give_back(slot: int, lent: set[int], free: deque[int]) -> None:
    lent.discard(slot)
    free.append(slot)


def _stop(channels: dict[Connection, subprocess.Popen[bytes]], tasks: int, owner: int) -> None:
    """End all workers at once: they hold nothing but memory. A fork of their owner leaves them alone."""
    if os.getpid() != owner:
        return
    os.close(tasks)
    for process in channels.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    for channel, process in channels.items():
        process.wait()
        channel.close()
    channels.clear()
