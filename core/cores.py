"""How many cores this process may use, and how many processes of a run share them."""

from __future__ import annotations

import os
from pathlib import Path


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
