"""What the training loop drives, for any framework: a step, features, predictions, arrays in and out, memory."""

from __future__ import annotations

import math
import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from triport.core.backend import objectives
from triport.core.backend.base_optimizer import BaseOptimizer
from triport.core.backend.base_processes import BaseProcesses
from triport.core.backend.build import check, first_layer
from triport.core.backend.learner import StepResult, settled
from triport.core.backend.tensors import Arrays, Tensor, Tensors
from triport.core.data.batches import Batch
from triport.core.errors import UserError
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.model.spread import spread
from triport.core.spec import MoCo, Recipe

OWNERS = {"checkpoint_activations": "torch", "shard": "torch", "amp_o2": "paddle"}  # of an option, its backend
Rules = Mapping[str, type[BaseOptimizer]]  # by OptimizerSpec.kind


class BaseLearner(ABC):
    """A model, its optimizer and its recipe on one process among several; see learner.Learner for the contract."""

    own_options: frozenset[str] = frozenset()  # those of OWNERS that this backend has
    divided = False  # whether arrays and optimizer_arrays are for all processes at once; the first one gets them
    late = False  # whether a step gives a Pending: then nothing in it waits for the device
    gives_features = False

    def __init__(self, recipe: Recipe, model: Any, tensors: Tensors, processes: BaseProcesses, rules: Rules) -> None:
        self.recipe, self.model, self.tensors, self.processes = recipe, model, tensors, processes
        self.device = processes.device
        if processes.world > 1:
            for _, module in tensors.modules(model):
                if hasattr(module, "reduce"):  # a batch norm
                    module.gather, module.reduce = processes.gather_rows, processes.reduce
            if isinstance(recipe.model.objective, MoCo):
                model.pair_views()
        parameters, named = inventory(recipe.model), tensors.parameters(model)
        self.trained = {p.name: named[p.name] for p in parameters if p.trainable}
        rule, spec = rules[recipe.optimizer.kind], recipe.optimizer
        self.optimizer = rule(self.trained, groups(parameters, spec), spec, tensors)
        self.first_layer = first_layer(recipe.model)
        averaged = self.trained if recipe.optimizer.average else {}
        self.averages = {name: p.detach().clone() for name, p in averaged.items()}
        self.outputs: dict[str, Tensor] = {}  # of the last micro-batch

    @classmethod
    def make(
        cls,
        recipe: Recipe,
        arrays: Arrays,
        *,
        processes: Any,
        device: str = "auto",
        precision: str = "float32",
        compile: bool | None = False,
        **memory: bool,
    ) -> Any:
        """Return the learner of a recipe from initial values under canonical names; the device is the processes'.

        compile: None leaves it to the backend. memory: options of OWNERS, each of one backend.
        """
        asked = {name: True for name, value in memory.items() if value}
        check_options(asked, cls.own_options)
        return cls(recipe, arrays, processes, precision, compile, **asked)  # type: ignore[arg-type]

    # ------------------------------------------------------------ what a framework says itself
    @staticmethod
    @abstractmethod
    def loss(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """A classifier's cross entropy."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes in a lower precision."""
        return nullcontext()

    def inference(self) -> AbstractContextManager[Any]:
        """The context of forward passes without gradients."""
        return self.tensors.no_grad()

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """The inputs of a micro-batch -> its loss and other outputs."""
        return self.of_model(self.model, given)

    def of_model(self, model: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of what a compiler has made of the model."""
        return objectives.outputs(model, self.recipe.model, given, self.processes, self.loss, self.tensors)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to the others'."""
        loss.backward()

    def average_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Make every gradient the mean over the processes, in place."""
        self.processes.meet("gradients")
        self.processes.average(list(gradients.values()), self.tensors)

    def device_memory(self) -> int:
        """Most bytes in use so far on a device with memory of its own, else 0."""
        return 0

    # ------------------------------------------------------------ training
    def ahead(self, steps: Iterable[Sequence[Batch]]) -> Iterable[Sequence[Any]]:
        """The steps' batches, on their way to the device where that takes time."""
        return steps

    def step(self, batches: Sequence[Any], values: Values, flags: Sequence[int] = ()) -> Any:
        """Learn from one optimizer step's micro-batches. Where anything is not finite, nothing is updated.

        flags: numbers whose largest over the ranks comes with the result, where the learner is `late`.
        """
        self.set_mode(training=True)
        self.tensors.clear_gradients(list(self.trained.values()))
        if isinstance(self.recipe.model.objective, MoCo):
            self.model.update_momentum(values.momentum)
        total, features = None, []
        for i, batch in enumerate(batches):
            self.outputs = self.learn(self.inputs(batch), len(batches), last=i == len(batches) - 1)
            seen = self.outputs.pop("features", None)
            if self.gives_features and seen is not None:
                features.append(self.tensors.to_host(seen))
            loss = self.outputs["loss"].detach() / len(batches)
            total = loss if total is None else total + loss
        self.outputs = {name: output.detach() for name, output in self.outputs.items()}
        result = self.update(total, values, flags)
        if not features:
            return result
        return replace(settled(result), features=np.concatenate(features))  # whoever wants them waits for them

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        """A batch as the tensors that `forward` takes."""
        return {
            name: self.tensors.from_bytes(array, batch.table)
            if array.dtype == np.uint8 and batch.table is not None
            else self.tensors.from_host(array)
            for name, array in objectives.inputs(self.recipe.model, batch).items()
        }

    def learn(self, given: Mapping[str, Tensor], count: int, last: bool) -> dict[str, Tensor]:
        """Forward and backward pass of one of `count` micro-batches; returns the outputs."""
        self.processes.meet("step")  # batches may have been late on one of them
        with self.autocast():
            outputs = self.forward(**given)
        self.backward(outputs["loss"] / count)
        return outputs

    def update(self, total: Tensor, values: Values, flags: Sequence[int] = ()) -> Any:
        """Average loss and gradients over the processes, clip, and update if all is finite."""
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        self.average_gradients(gradients)
        loss = float(self.processes.reduce(total) / self.processes.world)
        norm = self.tensors.joint_norm(list(gradients.values()))
        first = gradients.get(self.first_layer)
        bad = None if math.isfinite(loss) and math.isfinite(float(norm)) else self._first_bad(loss, gradients)
        views = self.outputs.get("q1")
        result = StepResult(
            loss=loss,
            gradient_norm=float(norm),
            first_layer_gradient=0.0 if first is None else float(self.tensors.norm(first)),
            bad=bad,
            extras={} if views is None else {"spread": spread(self.tensors.to_host(views))},
        )
        if bad is not None:
            return result
        if self.recipe.optimizer.clip_norm is not None:
            self.tensors.clip(list(self.trained.values()), norm, self.recipe.optimizer.clip_norm)
        self.optimizer.step(values.lr)
        if self.averages:
            averages, momentum = list(self.averages.values()), self.recipe.optimizer.average or 0.0
            self.tensors.follow(averages, list(self.trained.values()), momentum)
        return result

    def _first_bad(self, loss: float, gradients: Mapping[str, Tensor]) -> str:
        """Name of the first tensor that is not finite, in the order of computation: the loss, then gradients."""
        if not math.isfinite(loss):
            return "loss"
        return next((name for name, g in gradients.items() if not self.tensors.is_finite(g)), "gradient norm")

    def set_mode(self, training: bool) -> None:
        """Put the model into training or evaluation mode, as the objective has it."""
        if training and not objectives.trains_in_evaluation_mode(self.recipe.model):
            self.model.train()
        else:
            self.model.eval()

    # ------------------------------------------------------------ evaluation
    def whole(self) -> AbstractContextManager[Any]:
        """The context of an evaluation during training, which all processes enter at once."""
        return nullcontext()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width) of images (n, channels, height, width), in evaluation mode."""
        encoder = self.model.base_encoder if isinstance(self.recipe.model.objective, MoCo) else self.model
        return self._evaluate(encoder.features, images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes), in evaluation mode, of the averaged weights where the recipe keeps them."""
        return self._evaluate(self.model, images)

    def reconstruct(self, images: np.ndarray, mask_noise: np.ndarray) -> dict[str, np.ndarray]:
        """Of images under noise (n, patches): mask, prediction (n, patches, pixels), loss; in evaluation mode."""
        given = {"images": images, "mask_noise": mask_noise}
        self.set_mode(training=False)
        with self._averaged(), self.inference(), self.autocast():
            found = objectives.evaluation_outputs(self.model, self.recipe.model, given, self.loss, self.tensors)
            return {name: self.tensors.to_host(found[name]) for name in ("mask", "prediction", "loss")}

    def _evaluate(self, function: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
        self.set_mode(training=False)
        with self._averaged(), self.inference(), self.autocast():
            return self.tensors.to_host(function(self.tensors.from_host(images)))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights; the trained ones come back after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in self.averages.items():
            self.tensors.swap(self.trained[name], average)

    # ------------------------------------------------------------ state
    def arrays(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer under its canonical name."""
        return self.tensors.arrays(self.model.state_dict())

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimizer's state, and the averaged weights under "average/<name>"."""
        return {**self.optimizer.arrays(), **self.tensors.arrays(self._averages())}

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint, in place."""
        check(self.recipe.model, arrays)
        self.tensors.fill(self.model.state_dict(), arrays)
        if optimizer_arrays is not None:
            self.optimizer.load(optimizer_arrays)
            lost = next((name for name in self._averages() if name not in optimizer_arrays), None)
            if lost is not None:
                raise UserError(
                    f"the state lacks '{lost}', and the recipe averages weights (optimizer.average): "
                    "start a new run from its weights with --weights."
                )
            self.tensors.fill(self._averages(), optimizer_arrays)

    def _averages(self) -> dict[str, Tensor]:
        return {f"average/{name}": tensor for name, tensor in self.averages.items()}

    def memory(self) -> int:
        """Most bytes in use so far: of the device, or of the process on a CPU."""
        return self.device_memory() or process_memory()


def check_options(asked: Iterable[str], known: Collection[str]) -> None:
    """Raise UserError naming the first option, of those that one backend has, which this one does not know."""
    for name in asked:
        if name not in known:
            flag, owner = "--" + name.replace("_", "-"), OWNERS[name]
            raise UserError(f"{flag} is an option of the backend {owner}: leave it out, or take --backend {owner}")


def process_memory() -> int:
    """Most bytes in use so far by this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
