"""How many processes shall make batches: what cores there are, who shares them, and whether the work is worth it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from triport.core.data.batches import BatchMaker, Job
from triport.core.data.worker import private_arrays

WORTH = 0.5  # seconds of work below which starting processes costs more than it saves
TRIED = 8  # samples that are made to see how long they take


def usable_cores() -> int:
    """Return the cores this process may use: those it is bound to, cut by the container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return bound if quota == "max" else max(1, min(bound, round(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return bound


def local_processes(world: int) -> int:
    """Return how many of the run's `world` processes are on this machine: the launcher says, else all of them."""
    for name in ("LOCAL_WORLD_SIZE", "PADDLE_LOCAL_SIZE"):  # torchrun; paddle.distributed.launch
        if os.environ.get(name, "").isdigit():
            return max(1, min(world, int(os.environ[name])))
    return world


def worthwhile_workers(maker: BatchMaker, epochs: int | None, local: int) -> int:
    """Return this process's share of the cores, or 0 where making everything in line takes next to no time.

    In training that is the whole run of `epochs`, in evaluation one pass, as each pass starts its processes again.
    """
    if os.name != "posix" or type(maker.dataset).__module__ == "__main__" or not maker.steps:
        return 0
    job = Job(0, 0, 0)
    units, arrays = maker.units(job), private_arrays(maker, job)
    tried, begun = 0, 0.0
    for unit in range(min(units, TRIED + 1)):
        maker.fill(arrays, job, unit, unit + 1)
        if not unit:
            begun = time.perf_counter()  # the first one loads libraries
            continue
        tried += 1
        if time.perf_counter() - begun > WORTH:
            break
    whole = (time.perf_counter() - begun) / max(tried, 1) * units * maker.micro * maker.steps
    times = (epochs or 1) if maker.train else 1
    return 0 if whole * times < WORTH else max(1, usable_cores() // local)
