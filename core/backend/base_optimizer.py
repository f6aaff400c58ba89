"""An optimizer's bookkeeping: groups, gradients, state under canonical names. The update rule is the backend's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from triport.core.backend.tensors import Tensor, Tensors
from triport.core.errors import UserError
from triport.core.model.groups import Group
from triport.core.spec import OptimizerSpec


class BaseOptimizer(ABC):
    """One update rule for all parameters. State is stored under "<slot>/<parameter name>"."""

    slots: tuple[str, ...] = ()
    skip: Tensor | None = None  # 0-d, 1 where an update shall change nothing; for devices that nobody waits for

    def __init__(
        self, parameters: Mapping[str, Tensor], rules: Mapping[str, Group], spec: OptimizerSpec, tensors: Tensors
    ) -> None:
        """`rules`: what a parameter adds to the rule; those without one are left alone."""
        self.spec, self.tensors, self.steps = spec, tensors, 0
        self.parameters = {name: parameters[name] for name in rules}
        self.state = {slot: {n: tensors.zeros_like(p) for n, p in self.parameters.items()} for slot in self.slots}
        alike: dict[Group, list[str]] = {}
        for name, rule in rules.items():
            alike.setdefault(rule, []).append(name)
        self.groups = list(alike.items())

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, at learning rate `lr` times its scale."""
        self.steps += 1
        with self.tensors.no_grad():
            for rule, group in self.groups:
                names = [name for name in group if self.parameters[name].grad is not None]
                if names:
                    values = [self.parameters[name] for name in names]
                    slots = [[self.state[slot][name] for name in names] for slot in self.slots]
                    self.update(values, [value.grad for value in values], slots, lr * rule.lr_scale, rule.weight_decay)

    @abstractmethod
    def update(
        self,
        values: Sequence[Tensor],
        gradients: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        lr: float,
        decay: float,
    ) -> None:
        """Update lists of tensors in place; `slots` has a list for each of `self.slots`."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The state: "step" and "<slot>/<name>"."""
        return {"step": np.array(self.steps, np.int64), **self.tensors.arrays(self._tensors())}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `arrays` gave, on this or another framework."""
        state = self._tensors()
        for name in ("step", *state):
            if name not in arrays:
                raise UserError(f"the optimizer state lacks '{name}': was it made by another optimizer?")
        self.steps = int(arrays["step"])
        self.tensors.fill(state, arrays)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{slot}/{name}": tensor for slot in self.slots for name, tensor in self.state[slot].items()}
