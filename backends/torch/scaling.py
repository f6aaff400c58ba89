"""Dynamic loss scaling for float16, as torch.amp.GradScaler does it, for an update rule of our own.

GradScaler knows torch.optim's optimizers alone; the two functions of `torch` with an underscore are those it calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from triport.core.backend.scaled import BACKOFF, FIRST_SCALE, GROWTH, PATIENCE


class Scaling:
    """The factor of the loss: halved where a gradient overflows, doubled after many steps where none does."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), FIRST_SCALE, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)  # steps in a row

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Divide this process's gradients by the factor, in place; return 1 where one is not finite, else 0."""
        found = torch.zeros((), device=self.scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), found, self.scale.reciprocal())
        return found

    def update(self, found: Tensor) -> None:
        """Change the factor after a step."""
        torch._amp_update_scale_(self.scale, self._good, found, GROWTH, BACKOFF, PATIENCE)

    def arrays(self) -> dict[str, np.ndarray]:
        """The factor and the good steps in a row, for a checkpoint; as `triport.core.backend.scaled` has them."""
        return {"loss_scale": np.array([float(self.scale), int(self._good)], np.float32)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a checkpoint; one of a run without scaling leaves the factor as it is."""
        if "loss_scale" in arrays:
            scale, good = arrays["loss_scale"].tolist()
            self.scale.fill_(scale)
            self._good.fill_(int(good))
