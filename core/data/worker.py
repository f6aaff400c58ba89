"""A loader process: makes parts of batches straight into shared memory. It imports numpy and Pillow, never a framework.

Started by core.data.processes with descriptors: tasks (a pipe that all workers read records of one size from, so
that whoever is free takes the next), answers (this worker's own connection), and two pieces of memory, the setup and
the slots. It ends when the pipe is closed or its parent is gone, however that died.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import struct
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import numpy as np

from triport.core.data.batches import BatchMaker, Broken, Field, Job
from triport.core.data.sample.decode import quiet_pillow
from triport.core.errors import UserError

TASK = struct.Struct("6q")  # slot, epoch, step, micro, start, stop
ALIGN = 64  # bytes
PARENT_CHECK = 1000  # milliseconds between looks at whether the parent is alive


def slot_bytes(fields: tuple[Field, ...], rows: int) -> int:
    """Return the size of a slot: every field for `rows` rows, each aligned."""
    return sum(_field_bytes(field, rows) for field in fields)


def _field_bytes(field: Field, rows: int) -> int:
    size = rows * int(np.prod(field.row, dtype=np.int64)) * np.dtype(field.kind).itemsize
    return -(-size // ALIGN) * ALIGN


def slot_arrays(memory: Any, start: int, fields: tuple[Field, ...], rows: int, used: int) -> dict[str, np.ndarray]:
    """Return the arrays of the slot that begins at byte `start` of `memory`, for its first `used` rows of `rows`."""
    arrays = {}
    for field in fields:
        count = used * int(np.prod(field.row, dtype=np.int64))
        arrays[field.name] = np.frombuffer(memory, field.kind, count, start).reshape(used, *field.row)
        start += _field_bytes(field, rows)
    return arrays


def private_arrays(maker: BatchMaker, job: Job) -> dict[str, np.ndarray]:
    """Return new arrays for a micro-batch that is made in line."""
    rows = len(maker.samples(job)[0])
    return slot_arrays(bytearray(slot_bytes(maker.fields, rows)), 0, maker.fields, rows, rows)


def write_setup(maker: BatchMaker, file: BinaryIO) -> None:
    """Write the setup memory: import paths and the maker, with its large arrays beside the pickle, not in it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(maker, 5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    head = pickle.dumps((sys.path, pickled, [part.nbytes for part in parts]))
    file.write(struct.pack("q", len(head)) + head)
    for part in parts:
        file.write(bytes(-file.tell() % ALIGN))
        file.write(part)


def read_setup(memory: mmap.mmap) -> BatchMaker:
    """Return the maker; its arrays stay in the memory, shared by all workers."""
    (length,) = struct.unpack_from("q", memory)
    paths, pickled, sizes = pickle.loads(memory[8 : 8 + length])
    sys.path[:] = paths
    start, buffers, whole = 8 + length, [], memoryview(memory)
    for size in sizes:
        start += -start % ALIGN
        buffers.append(whole[start : start + size])
        start += size
    maker: BatchMaker = pickle.loads(pickled, buffers=buffers)
    return maker


def main(tasks: int, answers: int, setup: int, slots: int, parent: int) -> None:
    """Serve until the tasks end."""
    channel = Connection(answers)
    quiet_pillow()
    try:
        maker = read_setup(mmap.mmap(setup, 0, access=mmap.ACCESS_READ))
        memory = mmap.mmap(slots, 0)
        while (task := _next(tasks, parent)) is not None:
            channel.send((task, *_work(maker, memory, task)))
    except BrokenPipeError:
        return  # nobody waits for the answer any more


def _next(tasks: int, parent: int) -> tuple[int, ...] | None:
    ready = select.poll()
    ready.register(tasks, select.POLLIN)
    while True:
        events = ready.poll(PARENT_CHECK)
        if os.getppid() != parent:
            return None
        if events:
            try:
                record = os.read(tasks, TASK.size)
            except BlockingIOError:
                continue  # another worker was faster
            return TASK.unpack(record) if record else None


def _work(maker: BatchMaker, memory: mmap.mmap, task: tuple[int, ...]) -> tuple[list[Broken], Exception | None, str]:
    """Make one part; return the broken images met, and the exception with its traceback as text, if any."""
    slot, epoch, step, micro, start, stop = task
    job = Job(epoch, step, micro)
    try:
        fields, used = maker.fields, len(maker.samples(job)[0])
        arrays = slot_arrays(memory, slot * slot_bytes(fields, maker.rows), fields, maker.rows, used)
        return maker.fill(arrays, job, start, stop), None, ""
    except UserError as error:
        return [], error, ""
    except Exception as error:  # whatever it is, it is reported to the parent
        return [], RuntimeError(f"{type(error).__name__}: {error}"), traceback.format_exc()
