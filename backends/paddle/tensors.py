"""Paddle's tensors for the shared parts of the backends; linear weights are stored (in, out) there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from triport.backends.paddle.kernels import length
from triport.backends.paddle.runtime import Tensor, paddle
from triport.core.backend import tensors
from triport.core.backend.tensors import Arrays
from triport.core.model.inventory import inventory


@paddle.no_grad()
def follow(slow: Sequence[Tensor], fast: Sequence[Tensor], momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast."""
    for behind, ahead in zip(slow, fast):
        behind.lerp_(ahead, 1 - momentum)


def wide(x: Tensor) -> Tensor:
    """At least float32: where sums are taken, half precision is not enough."""
    return x.astype("float32") if x.dtype in (paddle.bfloat16, paddle.float16) else x


class Tensors(tensors.Tensors):
    """See triport.core.backend.tensors."""

    kind, follow = Tensor, staticmethod(follow)

    @cached_property
    def _linear(self) -> frozenset[str]:
        return frozenset(p.name for p in inventory(self.spec) if p.role == "linear")

    def layout(self, arrays: Arrays) -> Arrays:
        """Linear weights are transposed."""
        return {
            key: np.ascontiguousarray(array.T) if key.rpartition("/")[2] in self._linear else array
            for key, array in arrays.items()
        }

    def from_host(self, array: np.ndarray) -> Tensor:
        """A copy on the device in use."""
        return paddle.to_tensor(self.typed(array))

    def from_bytes(self, images: np.ndarray, table: np.ndarray) -> Tensor:
        """Looked up on the device."""
        first = paddle.arange(len(table), dtype="int32") * table.shape[1]
        place = paddle.to_tensor(images).astype("int32") + first
        rows = paddle.gather(paddle.to_tensor(self.typed(table)).flatten(), place.flatten())
        return rows.reshape(place.shape).transpose([0, 3, 1, 2])

    def to_host(self, tensor: Tensor) -> np.ndarray:
        """A copy; half precision becomes float32."""
        return np.array(wide(tensor.detach()).numpy(), order="C")

    def copy_into(self, target: Tensor, source: Tensor) -> None:
        """In place."""
        paddle.assign(source, target)

    def swap(self, first: Tensor, second: Tensor) -> None:
        """By way of a copy."""
        saved = first.detach().clone()
        first.set_value(second)
        second.set_value(saved)

    @paddle.no_grad()
    def clip(self, parameters: Sequence[Tensor], norm: Tensor, limit: float) -> None:
        """As torch.nn.utils.clip_grad_norm_."""
        factor = (limit / (norm + 1e-6)).clip(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.multiply_(factor)

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Zeros."""
        return paddle.zeros_like(tensor)

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """One after another."""
        return paddle.concat(list(tensors))

    def norm(self, tensor: Tensor) -> Tensor:
        """L2."""
        return length(tensor)

    def is_finite(self, tensor: Tensor) -> bool:
        """All of it."""
        return bool(paddle.isfinite(tensor).all())

    def no_grad(self) -> AbstractContextManager[Any]:
        """Paddle's."""
        return paddle.no_grad()

    def retain_gradient(self, tensor: Tensor) -> None:
        """Where it will have one."""
        if not tensor.stop_gradient:
            tensor.retain_grads()

    def clear_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Not by zeros."""
        for parameter in parameters:
            parameter.clear_gradient(False)

    def modules(self, model: Any) -> Iterator[tuple[str, Any]]:
        """Paddle calls them sublayers."""
        return ((name, module) for name, module in model.named_sublayers() if name)
