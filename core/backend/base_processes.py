"""What processes do alike on every framework, over its two collectives: rows of all of them, and sums."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from triport.core.backend import local_peers, shared_means
from triport.core.backend.tensors import Tensor, Tensors

MESSAGE = 1 << 25  # numbers that are averaged over the processes in one message, about


class BaseProcesses(ABC):
    """This process among its peers. `device` is where its tensors live."""

    peers: local_peers.LocalPeers | None = None  # where all are on one machine and compute on its CPUs

    @property
    def mixed(self) -> bool:
        """Whether pretraining runs in bfloat16 unless the user asks for something else."""
        return False

    def __init__(self, rank: int, world: int, device: Any) -> None:
        self.rank, self.world, self.device = rank, world, device
        self._memories: dict[tuple[str, int], shared_means.SharedMeans | None] = {}

    def find_peers(self) -> None:
        """Look whether the processes of a group on CPUs are on one machine, where less has to be sent."""
        if self.world > 1:
            self.peers = local_peers.connect(self.rank, self.world, self._gather_bytes)

    def leave_peers(self) -> None:
        """Close what `find_peers` has opened."""
        self._memories.clear()
        if self.peers is not None:
            self.peers.close()
            self.peers = None

    def _gather_bytes(self, own: bytes) -> list[bytes]:
        rows = self.gather_arrays(np.frombuffer(own, np.uint8).astype(np.int32))  # which every framework can send
        return [row.tobytes() for row in rows.astype(np.uint8).reshape(self.world, -1)]

    @abstractmethod
    def barrier(self, tag: str) -> None:
        """Wait for all processes; `tag` says for what."""

    def meet(self, tag: str) -> None:  # noqa: B027 (most need not)
        """Wait where the processes come at different times, if the framework's collectives would not wait."""

    @abstractmethod
    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes in rank order, without gradient; each brings the same number."""

    @abstractmethod
    def gather_arrays(self, rows: np.ndarray) -> np.ndarray:
        """`gather_rows` of an array, by way of the device."""

    @abstractmethod
    def reduce(self, value: Tensor) -> Tensor:
        """The sum over all processes; may change the tensor."""

    @abstractmethod
    def stop(self) -> None:
        """Leave the group."""

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The rows of all processes in rank order; each may bring another number of rows, also none."""
        if self.world == 1:
            return array
        self.meet("gather")
        rows = self.gather_arrays(np.array([len(array)], np.int64)).tolist()
        if max(rows) == 0:
            return array
        padded = np.zeros((max(rows), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        parts = self.gather_arrays(padded).reshape(self.world, *padded.shape)
        return np.concatenate([part[:count] for part, count in zip(parts, rows)])

    def average(self, values: Sequence[Tensor], tensors: Tensors) -> None:
        """Replace tensors by their means over the processes, in place: in shared memory, or many in one message."""
        if self.world == 1:
            return
        rest, shared = list(values), self._shared(values)
        with tensors.no_grad():
            if shared is not None:
                _average(rest, shared, tensors)
                return
            while rest:
                count, size = 0, 0
                while count < len(rest) and size < MESSAGE:
                    count, size = count + 1, size + _size(rest[count])
                now, rest = rest[:count], rest[count:]
                mean = self.reduce(tensors.concatenate([value.reshape([-1]) for value in now])) / self.world
                start = 0
                for value in now:
                    part = mean[start : start + _size(value)]
                    tensors.copy_into(value, part.reshape(list(value.shape)))
                    start += _size(value)

    def _shared(self, values: Sequence[Tensor]) -> shared_means.SharedMeans | None:
        """Memory of all processes for these tensors, which are kept for the next time; None where there is none."""
        types = {str(value.dtype).rpartition(".")[2] for value in values}
        if self.peers is None or types not in ({"float32"}, {"float64"}):
            return None
        kind = types.pop(), sum(_size(value) for value in values)
        if kind not in self._memories:
            self._memories[kind] = shared_means.share(self.peers, kind[1], np.dtype(kind[0]))
        return self._memories[kind]


def _average(values: Sequence[Tensor], shared: shared_means.SharedMeans, tensors: Tensors) -> None:
    """Means of tensors by way of memory that the processes share."""
    ends = np.cumsum([_size(value) for value in values])
    places = [slice(int(end) - _size(value), int(end)) for value, end in zip(values, ends)]
    for value, place in zip(values, places):
        shared.own[place] = value.numpy().reshape(-1)
    shared.average(zlib.crc32(ends.tobytes()).to_bytes(4, "big"))
    for value, place in zip(values, places):
        tensors.copy_into(value, tensors.from_host(shared.mean[place].reshape(list(value.shape))))
    values[-1].numpy()  # a framework that computes later has copied the others then


def _size(value: Tensor) -> int:
    return int(np.prod(list(value.shape), dtype=np.int64))
