"""Parameters, gradients and optimizer state divided among processes: PyTorch's fully_shard (FSDP2), for large ViTs.

Every tensor is cut along its first axis as torch.chunk cuts it. A part of the model is whole on a device while it
computes, and divided again after it; norms, momentum encoder, averages and update rule work on what a process has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from triport.backends.torch.distributed import Processes
from triport.backends.torch.layers import Block
from triport.backends.torch.mae import MaskedAutoencoder
from triport.backends.torch.moco import MoCoV3
from triport.backends.torch.tensors import Tensors, local
from triport.core.backend.tensors import Arrays
from triport.core.errors import UserError
from triport.core.spec import Classifier, ModelSpec, ResNet


def check(spec: ModelSpec, world: int, compile: bool | None) -> None:
    """Raise UserError where there is nothing to divide, or nobody to divide it among."""
    if isinstance(spec.encoder, ResNet):
        raise UserError("--shard is for vision transformers: leave it out for a ResNet")
    if isinstance(spec.objective, Classifier) and spec.objective.frozen_encoder:
        raise UserError("--shard is for training whole models: leave it out where the encoder is frozen")
    if compile:
        raise UserError("--compile does not go with --shard: leave out one of them")
    if world == 1:
        raise UserError("--shard divides the weights among processes: add --processes N, or leave it out")


def divide(model: nn.Module, processes: Processes) -> None:
    """Divide a model's parameters, in place: block by block, so that no more than one is whole at a time.

    The model may still be on the CPU: its parts go to the device one after another. Buffers stay whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # takes seconds to import

    # of MAE's prediction, into which nothing is written
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    parts = [module for module in model.modules() if isinstance(module, Block)]
    if isinstance(model, MoCoV3):
        parts += [model.base_encoder.head, model.momentum_encoder.head, model.predictor]  # type: ignore[list-item]
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if isinstance(model, MaskedAutoencoder):
        register_fsdp_forward_method(model, "reconstruct")


class Shards(Tensors):
    """Tensors of which this process has a part. Whatever speaks of a whole tensor is for all processes at once."""

    def __init__(self, spec: ModelSpec, processes: Processes, precision: str, model: nn.Module) -> None:
        """`model`: see `divide`."""
        super().__init__(spec, processes.device, precision)
        self.processes, self.named = processes, dict(model.named_parameters())

    # ------------------------------------------------------------ what a process has
    @torch.no_grad()
    def parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """This process's parts, which share the model's memory."""
        return {name: local(parameter).detach() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def take_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Give the parts the gradients that backward passes left in the model: means over the processes."""
        for name, part in parameters.items():
            parameter = self.named[name]
            part.grad = None if parameter.grad is None else local(parameter.grad)
            parameter.grad = None

    def _most(self, name: str) -> int:
        """Rows of the first process's part; 0 of a buffer, which is not divided. `name`: see Tensors.layout."""
        parameter = self.named.get(name.rpartition("/")[2])
        return 0 if parameter is None else -(-parameter.shape[0] // self.processes.world)

    # ------------------------------------------------------------ whole tensors
    @torch.no_grad()
    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor from its parts, on every process."""
        part, most = local(tensor), self._most(name)
        if not most:
            return part
        padded = part.new_zeros((most, *part.shape[1:]))
        padded[: len(part)] = part
        return self.processes.gather_rows(padded)[: self.named[name.rpartition("/")[2]].shape[0]]

    def arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """On the first process, nothing on the others. One tensor after another is whole on the devices."""
        found = {}
        for name, tensor in tensors.items():
            whole = self.whole(name, tensor)
            if self.processes.rank == 0:
                found[name] = self.to_host(whole)
        return found

    def fill(self, tensors: Mapping[str, Tensor], arrays: Arrays) -> None:
        """Copy this process's parts of whole arrays."""
        for name in tensors:
            parameter = self.named.get(name.rpartition("/")[2])
            if parameter is not None and arrays[name].shape != tuple(parameter.shape):
                raise UserError(f"'{name}' has shape {arrays[name].shape}, which does not fit the model.")
        parts = {name: self._part(name, arrays[name]) for name in tensors}
        with torch.no_grad():
            super().fill({name: local(tensor) for name, tensor in tensors.items()}, parts)

    def _part(self, name: str, array: np.ndarray) -> np.ndarray:
        most, rank = self._most(name), self.processes.rank
        return array[rank * most : (rank + 1) * most] if most else array

    # ------------------------------------------------------------ values
    @torch.no_grad()
    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Of whole tensors, in one message."""
        own = super().norms(tensors)
        return torch.linalg.vector_norm(self.processes.gather_rows(own.unsqueeze(0)), dim=0)

    def norm(self, tensor: Tensor) -> Tensor:
        """Of the whole tensor."""
        return self.norms([tensor])[0]

    def joint_norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Of whole tensors."""
        return torch.linalg.vector_norm(self.norms(tensors))

    def is_finite(self, tensor: Tensor) -> bool:
        """All of the whole tensor."""
        bad = (~torch.isfinite(tensor)).sum()
        return bool(self.processes.reduce(bad) == 0)
