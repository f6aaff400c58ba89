"""What the training loop drives: one optimiser step, features, predictions, arrays in and out, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from triport.backends.oneflow import build, optim
from triport.backends.oneflow.classify import classification_loss
from triport.backends.oneflow.distributed import Processes
from triport.backends.oneflow.layers import BatchNorm
from triport.backends.oneflow.numerics import check_labels, length, refuse
from triport.backends.oneflow.resnet import ResidualNetwork
from triport.backends.oneflow.runtime import F, Tensor, flow, nn
from triport.core.backend.learner import StepResult
from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.spec import MAE, Classifier, MoCo, Recipe

Arrays = Mapping[str, np.ndarray]


class Learner:
    """A model, its optimiser and its recipe on one process among several."""

    def __init__(
        self, recipe: Recipe, arrays: Arrays, processes: Processes, precision: str = "float32", compile: bool = False
    ) -> None:
        refuse(precision, compile)
        self.recipe, self.processes, self.precision = recipe, processes, precision
        self.device = processes.device
        self.model = build.build(recipe.model, arrays).to(self.device)
        for module in self.model.modules():
            if isinstance(module, BatchNorm) and processes.world > 1:
                module.reduce = processes.reduce
        parameters = inventory(recipe.model)
        named = dict(self.model.named_parameters())
        self.trained = {p.name: named[p.name] for p in parameters if p.trainable}
        self.optimizer = optim.make(self.trained, groups(parameters, recipe.optimizer), recipe.optimizer)
        self.first_layer = next(p.name for p in parameters if p.trainable and p.role in ("linear", "conv"))
        self.average = {n: p.detach().clone() for n, p in self.trained.items()} if recipe.optimizer.average else None
        self.outputs: dict[str, Tensor] = {}  # of the last micro-batch
        self.forward = _Step(self.model, recipe, processes)

    def step(self, batches: Sequence[Batch], values: Values) -> StepResult:
        """Learn from one optimiser step's micro-batches. Where anything is not finite, nothing is updated."""
        self._mode(training=True)
        self.optimizer.clear()
        if isinstance(self.model, build.MoCoV3):
            self.model.update_momentum(values.momentum)
        total, outputs = flow.zeros((), device=self.device), self.outputs
        for batch in batches:
            outputs = self.forward(**self.inputs(batch))
            (outputs["loss"] / len(batches)).backward()
            total += outputs["loss"].detach() / len(batches)
        self._share_gradients()
        self.outputs = {name: output.detach() for name, output in outputs.items()}
        return self._update(total, values)

    def _share_gradients(self) -> None:
        """Make every gradient the mean over the processes, in one message."""
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        if self.processes.world == 1 or not gradients:
            return
        every = self.processes.reduce(flow.cat([g.reshape(-1) for g in gradients])) / self.processes.world
        for gradient, part in zip(gradients, every.split([g.numel() for g in gradients])):
            gradient.copy_(part.reshape(*gradient.shape))

    def _update(self, total: Tensor, values: Values) -> StepResult:
        loss = float(self.processes.reduce(total) / self.processes.world)
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        norm = optim.global_norm(list(gradients.values()))
        first = gradients.get(self.first_layer)
        finite = bool(np.isfinite(loss)) and bool(np.isfinite(float(norm)))
        result = StepResult(
            loss=loss,
            gradient_norm=float(norm),
            first_layer_gradient=0.0 if first is None else float(length(first)),
            bad=None if finite else _first_bad(loss, gradients),
            extras={"spread": _spread(self.outputs["q1"])} if "q1" in self.outputs else {},
        )
        if not finite:
            return result
        if self.recipe.optimizer.clip_norm is not None:
            optim.clip(list(gradients.values()), norm, self.recipe.optimizer.clip_norm)
        self.optimizer.step(values.lr)
        if self.average is not None:
            rate = 1 - (self.recipe.optimizer.average or 0.0)
            for name, average in self.average.items():
                average.mul_(1 - rate).add_(self.trained[name].detach(), alpha=rate)
        return result

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """A batch as the tensors that the objective's forward takes."""
        images = [self._tensor(view) for view in batch.images]
        objective = self.recipe.model.objective
        if isinstance(objective, MoCo):
            return {"one": images[0], "two": images[1]}
        if isinstance(objective, MAE):
            assert batch.mask_noise is not None
            mask = masking.mask(batch.mask_noise, objective.mask_ratio)
            return {"one": images[0], **{k: self._tensor(v) for k, v in mask._asdict().items()}}
        draws, targets = batch.drop_path, batch.targets
        check_labels(batch.labels, objective.classes)
        return {
            "one": images[0],
            "labels": self._tensor(batch.labels),
            "targets": None if targets is None else self._tensor(targets),
            "draws": None if draws is None else self._tensor(draws),
        }

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width) float32 of images (n, channels, height, width), in evaluation mode."""
        encoder = self.model.base_encoder if isinstance(self.model, build.MoCoV3) else self.model
        return self._evaluate(encoder.features, images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) float32, in evaluation mode, of the averaged weights where the recipe keeps them."""
        return self._evaluate(self.model, images)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer under its canonical name."""
        return build.to_arrays(self.model)

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimiser's state, and the averaged weights under "average/<name>"."""
        averaged = {} if self.average is None else self.average
        return {**self.optimizer.arrays(), **{f"average/{n}": t.cpu().numpy().copy() for n, t in averaged.items()}}

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint, in place."""
        build.check(self.recipe.model, arrays)
        with flow.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(build.tensor(arrays[name]))
            if optimizer_arrays is not None:
                self.optimizer.load(optimizer_arrays)
                for name, value in (self.average or {}).items():
                    value.copy_(build.tensor(optimizer_arrays[f"average/{name}"]))

    def memory(self) -> int:
        """Most bytes in use so far by the process; OneFlow does not tell of a device."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _mode(self, training: bool) -> None:
        objective = self.recipe.model.objective
        frozen = isinstance(objective, Classifier) and objective.frozen_encoder and objective.frozen_mode == "eval"
        self.model.train(training and not frozen)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return flow.from_numpy(array).to(self.device)

    def _evaluate(self, function, images: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        self._mode(training=False)
        with flow.no_grad(), self._averaged():
            return function(self._tensor(images)).float().cpu().numpy()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights; the trained ones come back after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in (self.average or {}).items():
            trained = self.trained[name]
            trained.data, self.average[name] = average, trained.data  # type: ignore[index]


class _Step(nn.Module):
    """Inputs -> loss and outputs, as one module, whatever the objective."""

    def __init__(self, model: nn.Module, recipe: Recipe, processes: Processes) -> None:
        super().__init__()
        self.model, self.objective, self.processes = model, recipe.model.objective, processes

    def forward(self, one: Tensor, two: Tensor | None = None, **rest: Tensor | None) -> dict[str, Tensor]:
        """`one` and `two` are views; `rest` is a mask (MAE), or labels, targets and draws (classifiers)."""
        if isinstance(self.objective, MoCo):
            return self.model(one, two, self.processes.gather_rows, self.processes.rank)
        if isinstance(self.objective, MAE):
            return self.model.reconstruct(one, **rest)
        if self.objective.frozen_encoder:
            with flow.no_grad():
                features = self.model.features(one)
            head = self.model.fc if isinstance(self.model, ResidualNetwork) else self.model.head
            logits = head(features)  # type: ignore[misc]
        else:
            logits = self.model(one, rest["draws"])
        labels, targets = rest["labels"], rest["targets"]
        assert labels is not None
        return {"loss": classification_loss(logits, labels, targets), "logits": logits}


def make(
    recipe: Recipe,
    arrays: Arrays,
    *,
    processes: Processes,
    device: str = "auto",
    precision: str = "float32",
    compile: bool = False,
) -> Learner:
    """Return the learner of a recipe from initial values under canonical names. `device` is the processes' own."""
    return Learner(recipe, arrays, processes, precision, compile)


def _spread(rows: Tensor) -> float:
    """Mean deviation of unit-length rows times the root of their width: 1 spread evenly, 0 collapsed."""
    unit = F.normalize(rows.detach().float(), dim=1)
    return float(unit.std(dim=0, unbiased=True).mean() * rows.shape[1] ** 0.5)


def _first_bad(loss: float, gradients: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that is not finite, in the order of computation: the loss, then gradients."""
    if not np.isfinite(loss):
        return "loss"
    return next((name for name, g in gradients.items() if not bool(flow.isfinite(g).all())), "gradient norm")
