"""Batches on their way to a device with memory of its own: through pinned memory, on a stream beside the computation.

While a step computes, the next one's batch is copied. The loader's memory is free for another batch as soon as the
batch stands in pinned memory; pinned memory is used again only when the copy out of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from triport.core.data.batches import Batch

DEPTH = 2  # pinned copies of each array: one on its way, one being filled


class Transfer(Protocol):
    """What a device offers: pinned memory, and copies that are begun here and waited for elsewhere."""

    def pinned(self, like: Tensor) -> Tensor:
        """Memory of this shape and type that the device reads by itself."""

    def begin(self, source: Tensor) -> tuple[Tensor, Any]:
        """Start copying to the device; the copy, and a mark of its end."""

    def finish(self, mark: Any) -> None:
        """Wait here for a copy's end."""

    def use(self, copy: Tensor, mark: Any) -> None:
        """Let what is computed from now on wait for a copy's end."""


class CudaTransfer:
    """With a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def pinned(self, like: Tensor) -> Tensor:
        """See Transfer."""
        return torch.empty_like(like, pin_memory=True)

    def begin(self, source: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """See Transfer."""
        with torch.cuda.stream(self.stream):
            copy = source.to(self.device, non_blocking=True)
            mark = torch.cuda.Event()
            mark.record(self.stream)
        return copy, mark

    def finish(self, mark: torch.cuda.Event) -> None:
        """See Transfer."""
        mark.synchronize()

    def use(self, copy: Tensor, mark: torch.cuda.Event) -> None:
        """See Transfer."""
        now = torch.cuda.current_stream(self.device)
        now.wait_event(mark)
        copy.record_stream(now)  # its memory is not given away while it is read


@dataclass
class _Pinned:
    """Pinned memory for one array, and the mark of the last copy out of it."""

    memory: Tensor
    mark: Any = None


@dataclass
class Staged:
    """A micro-batch that is on the device or on its way."""

    labels: np.ndarray  # (n,), on the host
    copies: dict[str, tuple[Tensor, Any]] = field(default_factory=dict)


class Feed:
    """Stages micro-batches; `arrays` says which arrays of a batch go to the device, under which names."""

    def __init__(self, transfer: Transfer, arrays: Callable[[Batch], Mapping[str, np.ndarray]]) -> None:
        self.transfer, self.arrays = transfer, arrays
        self._pinned: dict[tuple[str, tuple[int, ...]], list[_Pinned]] = {}

    def ahead(self, steps: Iterable[Sequence[Batch]]) -> Iterator[list[Staged]]:
        """The steps' batches, staged when they are asked for: the step before is then being computed."""
        for batches in steps:
            staged = [self.stage(batch) for batch in batches]
            del batches  # the loader's memory is free
            yield staged

    def stage(self, batch: Batch) -> Staged:
        """Begin to copy a micro-batch."""
        staged = Staged(np.array(batch.labels))
        for name, array in self.arrays(batch).items():
            source = torch.from_numpy(np.ascontiguousarray(array))
            place = self._place(name, source)
            place.memory.copy_(source)
            copy, place.mark = self.transfer.begin(place.memory)
            staged.copies[name] = copy, place.mark
        return staged

    def _place(self, name: str, source: Tensor) -> _Pinned:
        """Pinned memory that no copy reads any more."""
        places = self._pinned.setdefault((name, tuple(source.shape)), [])
        if len(places) < DEPTH:
            places.append(_Pinned(self.transfer.pinned(source)))
        else:
            places.append(places.pop(0))  # the one that was used longest ago
            if places[-1].mark is not None:
                self.transfer.finish(places[-1].mark)
        return places[-1]

    def take(self, staged: Staged) -> dict[str, Tensor]:
        """A staged micro-batch's tensors, for what is computed from now on."""
        for copy, mark in staged.copies.values():
            self.transfer.use(copy, mark)
        return {name: copy for name, (copy, _) in staged.copies.items()}


def normalised(images: Tensor, table: Tensor) -> Tensor:
    """uint8 (n, height, width, channels) -> float32 (n, channels, height, width) in channels-last memory.

    table (channels, 256): what each byte becomes; the bits are those of triport.core.augment.pixels.normalise.
    """
    channels = table.shape[0]
    first = torch.arange(channels, device=images.device, dtype=torch.int32) * table.shape[1]
    return table.flatten()[images.int() + first].permute(0, 3, 1, 2)


def mask(noise: Tensor, visible: int) -> dict[str, Tensor]:
    """As triport.core.model.masking.mask, on the device."""
    shuffle = torch.argsort(noise, dim=1, stable=True)
    restore = torch.argsort(shuffle, dim=1, stable=True)
    return {"visible": shuffle[:, :visible], "restore": restore, "mask": (restore >= visible).to(noise.dtype)}
