"""What the training loop drives, on Paddle."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from triport.backends.paddle import build, optim
from triport.backends.paddle.classify import classification_loss
from triport.backends.paddle.distributed import Processes
from triport.backends.paddle.runtime import paddle
from triport.backends.paddle.tensors import Tensors
from triport.core.backend.base_learner import BaseLearner
from triport.core.errors import UserError
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
        self.precision, device = precision, processes.device
        if precision == "bfloat16" and device.is_cpu_place():
            raise UserError("precision 'bfloat16' has no effect on Paddle's CPU build: leave --precision out there")
        if precision == "float16":
            raise UserError("precision 'float16' on Paddle is that of PASSL's FP16 configurations: take bfloat16 here")
        if compile:  # to_static has neither the kernels of kernels.py nor better ones
            raise UserError("Paddle's compiled mode would make these models slower: leave --compile out")
        model = build.build(recipe.model, arrays, precision)
        super().__init__(recipe, model, Tensors(recipe.model, device, precision), processes, optim.RULES)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is asked for."""
        return paddle.amp.auto_cast(enable=self.precision == "bfloat16", dtype="bfloat16", level="O1")

    def device_memory(self) -> int:
        """Of a GPU."""
        return paddle.device.cuda.max_memory_allocated(self.device) if self.device.is_gpu_place() else 0


make = Learner.make
