"""AdamW, LARS and SGD over named parameters, each with its own learning-rate scale and weight decay."""

from __future__ import annotations

from triport.backends.paddle.runtime import Tensor, paddle
from triport.core.backend.base_optimizer import BaseOptimizer


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101), bias-corrected, eps added after the root."""

    slots = ("exp_avg", "exp_avg_sq")

    def update(self, values, gradients, slots, lr: float, decay: float) -> None:  # type: ignore[no-untyped-def]
        """Paddle's kernel for the weights alone, with corrections made in double precision.

        It would make 1 - beta and the corrections from float32 numbers, and 1 - 0.999 then has four digits. With betas
        of 1 it leaves the moments as they are, with powers of 0 it corrects nothing: the corrections go into learning
        rate, eps and decay.
        """
        (beta1, beta2), (first, second), none = self.spec.betas, slots, paddle.zeros([1])
        root = (1 - beta2**self.steps) ** 0.5
        corrected = lr * root / (1 - beta1**self.steps)
        rate = paddle.to_tensor(corrected, dtype="float32")
        decay = decay * lr / corrected if corrected else 0.0
        for p, g, m, v in zip(values, gradients, first, second):
            m.lerp_(g, 1 - beta1)
            v.lerp_(g.square(), 1 - beta2)
            paddle._C_ops.adamw_(
                p, g, rate, m, v, None, none, none, None, None, 1.0, 1.0, self.spec.eps * root,
                1.0, decay, decay > 0, False, 1000, False, True, False,
            )  # fmt: skip


class SGD(BaseOptimizer):
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
        weight, change = self.tensors.norm(p), self.tensors.norm(d)
        ratio = self.spec.trust * weight / change
        return d * paddle.where((weight > 0) & (change > 0), ratio, paddle.ones_like(ratio))


RULES: dict[str, type[BaseOptimizer]] = {"adamw": AdamW, "lars": LARS, "sgd": SGD}
