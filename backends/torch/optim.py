"""AdamW, LARS and SGD over named parameters, each with its own learning-rate scale and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from triport.core.backend.base_optimizer import BaseOptimizer


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), bias-corrected, eps added after the root."""

    slots = ("exp_avg", "exp_avg_sq")

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """One fused kernel over all tensors where the device has one."""
        (beta1, beta2), (first, second) = self.spec.betas, slots
        done = [torch.tensor(float(self.steps - 1), device=values[0].device) for _ in values]  # each is counted up
        adamw(
            values, gradients, first, second, [], done, fused=True,
            lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=self.spec.eps, amsgrad=False, maximize=False,
        )  # fmt: skip


class SGD(BaseOptimizer):
    """Momentum without dampening or Nesterov; weight decay added to the gradient."""

    slots = ("mu",)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """mu <- momentum mu + g + decay p; p <- p - lr mu."""
        for p, g, mu in zip(values, gradients, *slots):
            mu.mul_(self.spec.momentum).add_(g.add(p, alpha=decay) if decay else g)
            p.add_(mu, alpha=-lr)


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
        weight, change = self.tensors.norm(p), self.tensors.norm(d)
        ratio = self.spec.trust * weight / change
        return d * torch.where((weight > 0) & (change > 0), ratio, torch.ones_like(ratio))


RULES: dict[str, type[BaseOptimizer]] = {"adamw": AdamW, "lars": LARS, "sgd": SGD}
