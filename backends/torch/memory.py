"""What makes a large batch fit: activations that are computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from triport.core.errors import UserError


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Let each of a model's transformer blocks store its input alone and compute the rest again in the backward pass.

    The same operations on the same numbers: nothing changes but time and memory. Blocks have neither batch norms,
    which would count twice, nor random numbers. Raises UserError where there are no blocks.
    """
    if not blocks:
        raise UserError("--checkpoint-activations is for vision transformers: leave it out for a ResNet")
    for block in blocks:
        vars(block)["forward"] = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )
