"""Learners whose loss is made large in float16, so that small gradients do not become 0; the host counts the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from triport.core.backend.base_learner import BaseLearner
from triport.core.backend.tensors import Arrays, Tensor
from triport.core.model.schedule import Values

FIRST_SCALE, PATIENCE = 65536.0, 2000  # the loss is multiplied by it; good steps after which it grows
GROWTH, BACKOFF = 2.0, 0.5  # of the scale, after so many good steps and after an overflow: torch.amp.GradScaler's


class ScaledLearner(BaseLearner):
    """A learner that multiplies the loss by `scale` where it is `scaled`.

    Gradients that overflow halve the scale and the step is left out, as the scale begins too high on purpose.
    """

    scaled, scale, good = False, FIRST_SCALE, 0

    def backward(self, loss: Tensor) -> None:
        """Of the scaled loss."""
        super().backward(loss * self.scale if self.scaled else loss)

    def average_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """And divide them by the scale."""
        super().average_gradients(gradients)
        if self.scaled:
            with self.tensors.no_grad():
                for gradient in gradients.values():
                    self.tensors.copy_into(gradient, gradient * (1 / self.scale))

    def update(self, total: Tensor, values: Values, flags: Sequence[int] = ()) -> Any:
        """The step's result says "loss_scale"; a step that is left out has norms of 0."""
        result = super().update(total, values, flags)
        if not self.scaled:
            return result
        extras = {**result.extras, "loss_scale": self.scale}
        if result.bad not in (None, "loss") and self.scale >= 1:
            self.scale, self.good = self.scale * BACKOFF, 0
            return replace(result, bad=None, gradient_norm=0.0, first_layer_gradient=0.0, extras=extras)
        self.good = self.good + 1 if result.bad is None else 0
        if self.good == PATIENCE:
            self.scale, self.good = self.scale * GROWTH, 0
        return replace(result, extras=extras)

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimizer's state, and the scale with its count."""
        state = super().optimizer_arrays()
        return {**state, "loss_scale": np.array([self.scale, self.good], np.float32)} if self.scaled else state

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint; one of a run without scaling leaves the scale as it is."""
        super().load(arrays, optimizer_arrays)
        if self.scaled and optimizer_arrays is not None and "loss_scale" in optimizer_arrays:
            scale, good = optimizer_arrays["loss_scale"].tolist()
            self.scale, self.good = scale, int(good)
