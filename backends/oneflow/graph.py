"""A step compiled by OneFlow (nn.Graph): loss, outputs and gradients come out, the update stays outside.

For one process. OneFlow's graphs compute gradients only for an optimizer, and know only their own; so they get one at
learning rate 0 over a number that nothing depends on. Batch norms' statistics come out too, for the buffers to follow.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triport.backends.oneflow.numerics import HALVES
from triport.backends.oneflow.runtime import Tensor, flow, nn
from triport.core.errors import UserError
from triport.core.record.console import show

BEGINS = "triport: OneFlow traces the training step, which takes up to a minute or two; without --compile it need not"
Forward = Callable[..., dict[str, Tensor]]  # a model, the inputs of a micro-batch by name -> its loss and more


class Compiled:
    """What is called in the place of a forward and a backward pass."""

    def __init__(self, model: nn.Module, forward: Forward, trained: Mapping[str, Tensor], precision: str) -> None:
        self.model, self.forward, self.trained, self.precision = model, forward, trained, precision
        self.steps: dict[tuple[tuple[str, Any], ...], _Step] = {}  # by what they take: names and shapes

    def __call__(self, given: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Inputs by name -> the outputs by name; adds the gradients of factor times the loss to the parameters'."""
        kind = tuple((name, tuple(value.shape)) for name, value in given.items())
        step = self.steps.get(kind)
        if step is None:
            if not self.steps:
                show(BEGINS, sys.stderr)
            step = self.steps[kind] = _Step(self, tuple(given))
        parameters = list(self.trained.values())
        before = [parameter.grad for parameter in parameters]
        self._clear(parameters)  # or what is traced would begin with them
        device = parameters[0].device
        with warnings.catch_warnings():  # of constants that a kernel of OneFlow's own makes while it is traced
            warnings.simplefilter("ignore", UserWarning)
            outputs, gradients, statistics = step(
                flow.full((1,), factor, dtype=flow.float64, device=device), *given.values()
            )
        self._clear(parameters)  # tracing leaves its own there, which hold no numbers
        with flow.no_grad():
            for parameter, old, new in zip(parameters, before, gradients):
                parameter.grad = new.clone() if old is None else old + new
        for (norm, rows), mean, var in zip(step.norms, statistics[::2], statistics[1::2]):
            norm.take(mean, var, rows)
        return dict(zip(step.names, outputs))

    @staticmethod
    def _clear(parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = None


class _Part(nn.Module):
    """A model, its objective, and the number that the graph's own optimizer has."""

    def __init__(self, compiled: Compiled, given: tuple[str, ...], device: flow.device) -> None:
        super().__init__()
        self.model, self.given = compiled.model, given
        self.own = [compiled.forward]  # in a list, or it would become a method of the module that the graph puts around
        self.anchor = nn.Parameter(flow.zeros(1, device=device))  # float32: its optimizer knows no other

    def forward(self, factor: Tensor, *given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to be followed back, and the outputs."""
        outputs = self.own[0](self.model, dict(zip(self.given, given)))
        loss = outputs["loss"]
        return (loss * factor.to(loss.dtype)).sum() + self.anchor.sum().to(loss.dtype), outputs


class _Step(nn.Graph):
    """A factor and the inputs -> the outputs, and the gradient of every trained parameter in their order."""

    def __init__(self, compiled: Compiled, given: tuple[str, ...]) -> None:
        super().__init__()
        self.trained, self.names = [f"model.{name}" for name in compiled.trained], tuple[str, ...]()
        # in a list, or the graph would take them for parts of its own
        self.all_norms = [module for module in compiled.model.modules() if hasattr(module, "num_batches_tracked")]
        self.norms: list[tuple[Any, float]] = []  # each pass through one, and how many rows it had
        device = next(iter(compiled.trained.values())).device
        self.part = _Part(compiled, given, device)
        self.part.train(compiled.model.training)
        if compiled.precision in HALVES:
            self.config.enable_amp(True, dtype=HALVES[compiled.precision])
        self.add_optimizer(flow.optim.SGD([self.part.anchor], lr=0.0))

    def build(self, factor: Tensor, *given: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Traced once."""
        norms = self.all_norms
        for norm in norms:
            norm.traced.clear()
        loss, outputs = self.part(factor, *given)
        loss.backward()
        self.norms += [(norm, rows) for norm in norms for _, _, rows in norm.traced]
        statistics = [value for norm in norms for mean, var, _ in norm.traced for value in (mean, var)]
        for norm in norms:
            norm.traced.clear()
        self.names = tuple(outputs)
        parameters = dict(self.part.named_parameters())
        gradients = [parameters[name].to(flow.Tensor).grad for name in self.trained]
        return list(outputs.values()), gradients, statistics


def compiled(model: nn.Module, forward: Forward, trained: Mapping[str, Tensor], precision: str, world: int) -> Compiled:
    """Return the compiled step of a model, or raise UserError where OneFlow's graphs have none."""
    if world > 1:
        raise UserError("OneFlow's nn.Graph is for one process here: leave out --compile, or --processes.")
    return Compiled(model, forward, trained, precision)
