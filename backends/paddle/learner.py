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
from triport.core.backend.scaled import ScaledLearner
from triport.core.errors import UserError
from triport.core.spec import Recipe

HALVES = ("bfloat16", "float16")


class Learner(ScaledLearner):
    """A model, its optimizer and its recipe on one process among several."""

    loss = staticmethod(classification_loss)
    own_options = frozenset({"amp_o2"})

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Processes,
        precision: str = "float32",
        compile: bool | None = False,
        amp_o2: bool = False,
    ) -> None:
        self.precision, device = precision, processes.device
        if amp_o2 and precision not in HALVES:
            remedy = "leave it out" if device.is_cpu_place() else "add --precision bfloat16"
            raise UserError(f"--amp-o2 is for half precision, and this is {precision}: {remedy}")
        self.level = "O2" if amp_o2 else "O1"
        if precision in HALVES and device.is_cpu_place():
            raise UserError(f"Paddle has no {precision} on CPUs: leave --precision out, or take --backend torch")
        if compile:  # to_static has neither the kernels of kernels.py nor better ones
            raise UserError("Paddle's compiled mode would make these models slower: leave --compile out")
        model = build.build(recipe.model, arrays, precision)
        super().__init__(recipe, model, Tensors(recipe.model, device, precision), processes, optim.RULES)
        self.scaled = precision == "float16"
        self.takes_bytes = device.is_gpu_place() and recipe.task == "pretrain"

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision of activations where it is asked for; weights stay float32."""
        half = self.precision if self.precision in HALVES else "bfloat16"
        return paddle.amp.auto_cast(enable=self.precision in HALVES, dtype=half, level=self.level)

    def device_memory(self) -> int:
        """Of a GPU."""
        return paddle.device.cuda.max_memory_allocated(self.device) if self.device.is_gpu_place() else 0


make = Learner.make
