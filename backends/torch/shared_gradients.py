"""Gradients of processes that compute on the CPUs of one machine: their means, in memory that all share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def __init__(self, parameters: Sequence[Tensor], means: shared_means.SharedMeans, changed: bool) -> None:
        """`changed`: whether someone changes gradients later, which must not be those that all read, then."""
        self.parameters, self.means, self.changed, self.within = parameters, means, changed, False
        self.own, self.mean = (_cut(torch.from_numpy(numbers), parameters) for numbers in (means.own, means.mean))
        for place, parameter in zip(self.own, parameters):
            parameter.register_post_accumulate_grad_hook(lambda p, place=place: self._take(p, place))

    def _take(self, parameter: Tensor, place: Tensor) -> None:
        if self.within and parameter.grad is not None:
            parameter.grad = place.copy_(parameter.grad)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, a backward pass, the last of a step; after it every gradient is the mean over the processes."""
        self.within = True
        try:
            yield
        finally:
            self.within = False
        with torch.no_grad():
            for parameter, place in zip(self.parameters, self.own):
                if parameter.grad is None:
                    place.zero_()
            self.means.average()
            for parameter, place, mean in zip(self.parameters, self.own, self.mean):
                if parameter.grad is not None:
                    parameter.grad = place.copy_(mean) if self.changed else mean


def share(parameters: Sequence[Tensor], peers: LocalPeers, changed: bool) -> SharedGradients | None:
    """Memory for the gradients of these parameters; None, on all processes, where there is none."""
    kinds = {parameter.dtype for parameter in parameters}
    if kinds not in ({torch.float32}, {torch.float64}):
        return None
    dtype = np.dtype(str(kinds.pop()).removeprefix("torch."))
    means = shared_means.share(peers, sum(parameter.numel() for parameter in parameters), dtype)
    return None if means is None else SharedGradients(parameters, means, changed)


def _cut(numbers: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A part of the numbers for each parameter, in its own memory format."""
    parts = numbers.split([parameter.numel() for parameter in parameters])
    return [part.as_strided(p.shape, p.stride(), part.storage_offset()) for part, p in zip(parts, parameters)]
