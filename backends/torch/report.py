"""A step's numbers on their way from the device: of all processes in one message, looked at a step later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triport.core.backend.learner import StepResult

HEAD = ("gradient_norm", "first_layer_gradient", "spread", "skipped", "scale")


@dataclass(frozen=True)
class Report:
    """A step that may still be computed; see triport.core.backend.learner.Pending."""

    host: Tensor  # for each rank its loss and flags, then HEAD, then the norm of each gradient
    done: torch.cuda.Event | None  # after it the numbers are there
    names: Sequence[str]  # of the gradients
    flags: int  # how many
    world: int
    scaled: bool  # whether gradients may overflow: then they are left out, and that is not an error

    def result(self) -> StepResult:
        """Wait for the device and return the numbers."""
        if self.done is not None:
            self.done.synchronize()
        numbers = self.host.tolist()
        each = 1 + self.flags
        ranks = [numbers[i * each : (i + 1) * each] for i in range(self.world)]
        head = dict(zip(HEAD, numbers[self.world * each :]))
        loss = sum(rank[0] for rank in ranks) / self.world
        extras = {} if math.isnan(head["spread"]) else {"spread": head["spread"]}
        if self.scaled:
            extras |= {"loss_scale": head["scale"], "skipped": head["skipped"]}
        return StepResult(
            loss=loss,
            gradient_norm=head["gradient_norm"],
            first_layer_gradient=head["first_layer_gradient"],
            bad=self._bad(loss, head, numbers[self.world * each + len(HEAD) :]),
            extras=extras,
            flags=tuple(int(max(rank[1 + i] for rank in ranks)) for i in range(self.flags)),
        )

    def _bad(self, loss: float, head: dict[str, float], norms: list[float]) -> str | None:
        if not math.isfinite(loss):
            return "loss"
        if math.isfinite(head["gradient_norm"]) or (self.scaled and head["scale"] >= 1):
            return None
        return next((name for name, norm in zip(self.names, norms) if not math.isfinite(norm)), "gradient norm")


def send(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the way to the host: where the numbers will be, and the event after which they are."""
    if not numbers.is_cuda:
        return numbers.clone(), None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return host, done


def spread(features: Tensor) -> Tensor:
    """As triport.core.model.spread, on the device; features (n, d) -> 0-d."""
    unit = torch.nn.functional.normalize(features.float(), dim=1, eps=1e-12).double()
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5
