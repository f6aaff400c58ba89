"""Processes: start, rank, gather and reduce, with gloo on CPUs and nccl on GPUs; one process needs no group."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import time
from typing import Union

import numpy as np

from triport.backends.paddle.kernels import global_store
from triport.backends.paddle.runtime import Tensor, dist, muted, paddle
from triport.core.backend.base_processes import BaseProcesses
from triport.core.backend.local_peers import LARGEST
from triport.core.errors import UserError

Place = Union[paddle.CPUPlace, paddle.CUDAPlace]
PATIENCE = 120.0  # seconds in which the processes of a job must find each other
SENT = (paddle.float32, paddle.float64, paddle.int32, paddle.int64)  # through sockets, on one machine
GPU = "FLAGS_selected_gpus"  # the launcher says which one a process shall take


class Processes(BaseProcesses):
    """This process among its peers. `device` is where its tensors live."""

    def __init__(self, rank: int, world: int, device: Place) -> None:
        super().__init__(rank, world, device)
        self._gate = _Gate(rank, world) if world > 1 else None

    def barrier(self, tag: str) -> None:
        """Wait for all processes; `tag` says for what."""
        if self._gate is not None:
            self._gate.wait(tag)

    def meet(self, tag: str) -> None:
        """As a barrier: gloo gives up after 30 s."""
        self.barrier(tag)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order, without gradient; each brings the same number."""
        if self.world == 1:
            return rows
        sent = self._every(rows)
        if sent is not None:
            return paddle.to_tensor(np.concatenate(sent))
        every: list[Tensor] = []
        dist.all_gather(every, rows.detach().contiguous())
        return paddle.concat(every)

    def gather_arrays(self, rows: np.ndarray) -> np.ndarray:
        """`gather_rows` of an array."""
        return self.gather_rows(paddle.to_tensor(rows)).numpy()

    @paddle.no_grad()
    def reduce(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            sent = self._every(value)
            if sent is not None:
                return paddle.to_tensor(sent.sum(0))
            wide = value.astype("float32") if value.dtype == paddle.float16 else value  # gloo sums float16 to infinity
            dist.all_reduce(wide)
            return wide.astype(value.dtype)
        return value

    def _every(self, value: Tensor) -> np.ndarray | None:
        """(...) -> (processes, ...), by way of sockets; None where there are none, or it is large or half a number."""
        whole = value.size * value.element_size() * self.world
        if self.peers is None or value.dtype not in SENT or not 0 < whole <= LARGEST:
            return None
        own = value.detach().numpy()
        return np.frombuffer(self.peers.gather(own.tobytes()), own.dtype).reshape(self.world, *own.shape)

    def stop(self) -> None:
        """Leave the group."""
        self.leave_peers()
        if self._gate is not None:
            self._gate.close()


class _Gate:
    """Where processes wait for each other as long as it takes: rank 0 waits for a call of each, then answers.

    gloo's collectives end after 30 s whatever they are told, so there is a wait before all that may be reached at
    different times. Paddle's own store could serve, but takes 45 ms for each request.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        store = global_store()
        key = f"triport/gate/{int(store.add(f'triport/gates/{rank}', 1))}"
        master = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
        host = master.rpartition(":")[0]
        if rank > 0:
            port, word = store.get(key).decode().split()
            self.peers = {0: socket.create_connection((host, int(port)), PATIENCE)}
            self.peers[0].sendall(f"{word} {rank:8}".encode())
        else:
            word = secrets.token_hex(16)
            with socket.create_server((host, 0), backlog=world) as server:
                store.set(key, f"{server.getsockname()[1]} {word}".encode())
                self.peers = _receive(server, word, world)
        for peer in self.peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # for machines that vanish
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000)

    def wait(self, tag: str) -> None:
        """Return when all are here. Raises RuntimeError where one has ended."""
        if self.rank == 0:
            for rank, peer in self.peers.items():
                self._hear(rank, peer, tag)
        for rank, peer in self.peers.items():
            with contextlib.suppress(OSError):  # who has ended is found out by listening
                peer.sendall(b".")
            if self.rank > 0:
                self._hear(rank, peer, tag)

    def _hear(self, rank: int, peer: socket.socket, tag: str) -> None:
        word = b""
        with contextlib.suppress(OSError):
            word = peer.recv(1)
        if not word:
            raise RuntimeError(f"rank {rank} ended while rank {self.rank} waited for it ({tag})")

    def close(self) -> None:
        """Hang up when all are here."""
        with contextlib.suppress(RuntimeError):
            self.wait("stop")
        for peer in self.peers.values():
            peer.close()


def _receive(server: socket.socket, word: str, world: int) -> dict[int, socket.socket]:
    """Wait until every other process has called with the word that only they know: rank -> connection.

    Calls that stay silent or say something else hold nobody up. RuntimeError where nobody called for PATIENCE seconds.
    """
    peers: dict[int, socket.socket] = {}
    calls: dict[socket.socket, bytes] = {}  # what each has sent so far
    length, deadline = len(word) + 9, time.monotonic() + PATIENCE
    while len(peers) < world - 1:
        ready = select.select([server, *calls], [], [], max(deadline - time.monotonic(), 0))[0]
        if not ready:
            raise RuntimeError(f"only {len(peers) + 1} of {world} processes were there after {PATIENCE:.0f} s")
        for call in ready:
            if call is server:
                calls[server.accept()[0]] = b""
                continue
            with contextlib.suppress(OSError):
                calls[call] += (part := call.recv(length - len(calls[call])))
                if part and len(calls[call]) < length:
                    continue
            message = calls.pop(call).decode(errors="replace")
            if len(message) == length and message.startswith(f"{word} "):
                peers[int(message.split()[1])] = call
                deadline = time.monotonic() + PATIENCE
            else:
                call.close()
    for call in calls:
        call.close()
    return peers


def start(device: str = "auto") -> Processes:
    """Join the group that the launcher's environment describes (PADDLE_TRAINER_ID and so on), or stand alone."""
    rank, world = int(os.environ.get("PADDLE_TRAINER_ID", 0)), int(os.environ.get("PADDLE_TRAINERS_NUM", 1))
    chosen = choose(device, int(os.environ.get(GPU, "0").split(",")[0]))
    if world > 1 and not dist.is_initialized():
        if chosen.is_cpu_place():
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        with muted():
            dist.init_parallel_env()
    processes = Processes(rank, world, chosen)
    if chosen.is_cpu_place():
        processes.find_peers()
    return processes


def choose(device: str, local_rank: int) -> Place:
    """Return the device asked for; "auto" is a GPU where Paddle was built for them and there is one, else the CPU."""
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if device not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"unknown device '{device}': take auto, cpu or gpu")
    if device in ("gpu", "cuda") and not gpus:
        raise UserError(f"device '{device}' is not usable here: take --device cpu, or see `triport doctor`")
    return paddle.set_device(f"gpu:{local_rank}" if gpus and device != "cpu" else "cpu")
