"""What a backend offers to the loop: processes that can gather, and a learner that steps and embeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from triport.core.model.schedule import Values

if TYPE_CHECKING:
    from triport.core.data.loader import Batch


class Processes(Protocol):
    """The processes of one training. One process is `Alone`."""

    rank: int
    world: int

    def barrier(self, tag: str) -> None:
        """Wait for all ranks; `tag` names the place in error messages."""

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks in rank order; ranks may have different numbers of rows, also none."""

    def stop(self) -> None:
        """Leave the group."""


@dataclass
class Alone:
    """One process that needs no others."""

    rank: int = 0
    world: int = 1

    def barrier(self, tag: str) -> None:
        """Nobody to wait for."""

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Return the rows as they are."""
        return array

    def stop(self) -> None:
        """Nothing to leave."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step reports. The first four are of the whole batch and the same on every rank.

    extras: measures for the journal, of this rank's last micro-batch: "spread" of MoCo's first view.
    """

    loss: float  # mean over micro-batches and ranks
    gradient_norm: float  # of all trained parameters, before clipping
    first_layer_gradient: float  # norm of the gradient of the first trained layer
    bad: str | None = None  # first tensor that is not finite: "loss" or a canonical name; then nothing was updated
    extras: dict[str, float] = field(default_factory=dict)
    flags: tuple[int, ...] = ()  # of those given to the step the largest over the ranks, where the learner is late
    features: np.ndarray | None = None  # (n, width) of this rank's images, where the learner `gives_features`


class Pending(Protocol):
    """A step whose numbers are still on the device."""

    def result(self) -> StepResult:
        """Wait for them."""


def settled(step: StepResult | Pending) -> StepResult:
    """Return the numbers of a step, waiting for them if need be."""
    return step if isinstance(step, StepResult) else step.result()


class Learner(Protocol):
    """A model with its objective and optimiser on one rank."""

    gives_features: bool  # whether steps of pretraining give the encoder's features, detached, for an online probe

    def step(self, batches: Sequence[Batch], values: Values) -> StepResult:
        """Accumulate over the micro-batches, reduce over the ranks, clip, update."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width), float32 or the precision of the run, of images (n, C, H, W), in evaluation mode."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of images, in evaluation mode; classifiers only."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything of the model under canonical names: parameters, buffers, the momentum encoder."""

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimiser's state: "exp_avg/<name>", "exp_avg_sq/<name>", "mu/<name>", "average/<name>", "step"."""

    def load(self, arrays: dict[str, np.ndarray], optimizer_arrays: dict[str, np.ndarray] | None) -> None:
        """Take over a state, exactly."""

    def memory(self) -> int:
        """Peak bytes of this process or its device."""


class Autoencoder(Protocol):
    """What the learner of a masked autoencoder offers besides."""

    def reconstruct(self, images: np.ndarray, mask_noise: np.ndarray) -> dict[str, np.ndarray]:
        """Of images (n, C, H, W) under noise (n, patches): mask, prediction (n, patches, values), loss."""


class Source(Protocol):
    """What the loop asks of triport.core.data.loader.Loader."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[Sequence[Batch]]:
        """The micro-batches of each optimiser step from `start_step` on."""


def share(processes: Processes, text: str) -> str:
    """Return rank 0's text on every rank."""
    if processes.world == 1:
        return text
    # A leading blank, so that even an empty text has a row to gather.
    own = f" {text}".encode("utf-8", "surrogateescape") if processes.rank == 0 else b""
    return bytes(processes.gather(np.frombuffer(own, np.uint8))).decode("utf-8", "surrogateescape")[1:]
