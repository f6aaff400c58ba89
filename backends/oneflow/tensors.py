"""OneFlow's tensors for the shared parts of the backends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from triport.backends.oneflow.numerics import length
from triport.backends.oneflow.runtime import Tensor, flow
from triport.core.backend import tensors


@flow.no_grad()
def follow(slow: Sequence[Tensor], fast: Sequence[Tensor], momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast."""
    for behind, ahead in zip(slow, fast):
        behind.mul_(momentum).add_(ahead, alpha=1 - momentum)


def wide(x: Tensor) -> Tensor:
    """At least float32: where sums are taken, half precision is not enough."""
    return x.float() if x.dtype in (flow.bfloat16, flow.float16) else x


class Tensors(tensors.Tensors):
    """See triport.core.backend.tensors."""

    kind, follow = Tensor, staticmethod(follow)

    def from_host(self, array: np.ndarray) -> Tensor:
        """On the device."""
        return flow.from_numpy(self.typed(array)).to(self.device)

    def from_bytes(self, images: np.ndarray, table: np.ndarray) -> Tensor:
        """Looked up on the device."""
        values = flow.from_numpy(self.typed(table)).to(self.device)
        first = flow.arange(len(table), dtype=flow.int32, device=self.device) * table.shape[1]
        place = flow.from_numpy(images).to(self.device).to(flow.int32) + first
        rows = flow.index_select(values.flatten(), 0, place.flatten())
        return rows.reshape(*images.shape).permute(0, 3, 1, 2).contiguous()

    def to_host(self, tensor: Tensor) -> np.ndarray:
        """A copy; half precision becomes float32."""
        return wide(tensor.detach()).cpu().numpy().copy()

    def copy_into(self, target: Tensor, source: Tensor) -> None:
        """In place."""
        target.copy_(source)

    def swap(self, first: Tensor, second: Tensor) -> None:
        """By exchanging their memory."""
        first.data, second.data = second.data, first.data

    @flow.no_grad()
    def clip(self, parameters: Sequence[Tensor], norm: Tensor, limit: float) -> None:
        """As torch.nn.utils.clip_grad_norm_."""
        factor = min(limit / (float(norm) + 1e-6), 1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Zeros."""
        return flow.zeros_like(tensor)

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """One after another."""
        return flow.cat(list(tensors))

    def norm(self, tensor: Tensor) -> Tensor:
        """L2."""
        return length(tensor)

    def is_finite(self, tensor: Tensor) -> bool:
        """All of it."""
        return bool(flow.isfinite(tensor).all())

    def no_grad(self) -> AbstractContextManager[Any]:
        """OneFlow's."""
        return flow.no_grad()

    def retain_gradient(self, tensor: Tensor) -> None:
        """Where it will have one."""
        if tensor.requires_grad:
            tensor.retain_grad()
