"""Means over the processes of one machine of many numbers, in memory that they share: no message carries a number.

Each process writes into a part of its own; then each adds up its share of all parts, in rank order, for all others.
A collective of gloo copies 450 MB of gradients from thread to thread meanwhile, beside the computation, whose cores
it takes (benchmarks/README.md).
"""

from __future__ import annotations

import mmap
import os
import socket

import numpy as np

from triport.core.backend.local_peers import LocalPeers
from triport.core.machine import nameless_memory

BLOCK = 1 << 15  # numbers that are added up at a time: they stay in a core's cache
ALIGN = 64  # bytes


class SharedMeans:
    """Memory for `size` numbers of each process and for their means."""

    def __init__(self, peers: LocalPeers, memory: mmap.mmap, size: int, dtype: np.dtype) -> None:
        step = _padded(size, dtype)
        parts = [np.frombuffer(memory, dtype, size, i * step) for i in range(peers.world + 1)]
        self.peers, self.parts, self.mean, self.own = peers, parts[:-1], parts[-1], parts[peers.rank]

    def average(self, what: bytes = b"\0") -> None:
        """Fill `mean`, the same for all, as soon as all processes have come here with their `own`.

        It stays as it is until all come here again; `own` is this process's again when this is done. what: must be the
        same on all of them, or a RuntimeError says that they have come with different things.
        """
        world = self.peers.world
        if self.peers.gather(what) != what * world:
            raise RuntimeError("the processes of this run have gradients of different parameters")
        first, last = (len(self.mean) * (self.peers.rank + i) // world for i in range(2))
        with np.errstate(all="ignore"):  # whoever looks at a step that is not finite says so
            for start in range(first, last, BLOCK):
                block = slice(start, min(start + BLOCK, last))
                out = self.mean[block]
                np.add(self.parts[0][block], self.parts[1][block], out=out)
                for part in self.parts[2:]:
                    out += part[block]
                out /= world
        self.peers.gather(b"\0")


def share(peers: LocalPeers, size: int, dtype: np.dtype) -> SharedMeans | None:
    """Memory that all processes share, for as long as one of them lives; None, on all of them, where there is none."""
    descriptor, whole = None, _padded(size, dtype) * (peers.world + 1)
    try:
        if peers.rank == 0:
            descriptor = _made(whole)
            for link in peers.links:
                socket.send_fds(link, [b"\0"], [] if descriptor is None else [descriptor])
        else:
            received = socket.recv_fds(peers.links[0], 1, 1)[1]
            descriptor = received[0] if received else None
        memory = None if descriptor is None else _mapped(descriptor, whole)
    except ConnectionError as error:
        raise RuntimeError(f"another process of this run has ended ({error})") from error
    except OSError as error:
        raise RuntimeError(f"the memory of this run's gradients cannot be handed on ({error})") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if b"\0" in peers.gather(b"\0" if memory is None else b"\1"):
        return None
    assert memory is not None
    return SharedMeans(peers, memory, size, dtype)


def _padded(size: int, dtype: np.dtype) -> int:
    return -(-size * dtype.itemsize // ALIGN) * ALIGN


def _made(size: int) -> int | None:
    descriptor = None
    try:
        descriptor = nameless_memory("triport-means")
        os.ftruncate(descriptor, size)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _mapped(descriptor: int, size: int) -> mmap.mmap | None:
    try:
        return mmap.mmap(descriptor, size)
    except (OSError, ValueError):
        return None
