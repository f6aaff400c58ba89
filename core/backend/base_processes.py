"""What processes do alike on every framework, over its two collectives: rows of all of them, and sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from triport.core.backend.tensors import Tensor, Tensors

MESSAGE = 1 << 25  # numbers that are averaged over the processes in one message, about


class BaseProcesses(ABC):
    """This process among its peers. `device` is where its tensors live."""

    @property
    def mixed(self) -> bool:
        """Whether pretraining runs in bfloat16 unless the user asks for something else."""
        return False

    def __init__(self, rank: int, world: int, device: Any) -> None:
        self.rank, self.world, self.device = rank, world, device

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
        """Replace tensors by their means over the processes, in place, many in one message."""
        if self.world == 1:
            return
        rest = list(values)
        with tensors.no_grad():
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


def _size(value: Tensor) -> int:
    return int(np.prod(list(value.shape), dtype=np.int64))
