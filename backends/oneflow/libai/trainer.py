"""LiBai's trainers, taking one optimiser step at a time: the loop gives batches and a rate, LiBai runs step and hooks.

LiBai's loop around them loses its place in the data at resume, and where a loss is not finite ends one process alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import numpy as np

from triport.backends.oneflow import optim
from triport.backends.oneflow.libai.graph import Loss, Step
from triport.backends.oneflow.libai.mesh import Mesh
from triport.backends.oneflow.libai.repairs import EagerTrainer, EventStorage, GraphTrainer
from triport.backends.oneflow.numerics import length
from triport.backends.oneflow.runtime import Tensor, flow
from triport.backends.oneflow.tensors import Tensors, follow
from triport.core.backend.build import first_layer
from triport.core.backend.learner import StepResult
from triport.core.model.groups import Group
from triport.core.spec import Recipe

Given = dict[str, Tensor]  # what Loss.forward takes


class Update:
    """What LiBai's trainer calls its optimiser: the recipe's rule, on each process for the parts that it has.

    trained, rules: global parameters and their groups by canonical name.
    """

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        trained: Mapping[str, Tensor],
        rules: Mapping[str, Group],
        tensors: Tensors,
    ) -> None:
        self.tensors = tensors
        self.recipe, self.mesh, self.trained, self.rules = recipe, mesh, dict(trained), rules
        # The rules go number by number, so each process updates its own parts; to_local shares their memory.
        with flow.no_grad():
            self.parts = {name: p.to_local() for name, p in self.trained.items()}
        self.own = [name for name, part in self.parts.items() if part.numel()]
        own = {name: rules[name] for name in self.own}
        self.rule = optim.RULES[recipe.optimizer.kind](self.parts, own, recipe.optimizer, tensors)
        average = recipe.optimizer.average
        self.average = {name: self.parts[name].clone() for name in self.own} if average else {}
        self.first_layer = first_layer(recipe.model)
        self.sums: dict[str, Tensor] = {}  # gradients that a graph gave
        self.lr, self.loss, self.share = 0.0, 0.0, 1.0  # share: of a micro-batch in its step
        self.result = StepResult(0.0, 0.0, 0.0)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.sums, self.loss = {}, 0.0
        for p in self.trained.values():
            p.grad = None

    def add(self, gradients: Iterable[Tensor]) -> None:
        """Add a micro-batch's gradients, times its share of the step, to the others'."""
        for name, gradient in zip(self.trained, gradients):
            part = gradient * self.share
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def clip_grad(self) -> None:
        """LiBai asks for it before `step`, which does it."""

    @flow.no_grad()
    def step(self) -> None:
        """Update every part of this process. Where anything is not finite on any of them, nothing is updated."""
        total = self.loss
        gradients = self.sums or {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        squares = {name: self._square(gradient) for name, gradient in gradients.items()}
        both = np.array([sum(squares.values()), squares.get(self.first_layer, 0.0)])
        every = self.mesh.reduce(self.tensors.from_host(both))
        norm, first = (float(square) ** 0.5 for square in every.numpy())
        finite = bool(np.isfinite(total)) and bool(np.isfinite(norm))
        bad = None if finite else self._first_bad(total, list(gradients), squares)
        self.result = StepResult(loss=total, gradient_norm=norm, first_layer_gradient=first, bad=bad)
        if not finite:
            return
        limit = self.recipe.optimizer.clip_norm
        factor = 1.0 if limit is None else min(limit / (norm + 1e-6), 1.0)
        for name in self.own:
            if name in gradients:
                self.parts[name].grad = gradients[name].to_local() * factor
        self.rule.step(self.lr)
        parts = [self.parts[name] for name in self.average]
        follow(list(self.average.values()), parts, self.recipe.optimizer.average or 0.0)

    def _square(self, gradient: Tensor) -> float:
        """This process's share of a gradient's squared length: what several processes have counts once."""
        part = gradient.to_local()
        if not part.numel():
            return 0.0
        copies = part.numel() * gradient.placement.ranks.size / np.prod(gradient.shape)
        return float(length(part).numpy()) ** 2 / float(copies)

    def _first_bad(self, total: float, names: list[str], squares: Mapping[str, float]) -> str:
        """Name of the first tensor that is not finite on any process: the loss, then gradients."""
        if not np.isfinite(total):
            return "loss"
        own = next((i for i, name in enumerate(names) if not np.isfinite(squares[name])), len(names))
        first = int(self.mesh.gather_rows(flow.tensor([own])).numpy().min())
        return [*names, "gradient norm"][first]


class Steps:
    """What the loop asks of a trainer of LiBai. Attributes are LiBai's own where their names are."""

    optimizer: Update

    def begin(self, update: Update) -> None:
        """Keep what LiBai's hooks and writers look for."""
        self.optimizer, self.storage = update, EventStorage().__enter__()
        self.cfg = SimpleNamespace(train=SimpleNamespace(global_batch_size=update.recipe.batch))

    def learn(self, given: Iterable[Given], count: int, lr: float) -> StepResult:
        """One iteration of `count` micro-batches at a learning rate. `iter` counts what the run has done, from 0."""
        update, done = self.optimizer, self.optimizer.rule.steps
        update.zero_grad()
        update.lr, update.share = lr, 1 / count
        self._data_loader_iter, self.grad_acc_steps = iter(given), count
        self.iter = done
        self.before_step()  # type: ignore[attr-defined]
        for self.iter in range(count):  # by which run_step knows the last micro-batch
            self.run_step(lambda data, _: data)  # type: ignore[attr-defined]
        self.finish()
        self.iter = done
        if update.result.bad is None:
            self.storage.iter = done
            self.storage.put_scalars(total_loss=update.result.loss, lr=lr, smoothing_hint=False)
            self.after_step()  # type: ignore[attr-defined]
        return update.result

    def finish(self) -> None:
        """What is left to do after the last micro-batch."""

    def write_metrics(self, loss_dict: Given, data_time: float, prefix: str = "") -> None:
        """Keep a micro-batch's loss. LiBai's own raises on one process where it is not finite; the others hang."""
        self.optimizer.loss += float(loss_dict["loss"].detach().numpy()) * self.optimizer.share


class Eager(Steps, EagerTrainer):
    """LiBai's EagerTrainer."""

    def __init__(self, loss: Loss, update: Update) -> None:
        super().__init__(loss, (), update)
        self.begin(update)


class Call:
    """What LiBai's GraphTrainer calls: a compiled step, whose gradients go to the update."""

    def __init__(self, loss: Loss, step: Step, update: Update) -> None:
        self.model, self.step, self.update = loss, step, update

    def __call__(self, **given: Tensor) -> Given:
        """What Loss takes -> the loss, by name."""
        loss, gradients = self.step(*given.values())
        self.update.add(gradients)
        return {"loss": loss}


class Compiled(Steps, GraphTrainer):
    """LiBai's GraphTrainer, with the update outside of the graph."""

    def __init__(self, loss: Loss, step: Step, update: Update) -> None:
        super().__init__(Call(loss, step, update), ())
        self.begin(update)

    def finish(self) -> None:
        """Update."""
        self.optimizer.step()
