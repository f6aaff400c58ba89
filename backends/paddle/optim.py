"""AdamW, LARS and SGD over named parameters, each with its own learning-rate scale and weight decay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.backends.paddle.kernels import length
from triport.backends.paddle.runtime import Tensor, paddle
from triport.core.model.groups import Group
from triport.core.spec import OptimizerSpec

Named = Mapping[str, Tensor]


class Optimizer:
    """One update rule for all parameters. State is kept and stored under "<slot>/<parameter name>"."""

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Named, rules: Mapping[str, Group], spec: OptimizerSpec) -> None:
        self.spec, self.steps = spec, 0
        self.parameters = {name: parameters[name] for name in rules}
        self.state = {slot: {n: paddle.zeros_like(p) for n, p in self.parameters.items()} for slot in self.slots}
        together: dict[Group, list[str]] = {}
        for name, rule in rules.items():
            together.setdefault(rule, []).append(name)
        self.groups = list(together.items())

    @paddle.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, at learning rate `lr` times its scale."""
        self.steps += 1
        for rule, names in self.groups:
            names = [name for name in names if self.parameters[name].grad is not None]
            if names:
                values = [self.parameters[name] for name in names]
                slots = [[self.state[slot][name] for name in names] for slot in self.slots]
                self.update(values, [value.grad for value in values], slots, lr * rule.lr_scale, rule.weight_decay)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """Update lists of tensors in place."""
        raise TypeError(f"{type(self).__name__} has no update rule")

    def clear(self) -> None:
        """Forget all gradients."""
        for value in self.parameters.values():
            value.clear_gradient(False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state: "step" and "<slot>/<name>"."""
        state = {f"{slot}/{name}": t.numpy() for slot in self.slots for name, t in self.state[slot].items()}
        return {"step": np.array(self.steps, np.int64), **state}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `arrays` gave, on this or another framework."""
        self.steps = int(arrays["step"])
        for slot in self.slots:
            for name, value in self.state[slot].items():
                value.set_value(np.array(arrays[f"{slot}/{name}"], np.float32, order="C"))


class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), bias-corrected, eps added after the root."""

    slots = ("exp_avg", "exp_avg_sq")

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """Paddle's kernel for the weights alone, with corrections made in double precision.

        It would make 1 - beta and the corrections from float32 numbers, and 1 - 0.999 then has four digits. With betas
        of 1 it leaves the moments as they are, with powers of 0 it corrects nothing: the corrections go into learning
        rate, eps and decay.
        """
        (one, two), (first, second), none = self.spec.betas, slots, paddle.zeros([1])
        root = (1 - two**self.steps) ** 0.5
        corrected = lr * root / (1 - one**self.steps)
        rate = paddle.to_tensor(corrected, dtype="float32")
        decay = decay * lr / corrected if corrected else 0.0
        for p, g, m, v in zip(values, gradients, first, second):
            m.lerp_(g, 1 - one)
            v.lerp_(g.square(), 1 - two)
            paddle._C_ops.adamw_(
                p, g, rate, m, v, None, none, none, None, None, 1.0, 1.0, self.spec.eps * root,
                1.0, decay, decay > 0, False, 1000, False, True, False,
            )  # fmt: skip


class SGD(Optimizer):
    """Momentum without dampening or Nesterov; weight decay added to the gradient."""

    slots = ("mu",)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """mu <- momentum mu + g + decay p; p <- p - lr mu."""
        for p, g, mu in zip(values, gradients, slots[0]):
            mu.scale_(self.spec.momentum).add_(g + p * decay if decay else g)
            p.subtract_(mu * lr)


class LARS(SGD):
    """SGD whose matrices move in proportion to their own norm (moco/optimizer.py, arXiv 1708.03888).

    Tensors of one dimension (biases, norms) are neither scaled nor decayed. The learning rate stays outside
    the momentum buffer, and the norm in the denominator includes the decay.
    """

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """Scale the gradients of matrices, then as SGD."""
        scaled = [self._scale(p, g, decay) if p.ndim > 1 else g for p, g in zip(values, gradients)]
        super().update(values, scaled, slots, lr, 0.0)

    def _scale(self, p: Tensor, g: Tensor, decay: float) -> Tensor:
        d = g + p * decay
        weight, change = length(p), length(d)
        ratio = self.spec.trust * weight / change
        return d * paddle.where((weight > 0) & (change > 0), ratio, paddle.ones_like(ratio))


def make(parameters: Named, rules: Mapping[str, Group], spec: OptimizerSpec) -> Optimizer:
    """Return the optimiser that the spec names, over the parameters that have a rule."""
    return {"adamw": AdamW, "lars": LARS, "sgd": SGD}[spec.kind](parameters, rules, spec)


@paddle.no_grad()
def global_norm(gradients: list[Tensor]) -> Tensor:
    """L2 norm of all gradients together, a 0-d tensor."""
    return length(paddle.stack([length(g) for g in gradients]))


@paddle.no_grad()
def clip(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients whose joint norm exceeds `limit` down to it (as torch.nn.utils.clip_grad_norm_)."""
    factor = (limit / (norm + 1e-6)).clip(max=1.0)
    for gradient in gradients:
        gradient.multiply_(factor)
