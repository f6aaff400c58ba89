"""What recording asks of a framework: hooks, tensors, parameters. Found by the model's class; none is imported here."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError

Module = Any  # a framework's own
Tensor = Any
Remove = Callable[[], None]
Hook = Callable[..., None]


class Framework(ABC):
    """One framework, already imported."""

    name: str

    def __init__(self, library: Any) -> None:
        self.library = library

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.library.__version__)

    def seed(self, number: int) -> None:
        """Set the generator that initial weights are drawn by."""
        self.library.manual_seed(number)

    def is_tensor(self, value: object) -> bool:
        """Whether something is a tensor of this framework."""
        return isinstance(value, self.library.Tensor)

    def array(self, tensor: Tensor) -> NDArray:
        """A copy on the host; half precision becomes float32."""
        if str(tensor.dtype).rpartition(".")[2] in ("bfloat16", "float16"):
            tensor = self.cast(tensor, "float32")
        return np.array(self.host(tensor).numpy(), order="C")

    def host(self, tensor: Tensor) -> Tensor:
        """The values of a tensor on the host."""
        return tensor.detach().cpu()

    def modules(self, model: Module) -> Iterator[tuple[str, Module]]:
        """Every module below the model with its dotted name."""
        return ((name, module) for name, module in model.named_modules() if name)

    def children(self, module: Module) -> list[Module]:
        """The modules directly below one."""
        return list(module.children())

    def own_tensors(self, module: Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers of a module itself, by local name."""
        parameters = {name: p for name, p in module._parameters.items() if p is not None}
        return parameters, {name: b for name, b in module._buffers.items() if b is not None}

    def needs_gradient(self, tensor: Tensor) -> bool:
        """Whether the loss's gradient of it is computed."""
        return bool(tensor.requires_grad)

    def before(self, module: Module, hook: Hook) -> Remove:
        """Call hook(module, inputs) before each call of a module."""
        return module.register_forward_pre_hook(hook).remove

    def after(self, module: Module, hook: Hook) -> Remove:
        """Call hook(module, inputs, output) after each call of a module."""
        return module.register_forward_hook(hook).remove

    def on_gradient(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> Remove:
        """Call hook(gradient) when the loss's gradient of a tensor is known."""
        return tensor.register_hook(hook).remove

    def to_precision(self, model: Module, precision: str) -> Module:
        """The model with parameters of a float type."""
        return {"float64": model.double, "float32": model.float}[precision]()

    def no_grad(self) -> Any:
        """A context without automatic differentiation."""
        return self.library.no_grad()

    @abstractmethod
    def cast(self, tensor: Tensor, kind: str) -> Tensor:
        """A tensor in another float type."""

    @abstractmethod
    def tensor(self, array: NDArray) -> Tensor:
        """An array as a tensor on the CPU."""

    @abstractmethod
    def assign(self, target: Tensor, array: NDArray) -> None:
        """Overwrite a parameter or buffer."""

    @abstractmethod
    def optimizer(self, parameters: list[Tensor], kind: str, lr: float, decay: float, momentum: float) -> Any:
        """The framework's own optimizer: "sgd" or "adamw" with betas 0.9 and 0.999 and eps 1e-8."""

    def clear(self, optimizer: Any) -> None:
        """Forget the gradients."""
        optimizer.zero_grad()


class PyTorch(Framework):
    """PyTorch."""

    name = "torch"

    def cast(self, tensor: Tensor, kind: str) -> Tensor:
        """A tensor in another float type."""
        return tensor.to(getattr(self.library, kind))

    def tensor(self, array: NDArray) -> Tensor:
        """An array as a tensor on the CPU."""
        return self.library.from_numpy(np.array(array, order="C"))

    def assign(self, target: Tensor, array: NDArray) -> None:
        """Overwrite a parameter or buffer."""
        with self.no_grad():
            target.copy_(self.tensor(array))

    def optimizer(self, parameters: list[Tensor], kind: str, lr: float, decay: float, momentum: float) -> Any:
        """The framework's own optimizer."""
        optim = self.library.optim
        if kind == "adamw":
            return optim.AdamW(parameters, lr=lr, weight_decay=decay)
        return optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=momentum)


