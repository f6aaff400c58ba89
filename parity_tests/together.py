"""Several ranks as threads of one process: real gathers and barriers, for tests of what stands above the backends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Threads:
    """Processes (see core.learner) whose ranks are threads that share a table."""

    def __init__(self, rank: int, world: int, table: dict[int, Any], gate: threading.Barrier) -> None:
        self.rank, self.world, self._table, self._gate = rank, world, table, gate

    def barrier(self, tag: str) -> None:
        self._table[self.rank] = tag
        self._gate.wait()
        assert set(self._table.values()) == {tag}, self._table
        self._gate.wait()

    def gather(self, array: np.ndarray) -> np.ndarray:
        self._table[self.rank] = array
        self._gate.wait()
        rows = np.concatenate([self._table[rank] for rank in range(self.world)])
        self._gate.wait()
        return rows

    def stop(self) -> None:
        self.barrier("stop")


def together(world: int, work: Callable[[Threads], T]) -> list[T]:
    """Run `work` on every rank at once and return the results in rank order; the first error is raised here."""
    table: dict[int, Any] = {}
    gate = threading.Barrier(world, timeout=60)
    results: list[Any] = [None] * world
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, world, table, gate))
        except threading.BrokenBarrierError:
            pass  # another rank failed, and its error counts
        except BaseException as error:
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
