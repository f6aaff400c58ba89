"""What a cluster's scheduler tells a process: its place among the others, and how to go on another time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

FIRST_PORT, PORTS = 20_000, 20_000  # jobs on one node meet at different ports
LEFT_BY_ONEFLOW = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def drop_no_rank(environment: MutableMapping[str, str]) -> None:
    """Remove RANK=-1 and what stands with it, which an import of OneFlow leaves where no launcher has said anything.

    Whoever took it for a rank would show and save nothing, and MoCo's labels would begin below 0: its loss is NaN.
    """
    if environment.get("RANK") == "-1":
        for name in LEFT_BY_ONEFLOW:
            environment.pop(name, None)


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables from those of Slurm's `srun`; {} where it did not start several tasks.

    What a launcher has said already stands: torchrun may itself be started by srun. A batch script without srun has a
    job, but no step, and is one process.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if "RANK" in environment or tasks < 2 or "SLURM_PROCID" not in environment:
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    port = FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % PORTS
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": _local(environment, tasks),
        "MASTER_ADDR": first_node(nodes) or "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return {name: environment.get(name, value) for name, value in found.items()}


def _local(environment: Mapping[str, str], tasks: int) -> str:
    """Tasks on this node; SLURM_STEP_TASKS_PER_NODE is a list as "8(x2),4" """
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(count) for count, times in runs for _ in range(int(times or 1))]
    node = int(environment.get("SLURM_NODEID", 0))
    return str(counts[node] if node < len(counts) else tasks)


def first_node(nodes: str) -> str:
    """The first name of a list as Slurm writes it: "gpu[07-09,12],cpu1" gives "gpu07"."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def requeue() -> str:
    """How to have a scheduler's job run again; "" where there is none."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"; in Slurm: scontrol requeue {job}" if job else ""