class OneFlow(PyTorch):
    """OneFlow: PyTorch's interface, but hooks that cannot be removed."""

    name = "oneflow"

    def before(self, module: Module, hook: Hook) -> Remove:
        """Call hook(module, inputs) before each call of a module."""
        return _entered(module._forward_pre_hooks, hook)

    def after(self, module: Module, hook: Hook) -> Remove:
        """Call hook(module, inputs, output) after each call of a module."""
        return _entered(module._forward_hooks, hook)

    def on_gradient(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> Remove:
        """Call hook(gradient) when the gradient of a tensor is known; its hooks cannot be removed: it falls silent."""
        listening = [hook]
        tensor.register_hook(lambda gradient: listening[0](gradient) if listening else None)
        return listening.clear


class Paddle(Framework):
    """Paddle."""

    name = "paddle"

    def seed(self, number: int) -> None:
        """Set the generator that initial weights are drawn by."""
        self.library.seed(number)

    def host(self, tensor: Tensor) -> Tensor:
        """The values of a tensor on the host."""
        return tensor.detach()

    def modules(self, model: Module) -> Iterator[tuple[str, Module]]:
        """Every module below the model with its dotted name."""
        return ((name, module) for name, module in model.named_sublayers() if name)

    def needs_gradient(self, tensor: Tensor) -> bool:
        """Whether the loss's gradient of it is computed."""
        return not tensor.stop_gradient

    def after(self, module: Module, hook: Hook) -> Remove:
        """Call hook(module, inputs, output) after each call of a module."""
        return module.register_forward_post_hook(hook).remove

    def to_precision(self, model: Module, precision: str) -> Module:
        """The model with parameters of a float type."""
        return model.to(dtype=precision)

    def cast(self, tensor: Tensor, kind: str) -> Tensor:
        """A tensor in another float type."""
        return tensor.astype(kind)

    def tensor(self, array: NDArray) -> Tensor:
        """An array as a tensor on the CPU."""
        return self.library.to_tensor(np.array(array, order="C"))

    def assign(self, target: Tensor, array: NDArray) -> None:
        """Overwrite a parameter or buffer."""
        target.set_value(np.array(array, order="C"))

    def optimizer(self, parameters: list[Tensor], kind: str, lr: float, decay: float, momentum: float) -> Any:
        """The framework's own optimizer."""
        optim = self.library.optimizer
        if kind == "adamw":
            return optim.AdamW(lr, parameters=parameters, weight_decay=decay)
        return optim.Momentum(lr, momentum=momentum, parameters=parameters, weight_decay=decay)

    def clear(self, optimizer: Any) -> None:
        """Forget the gradients."""
        optimizer.clear_grad()


FRAMEWORKS: dict[str, Callable[[Any], Framework]] = {"torch": PyTorch, "paddle": Paddle, "oneflow": OneFlow}


def of(model: Module) -> Framework:
    """The framework of a model, by the classes that it is made of. UserError for what is not a module."""
    for base in type(model).__mro__:
        root = base.__module__.partition(".")[0]
        if root in FRAMEWORKS and base.__name__ in ("Module", "Layer"):
            return FRAMEWORKS[root](sys.modules[root])
    raise UserError(
        f"{type(model).__name__} is not a module of a framework: torch.nn.Module, paddle.nn.Layer or oneflow.nn.Module."
    )


def _entered(hooks: dict[Any, Hook], hook: Hook) -> Remove:
    """Enter a hook into a module's table under a key that nobody else takes."""
    key = object()
    hooks[key] = hook
    return lambda: hooks.pop(key, None) and None
