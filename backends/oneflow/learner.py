"""What the training loop drives, on OneFlow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.backends.oneflow import build, optim
from triport.backends.oneflow.classify import classification_loss
from triport.backends.oneflow.distributed import Processes
from triport.backends.oneflow.numerics import refuse
from triport.backends.oneflow.tensors import Tensors
from triport.core.backend.base_learner import BaseLearner
from triport.core.spec import Recipe


class Learner(BaseLearner):
    """A model, its optimizer and its recipe on one process among several."""

    loss = staticmethod(classification_loss)

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Processes,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        refuse(precision, compile)
        self.precision, device = precision, processes.device
        model = build.build(recipe.model, arrays, precision).to(device)
        super().__init__(recipe, model, Tensors(recipe.model, device, precision), processes, optim.RULES)


make = Learner.make
