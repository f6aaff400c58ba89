"""What the training loop drives, on OneFlow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from triport.backends.oneflow import build, graph, optim
from triport.backends.oneflow.classify import classification_loss
from triport.backends.oneflow.distributed import Processes
from triport.backends.oneflow.numerics import half, refuse
from triport.backends.oneflow.runtime import Tensor
from triport.backends.oneflow.tensors import Tensors
from triport.core.backend.scaled import ScaledLearner
from triport.core.spec import Recipe


class Learner(ScaledLearner):
    """A model, its optimizer and its recipe on one process among several."""

    loss = staticmethod(classification_loss)

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Processes,
        precision: str = "float32",
        compile: bool | None = False,
    ) -> None:
        self.precision, device = precision, processes.device
        refuse(precision, device)
        model = build.build(recipe.model, arrays, precision).to(device)
        super().__init__(recipe, model, Tensors(recipe.model, device, precision), processes, optim.RULES)
        self.scaled = precision == "float16"
        asked = (model, self.of_model, self.trained, precision, processes.world)
        self.compiled = graph.compiled(*asked) if compile else None
        self.takes_bytes = device.type == "cuda" and recipe.task == "pretrain"

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision of activations where it is asked for; weights stay float32."""
        return half(self.precision)

    def learn(self, given: Mapping[str, Tensor], count: int, last: bool) -> dict[str, Tensor]:
        """As one compiled call where that is asked for."""
        if self.compiled is None:
            return super().learn(given, count, last)
        return self.compiled(given, (self.scale if self.scaled else 1.0) / count)


make = Learner.make
