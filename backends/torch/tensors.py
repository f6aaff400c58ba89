"""PyTorch's tensors for the shared parts of the backends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from triport.core.backend import tensors


def local(x: Tensor) -> Tensor:
    """What this process has of a divided tensor (see sharding.py), in the same memory; any other as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


@torch.no_grad()
def follow(slow: Sequence[Tensor], fast: Sequence[Tensor], momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast, in few kernels."""
    get_ema_multi_avg_fn(momentum)([local(x) for x in slow], [local(x) for x in fast], 0)


def wide(x: Tensor) -> Tensor:
    """At least float32: where sums are taken, half precision is not enough."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Tensors(tensors.Tensors):
    """See triport.core.backend.tensors."""

    kind, follow = Tensor, staticmethod(follow)

    def from_host(self, array: np.ndarray) -> Tensor:
        """On a CPU it shares the array's memory where the type is right."""
        return torch.from_numpy(self.typed(array)).to(self.device, non_blocking=True)

    def to_host(self, tensor: Tensor) -> np.ndarray:
        """A copy; bfloat16 becomes float32."""
        return wide(tensor.detach()).cpu().numpy().copy()

    def copy_into(self, target: Tensor, source: Tensor) -> None:
        """In place."""
        target.copy_(source)

    def swap(self, first: Tensor, second: Tensor) -> None:
        """By exchanging their memory."""
        first.data, second.data = second.data, first.data

    def clip(self, parameters: Sequence[Tensor], norm: Tensor, limit: float) -> None:
        """As torch.nn.utils.clip_grad_norm_."""
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(tensor)

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """One after another."""
        return torch.cat(list(tensors))

    def norm(self, tensor: Tensor) -> Tensor:
        """L2."""
        return torch.linalg.vector_norm(tensor)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """L2 of each, (n)."""
        return torch.stack(torch._foreach_norm(list(tensors)))  # get_total_norm gives their sum alone

    def joint_norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """L2, in few kernels."""
        return nn.utils.get_total_norm(tensors)

    def is_finite(self, tensor: Tensor) -> bool:
        """All of it."""
        return bool(torch.isfinite(tensor).all())

    def no_grad(self) -> AbstractContextManager[Any]:
        """PyTorch's."""
        return torch.no_grad()

    def retain_gradient(self, tensor: Tensor) -> None:
        """Where it will have one."""
        if tensor.requires_grad:
            tensor.retain_grad()
