"""Processes: start, rank, gather and reduce, over TCP on CPUs and nccl on GPUs; one process needs no group."""

from __future__ import annotations

import os

import numpy as np

from triport.backends.oneflow.runtime import Tensor, flow
from triport.core.backend.base_processes import BaseProcesses
from triport.core.errors import UserError


class Processes(BaseProcesses):
    """This process among its peers. `device` is where its tensors live."""

    def barrier(self, tag: str) -> None:
        """Wait for all processes; `tag` says for what."""
        if self.world > 1:
            flow.comm.barrier()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order, without gradient; each brings the same number."""
        if self.world == 1:
            return rows
        # not flow.empty, which is on the device of rank 0 everywhere
        every = [flow.zeros_like(rows) for _ in range(self.world)]
        flow.comm.all_gather(every, rows.detach().contiguous())
        return flow.cat(every)

    def gather_arrays(self, rows: np.ndarray) -> np.ndarray:
        """`gather_rows` of an array."""
        return self.gather_rows(flow.from_numpy(rows).to(self.device)).cpu().numpy()

    def reduce(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            flow.comm.all_reduce(value)
        return value

    def stop(self) -> None:
        """Leave the group, all processes at once: the last to communicate would miss the first to leave."""
        self.leave_peers()
        self.barrier("stop")


def start(device: str = "auto") -> Processes:
    """Join the group that the launcher's environment describes (RANK, WORLD_SIZE, LOCAL_RANK), or stand alone."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world if rank == local else 1))  # OneFlow's launcher does not say
    if world > here and flow.env.get_node_size() == 1:
        # It finds devices by the rank within a machine, so these would wait for each other for ever.
        raise UserError("OneFlow cannot make two nodes of one machine: use --processes, or the address of another.")
    chosen = choose(device, local)
    if chosen.type == "cpu":
        _compute_on_scheduler()
    processes = Processes(rank, world, chosen)
    if chosen.type == "cpu":
        processes.find_peers()
    return processes


def _compute_on_scheduler() -> None:
    """Let the thread that schedules kernels run them too: it spins while another one does, for which it needs a core.

    Source: VirtualMachine::ScheduleLoop and StreamPolicy::OnSchedulerThread. It counts before the first kernel alone.
    """
    os.environ.setdefault("ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD", "0")


def choose(device: str, local_rank: int) -> flow.device:
    """Return the device asked for; "auto" is CUDA, else the CPU. A device that is not there would end the process."""
    cuda = flow.cuda.is_available()
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if device == "cuda" and cuda:
        flow.cuda.set_device(local_rank)
        return flow.device("cuda", local_rank)
    if device in ("cuda", "mps"):
        raise UserError(f"device '{device}' is not usable here: take --device cpu, or see `triport doctor`")
    if device != "cpu":
        raise UserError(f"unknown device '{device}': take auto, cpu or cuda")
    return flow.device("cpu", local_rank)
