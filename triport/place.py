"""Where a run takes place, and the environment variables that its framework needs there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triport import environments
from triport.core.machine import amd_with_avx2

# What a launcher tells its ranks. Left over in a shell, it would make a new run wait for peers that are not there.
RANK_VARIABLES = (
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT "
    "PADDLE_TRAINER_ID PADDLE_TRAINERS_NUM PADDLE_TRAINER_ENDPOINTS PADDLE_CURRENT_ENDPOINT PADDLE_GLOBAL_RANK "
    "PADDLE_LOCAL_RANK PADDLE_RANK_IN_NODE PADDLE_GLOBAL_SIZE PADDLE_LOCAL_SIZE PADDLE_NNODES PADDLE_MASTER "
    "PADDLE_NPROC_PER_NODE PADDLE_RANK PADDLE_LOG_DIR PADDLE_DEVICES"
).split()


@dataclass(frozen=True)
class Place:
    """Where a run takes place: framework, interpreter, processes on this node, nodes."""

    framework: str
    python: Path
    processes: int = 1
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None  # host:port of node 0

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes


def variables(place: Place) -> dict[str, str]:
    """Return the environment of a run: the shell's, and what the framework needs where the shell does not say."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = str(max(1, cores // place.processes))
    wanted: dict[str, str] = {}
    if place.framework == "torch" and place.processes > 1:
        wanted = {"OMP_NUM_THREADS": share}
    if place.framework == "paddle":
        # Importing Paddle sets OMP_NUM_THREADS=1 where it is unset.
        wanted = {"OMP_NUM_THREADS": share, "GLOG_minloglevel": "2"}
        wanted["PYTHONWARNINGS"] = "ignore:No ccache found:UserWarning"
        if not any(place.python.parent.parent.glob("lib/python3*/site-packages/paddlepaddle_gpu-*")):
            wanted["PADDLE_DISTRI_BACKEND"] = "gloo"
        if amd_with_avx2():  # its math library takes a slow path on AMD otherwise
            wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    if place.framework == "oneflow":
        wanted = {"OMP_NUM_THREADS": share, "GLOG_minloglevel": "3"}
        if amd_with_avx2():  # its OpenBLAS takes new AMD processors for old ones without AVX
            wanted["OPENBLAS_CORETYPE"] = "Haswell"
    return environments.with_project({**wanted, **os.environ})


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what an earlier launcher may have left in the shell."""
    return {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
