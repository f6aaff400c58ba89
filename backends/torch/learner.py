"""What the training loop drives, on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triport.backends.torch import build, optim
from triport.backends.torch.classify import classification_loss
from triport.backends.torch.distributed import Processes
from triport.backends.torch.tensors import Tensors
from triport.core.backend.base_learner import BaseLearner
from triport.core.errors import UserError
from triport.core.spec import Recipe, ResNet


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
        if precision == "float64" and device.type == "mps":
            raise UserError("device 'mps' has no float64: take --device cpu, or another --precision")
        model = build.build(recipe.model, arrays, precision).to(device)
        encoder = recipe.model.encoder
        if isinstance(encoder, ResNet) or encoder.stem == "conv":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(recipe, model, Tensors(recipe.model, device, precision), processes, optim.RULES)
        self.run: nn.Module = _Step(model, super().forward)
        if compile:
            self.run = _compiled(self.run, device)
        if processes.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.run = DistributedDataParallel(self.run, device_ids=ids, forward_sync_buffers=False)

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """As one module, so that it can be wrapped and compiled."""
        return self.run(**given)

    def learn(self, given: Mapping[str, Tensor], count: int, last: bool) -> dict[str, Tensor]:
        """Gradients are averaged over the processes with the last micro-batch's backward pass."""
        with nullcontext() if last or self.processes.world == 1 else self.run.no_sync():  # type: ignore[operator]
            return super().learn(given, count, last)

    def average_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """DistributedDataParallel has done it."""

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def inference(self) -> AbstractContextManager[Any]:
        """Nothing is recorded."""
        return torch.inference_mode()

    def device_memory(self) -> int:
        """Of a CUDA device."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


class _Step(nn.Module):
    """Inputs -> loss and outputs, as one module."""

    def __init__(self, model: nn.Module, function: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """See triport.core.backend.objectives."""
        return self.function(**given)


def _compiled(step: nn.Module, device: torch.device) -> nn.Module:
    """The step as torch.compile makes it. On CPUs its kernels did not build or gave a loss of NaN, so it is refused."""
    if device.type == "cpu":
        raise UserError("--compile is for GPUs: on CPUs PyTorch's compiler gave wrong numbers. Leave it out.")
    return torch.compile(step)  # type: ignore[return-value]


make = Learner.make
