"""float16 with loss scaling on GPUs, as PASSL trains (FP16 level O1): written after its description, not run on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from triport.backends.paddle.learner import Learner
from triport.backends.paddle.runtime import Tensor, paddle
from triport.core.backend.learner import StepResult
from triport.core.model.schedule import Values

FIRST_SCALE, PATIENCE = 65536.0, 2000  # the loss is multiplied by it; good steps after which it doubles


class ScaledLearner(Learner):
    """A learner whose loss is multiplied so that small gradients survive float16.

    Gradients that overflow halve the scale and the step is left out, as the scale begins too high on purpose.
    """

    scale, good = FIRST_SCALE, 0

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward()

    @paddle.no_grad()
    def average_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        super().average_gradients(gradients)
        for gradient in gradients.values():
            gradient.scale_(1 / self.scale)

    def update(self, total: Tensor, values: Values, flags: Sequence[int] = ()) -> StepResult:
        result = super().update(total, values, flags)
        extras = {**result.extras, "loss_scale": self.scale}
        if result.bad not in (None, "loss"):
            self.scale, self.good = self.scale / 2, 0
            return replace(result, bad=None, gradient_norm=0.0, first_layer_gradient=0.0, extras=extras)
        self.good += 1
        if self.good == PATIENCE:
            self.scale, self.good = self.scale * 2, 0
        return replace(result, extras=extras)

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimiser's state, and the scale with its count."""
        return {**super().optimizer_arrays(), "loss_scale": np.array([self.scale, self.good], np.float32)}

    def load(self, arrays: Mapping[str, np.ndarray], optimizer_arrays: Mapping[str, np.ndarray] | None) -> None:
        """Take over a checkpoint; one of a run without scaling leaves the scale as it is."""
        super().load(arrays, optimizer_arrays)
        if optimizer_arrays is not None and "loss_scale" in optimizer_arrays:
            scale, good = optimizer_arrays["loss_scale"].tolist()
            self.scale, self.good = scale, int(good)

    def autocast(self):  # type: ignore[no-untyped-def]
        return paddle.amp.auto_cast(enable=self.device.is_gpu_place(), dtype="float16", level="O1")


def make(recipe: Any, arrays: Any, *, processes: Any, device: str = "auto", **rest: Any) -> Learner:
    """As triport.backends.paddle.learner.make, for float16."""
    return ScaledLearner(recipe, arrays, processes)
