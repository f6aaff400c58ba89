"""The few operations on a framework's tensors that the shared parts of a backend are written against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from triport.core.errors import UserError
from triport.core.spec import ModelSpec

Arrays = Mapping[str, np.ndarray]
Tensor = Any  # a framework's own


class Tensors(ABC):
    """Tensors of one model: their device, their float type, and how they correspond to arrays on the host."""

    kind: ClassVar[type]  # the framework's class of tensors

    def __init__(self, spec: ModelSpec, device: Any, precision: str = "float32") -> None:
        """`precision`: see the option; only float64 changes how parameters are stored."""
        self.spec, self.device = spec, device
        self.dtype = np.dtype(np.float64 if precision == "float64" else np.float32)

    # ------------------------------------------------------------ arrays in and out
    def typed(self, array: np.ndarray) -> np.ndarray:
        """The array with its floats in the model's type and its whole numbers as int64; no copy where it is so."""
        return np.asarray(array, np.int64 if array.dtype.kind in "iu" else self.dtype)

    def layout(self, arrays: Arrays) -> Arrays:
        """Canonical arrays as the framework stores them, and the other way round; most store them alike.

        Keys are names of parameters, or end in "/<name>" as an optimizer's state does.
        """
        return arrays

    def arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Copies on the host, in the canonical layout, of tensors under canonical names (see `layout`)."""
        return dict(self.layout({name: self.to_host(tensor) for name, tensor in tensors.items()}))

    def fill(self, tensors: Mapping[str, Tensor], arrays: Arrays) -> None:
        """Copy canonical arrays into the tensors of the same names, in place."""
        stored = self.layout({name: arrays[name] for name in tensors})
        with self.no_grad():
            for name, tensor in tensors.items():
                if stored[name].shape != tuple(tensor.shape):  # a copy would broadcast
                    raise UserError(f"'{name}' has shape {arrays[name].shape}, which does not fit the model.")
                self.copy_into(tensor, self.from_host(np.array(stored[name], order="C")))

    @abstractmethod
    def from_host(self, array: np.ndarray) -> Tensor:
        """An array on the device, `typed`; on a CPU it may share the array's memory."""

    @abstractmethod
    def to_host(self, tensor: Tensor) -> np.ndarray:
        """A copy on the host. Half precision becomes float32."""

    def from_bytes(self, images: np.ndarray, table: np.ndarray) -> Tensor:
        """uint8 (n, height, width, channels) -> (n, channels, height, width) on the device, normalised there.

        table (channels, 256): what each byte becomes; the bits are those of triport.core.augment.pixels.normalise.
        """
        return self.from_host(np.moveaxis(table[np.arange(len(table)), images], -1, 1))

    # ------------------------------------------------------------ in place
    @abstractmethod
    def copy_into(self, target: Tensor, source: Tensor) -> None:
        """Give a tensor the values of another; within `no_grad`."""

    @abstractmethod
    def swap(self, first: Tensor, second: Tensor) -> None:
        """Exchange the values of two tensors."""

    @abstractmethod
    def follow(self, slow: Sequence[Tensor], fast: Sequence[Tensor], momentum: float) -> None:
        """slow <- momentum slow + (1 - momentum) fast, tensor by tensor."""

    @abstractmethod
    def clip(self, parameters: Sequence[Tensor], norm: Tensor, limit: float) -> None:
        """Scale the parameters' gradients, whose joint norm is given, down to the limit where they exceed it."""

    # ------------------------------------------------------------ values
    @abstractmethod
    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Zeros of the same shape and type, without gradient."""

    @abstractmethod
    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """One-dimensional tensors as one."""

    @abstractmethod
    def norm(self, tensor: Tensor) -> Tensor:
        """L2 norm of all numbers, 0-d."""

    def norms(self, tensors: Sequence[Tensor]) -> Any:
        """L2 norms of several tensors, in order."""
        return [self.norm(tensor) for tensor in tensors]

    def joint_norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """L2 norm of all numbers of several tensors, 0-d."""
        with self.no_grad():
            return self.norm(self.concatenate([self.norm(tensor).reshape([1]) for tensor in tensors]))

    @abstractmethod
    def is_finite(self, tensor: Tensor) -> bool:
        """Whether there is neither a NaN nor an infinity in it."""

    # ------------------------------------------------------------ differentiation and modules
    @abstractmethod
    def no_grad(self) -> AbstractContextManager[Any]:
        """A context in which no gradients are recorded."""

    @abstractmethod
    def retain_gradient(self, tensor: Tensor) -> None:
        """Keep the gradient of an intermediate tensor, if it will have one."""

    def clear_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Forget the gradients of parameters."""
        for parameter in parameters:
            parameter.grad = None

    def parameters(self, model: Any) -> dict[str, Tensor]:
        """A model's parameters by name, as this process updates them."""
        return dict(model.named_parameters())

    def modules(self, model: Any) -> Iterator[tuple[str, Any]]:
        """The names and modules within a model, itself left out."""
        return ((name, module) for name, module in model.named_modules() if name)
