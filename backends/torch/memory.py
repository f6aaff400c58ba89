"""What makes a large model fit: activations that are computed twice, and parameters spread over the processes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triport.backends.torch.layers import Block
from triport.core.errors import UserError


def recompute(model: nn.Module) -> None:
    """Let every transformer block store its input alone and compute the rest again in the backward pass.

    The same operations on the same numbers: nothing changes but time and memory. Blocks have neither batch norms,
    which would count twice, nor random numbers. Raises UserError where there are no blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise UserError("--checkpoint-activations is for vision transformers: leave it out for a ResNet")
    for block in blocks:
        vars(block)["forward"] = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )


def shard(model: nn.Module) -> None:
    """Spread parameters, gradients and thus the optimizer's state over the processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise UserError("--shard is for vision transformers: leave it out for a ResNet")
    for block in blocks:
        fully_shard(block)
    fully_shard(model)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the processes; then every one of them must ask."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def is_spread(tensor: Tensor) -> bool:
    """Whether each process has a part of it."""
    return isinstance(tensor, torch.distributed.tensor.DTensor)
