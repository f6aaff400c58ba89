"""AdamW, LARS and SGD over named parameters, each with its own learning-rate scale and weight decay."""

from __future__ import annotations

from triport.backends.paddle.kernels import fused_adamw
from triport.backends.paddle.runtime import Tensor, paddle
from triport.core.backend.base_optimizer import BaseOptimizer


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), bias-corrected, eps added after the root."""

    slots = ("exp_avg", "exp_avg_sq")

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """The moments here, the weights by Paddle's kernel, which takes lr and decay in float32, or in float64 here."""
        (beta1, beta2), write = self.spec.betas, _exact if values[0].dtype == paddle.float64 else fused_adamw
        bias1, bias2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, g, m, v in zip(values, gradients, *slots):
            m.lerp_(g, 1 - beta1)
            v.lerp_(g.square(), 1 - beta2)
            write(p, g, m, v, lr, decay, self.spec.eps, bias1, bias2)


def _exact(p, g, m, v, lr: float, decay: float, eps: float, bias1: float, bias2: float) -> None:  # type: ignore[no-untyped-def]
    """The formula with public operations, as a float64 kernel would still take some numbers in float32."""
    p.scale_(1 - lr * decay).subtract_(m / (v.sqrt() * bias2**-0.5 + eps) * (lr / bias1))


class SGD(BaseOptimizer):
    """Momentum without dampening or Nesterov; weight decay added to the gradient."""

    slots = ("mu",)

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """mu <- momentum mu + g + decay p; p <- p - lr mu."""
        for p, g, mu in zip(values, gradients, *slots):
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
        weight, change = self.tensors.norm(p), self.tensors.norm(d)
        ratio = self.spec.trust * weight / change
        return d * paddle.where((weight > 0) & (change > 0), ratio, paddle.ones_like(ratio))


RULES: dict[str, type[BaseOptimizer]] = {"adamw": AdamW, "lars": LARS, "sgd": SGD}
