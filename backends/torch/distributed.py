"""Processes: start, rank, gather and reduce, with gloo on CPUs and nccl on GPUs; one process needs no group."""

from __future__ import annotations

import os
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from triport.core import cluster
from triport.core.backend import local_peers
from triport.core.backend.base_processes import BaseProcesses
from triport.core.errors import UserError


class Processes(BaseProcesses):
    """This process among its peers. `device` is where its tensors live."""

    @property
    def mixed(self) -> bool:
        """Whether the device computes in bfloat16 at full speed."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def barrier(self, tag: str) -> None:
        """Wait for all processes; `tag` says for what."""
        if self.world > 1:
            dist.barrier()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order, without gradient; each brings the same number."""
        if self.world == 1:
            return rows
        if self._is_small(rows):
            return self._every(rows).flatten(0, 1)
        every = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(every, rows.contiguous())
        return torch.cat(every)

    def gather_arrays(self, rows: np.ndarray) -> np.ndarray:
        """`gather_rows` of an array."""
        return self.gather_rows(torch.from_numpy(rows).to(self.device)).cpu().numpy()

    def reduce(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world == 1:
            return value
        if self._is_small(value):
            return value.copy_(self._every(value).sum(0))
        dist.all_reduce(value)
        return value

    def _is_small(self, value: Tensor) -> bool:
        """Whether it goes the short way, where there is one."""
        return self.peers is not None and not value.is_cuda and 0 < value.nbytes * self.world <= local_peers.LARGEST

    def _every(self, value: Tensor) -> Tensor:
        """(...) -> (processes, ...), by way of sockets."""
        assert self.peers is not None
        own = value.detach().contiguous()
        every = self.peers.gather(own.view(-1).view(torch.uint8).numpy().data)
        return torch.frombuffer(every, dtype=value.dtype).view(self.world, *value.shape)

    def stop(self) -> None:
        """Leave the group."""
        self.leave_peers()
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(device: str = "auto") -> Processes:
    """Join the group that the launcher's environment describes (RANK, WORLD_SIZE, LOCAL_RANK), or stand alone.

    Slurm's srun describes it in words of its own.
    """
    torch.set_float32_matmul_precision("highest")  # float32 means float32: no TF32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # shapes never change: the fastest convolution of each is worth a search
    cluster.drop_no_rank(os.environ)
    os.environ.update(cluster.slurm_ranks(os.environ))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose(device, int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1 and chosen.type == "mps":  # no collective of PyTorch's knows it
        if device != "auto":
            raise UserError("several processes cannot share 'mps': take one process, or --device cpu")
        chosen = torch.device("cpu")
    if world > 1:
        # a rank may evaluate, save or read data for long while the others wait
        kind, wait = "nccl" if chosen.type == "cuda" else "gloo", timedelta(hours=2)
        file = os.environ.get("TRIPORT_STORE")  # on one machine: the port of another store would be open to everyone
        store = dist.FileStore(file, world) if file else None
        dist.init_process_group(
            kind, timeout=wait, store=store, rank=rank if store else -1, world_size=world if store else -1
        )
    processes = Processes(rank, world, chosen)
    if chosen.type == "cpu":
        processes.find_peers()
    return processes


def choose(device: str, local_rank: int) -> torch.device:
    """Return the device asked for; "auto" is CUDA, else MPS, else the CPU."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    if device == "cuda" and cuda:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if device in ("cuda", "mps") and not (device == "mps" and mps):
        raise UserError(f"device '{device}' is not usable here: take --device cpu, or see `triport doctor`")
    if device not in ("cpu", "mps"):
        raise UserError(f"unknown device '{device}': take auto, cpu, cuda or mps")
    return torch.device(device)
