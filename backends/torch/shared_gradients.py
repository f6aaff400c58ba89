"""Gradients of processes that compute on the CPUs of one machine: their means, in memory that all share."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from triport.core.backend import shared_means
from triport.core.backend.local_peers import LocalPeers


class SharedGradients:
    """The gradients of some parameters, here and on the other processes, which have the same ones.

    Within `averaged`, a gradient goes to shared memory as soon as it is there, while it is still in the cache.
    """

    def __init__(self, parameters: Sequence[Tensor], means: shared_means.SharedMeans, in_place: bool) -> None:
        """in_place: gradients are clipped or divided in place later, so that each process needs means of its own."""
        self.parameters, self.means, self.in_place, self.within = parameters, means, in_place, False
        self.own, self.mean = (_cut(torch.from_numpy(numbers), parameters) for numbers in (means.own, means.mean))
        for place, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(_taking(weakref.ref(self), place))

    def take(self, place: int) -> None:
        """Move a parameter's gradient into shared memory, if it is the step's last one."""
        parameter, own = self.parameters[place], self.own[place]
        if self.within and parameter.grad is not None:
            parameter.grad = own.copy_(parameter.grad)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, a backward pass, the last of a step; after it every gradient is the mean over the processes."""
        self.within = True
        try:
            yield
        finally:
            self.within = False
        with torch.no_grad():
            for parameter, own in zip(self.parameters, self.own):
                if parameter.grad is None:
                    own.zero_()
                elif parameter.grad.data_ptr() != own.data_ptr():  # an earlier micro-batch's alone
                    own.copy_(parameter.grad)
            present = bytes(parameter.grad is not None for parameter in self.parameters)
            self.means.average(zlib.crc32(present).to_bytes(4, "big"))
            for parameter, own, mean in zip(self.parameters, self.own, self.mean):
                if parameter.grad is not None:
                    parameter.grad = own.copy_(mean) if self.in_place else mean


def _taking(owner: weakref.ref[SharedGradients], place: int) -> Callable[[Tensor], None]:
    """What a parameter calls when its gradient is there. It holds nothing alive: no collector sees through a hook."""

    def take(_: Tensor) -> None:
        if (gradients := owner()) is not None:
            gradients.take(place)

    return take


def share(parameters: Sequence[Tensor], peers: LocalPeers, in_place: bool) -> SharedGradients | None:
    """Memory for the gradients of these parameters; None, on all processes, where there is none."""
    kinds = {parameter.dtype for parameter in parameters}
    if kinds not in ({torch.float32}, {torch.float64}):
        return None
    dtype = np.dtype(str(kinds.pop()).removeprefix("torch."))
    means = shared_means.share(peers, sum(parameter.numel() for parameter in parameters), dtype)
    return None if means is None else SharedGradients(parameters, means, in_place)


def _cut(numbers: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A part of the numbers for each parameter, in its own memory format."""
    parts = numbers.split([parameter.numel() for parameter in parameters])
    return [part.as_strided(p.shape, p.stride(), part.storage_offset()) for part, p in zip(parts, parameters)]
