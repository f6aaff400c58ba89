"""AdamW, LARS and SGD over named parameters, each with its own learning-rate scale and weight decay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from triport.core.backend.base_optimizer import BaseOptimizer


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), bias-corrected, eps added after the root."""

    slots = ("exp_avg", "exp_avg_sq")

    def _count(self, value: Tensor) -> Tensor:
        """Updates of a parameter so far, counted up by the kernel: on the device, where one may be skipped unseen."""
        if self.skip is None:
            return torch.tensor(float(self.steps - 1), device=value.device)
        counts: dict[int, Tensor] = vars(self).setdefault("_counts", {})
        if id(value) not in counts:
            counts[id(value)] = torch.full((), float(self.steps - 1), device=value.device)
        return counts[id(value)]

    def arrays(self) -> dict[str, np.ndarray]:
        """The state; "step" counts the updates that were not skipped."""
        counts: dict[int, Tensor] = vars(self).get("_counts", {})
        done = [np.array(int(count), np.int64) for count in list(counts.values())[:1]]
        return {**super().arrays(), **({"step": done[0]} if done else {})}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state, and its count."""
        super().load(arrays)
        vars(self).pop("_counts", None)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """One fused kernel over all tensors where the device has one."""
        (beta1, beta2), (first, second) = self.spec.betas, slots
        adamw(
            values, gradients, first, second, [], [self._count(value) for value in values],
            fused=True, grad_scale=None, found_inf=self.skip,
            lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=self.spec.eps, amsgrad=False, maximize=False,
        )  # fmt: skip


class SGD(BaseOptimizer):
    """Momentum without dampening or Nesterov; weight decay added to the gradient."""

    slots = ("mu",)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """mu <- momentum mu + g + decay p; p <- p - lr mu."""
        for p, g, mu in zip(values, gradients, *slots):
            change = g.add(p, alpha=decay) if decay else g
            if self.skip is None:
                mu.mul_(self.spec.momentum).add_(change)
                p.add_(mu, alpha=-lr)
                continue
            moved = torch.where(self.skip > 0, mu, mu * self.spec.momentum + change)
            p.copy_(torch.where(self.skip > 0, p, p - lr * moved))
            mu.copy_(moved)


class LARS(SGD):
    """SGD whose matrices move in proportion to their own norm (moco/optimizer.py, arXiv 1708.03888).

    Tensors of one dimension (biases, norms) are neither scaled nor decayed. The learning rate stays outside
    the momentum buffer, and the norm in the denominator includes the decay.
    """

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """Scale the gradients of matrices, then as SGD."""
        scaled = [self._scale(p, g, decay) if p.dim() > 1 else g for p, g in zip(values, gradients)]
        super().update(values, scaled, slots, lr, 0.0)

    def _scale(self, p: Tensor, g: Tensor, decay: float) -> Tensor:
        d = g.add(p, alpha=decay)
        weight, change = self.tensors.norms([p, d])
        ratio = self.spec.trust * weight / change
        return d * torch.where((weight > 0) & (change > 0), ratio, torch.ones_like(ratio))


RULES: dict[str, type[BaseOptimizer]] = {"adamw": AdamW, "lars": LARS, "sgd": SGD}
