"""What the training loop drives: one optimiser step, features, predictions, arrays in and out, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from triport.backends.paddle import build, optim
from triport.backends.paddle.classify import classification_loss
from triport.backends.paddle.distributed import Processes
from triport.backends.paddle.kernels import length
from triport.backends.paddle.layers import BatchNorm
from triport.backends.paddle.resnet import ResidualNetwork
from triport.backends.paddle.runtime import F, Tensor, nn, paddle
from triport.core.backend.learner import StepResult
from triport.core.data.loader import Batch
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.spec import MAE, Classifier, MoCo, Recipe

Arrays = Mapping[str, np.ndarray]
MESSAGE = 1 << 25  # numbers that are averaged over the processes in one message, about


class Learner:
    """A model, its optimiser and its recipe on one process among several."""

    def __init__(
        self, recipe: Recipe, arrays: Arrays, processes: Processes, precision: str = "float32", compile: bool = False
    ) -> None:
        self.recipe, self.processes, self.precision = recipe, processes, precision
        self.device = processes.device
        if precision != "float32" and self.device.is_cpu_place():
            raise UserError(f"precision '{precision}' has no effect on Paddle's CPU build: leave --precision out there")
        if compile:  # to_static has neither the kernels of kernels.py nor better ones
            raise UserError("Paddle's compiled mode would make these models slower: leave --compile out")
        self.model = build.build(recipe.model, arrays)
        for module in self.model.sublayers():
            if isinstance(module, BatchNorm) and processes.world > 1:
                module.reduce = processes.reduce
        parameters, named = inventory(recipe.model), dict(self.model.named_parameters())
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
        total, outputs = paddle.zeros([]), self.outputs
        for batch in batches:
            self.processes.barrier("step")  # batches may have been late on one of them
            with self._precision():
                outputs = self.forward(**self.inputs(batch))
            self._backward(outputs["loss"] / len(batches))
            total += outputs["loss"].detach() / len(batches)
        self.outputs = {name: output.detach() for name, output in outputs.items()}
        return self._update(total, values)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self, total: Tensor, values: Values) -> StepResult:
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        self._share([total, *gradients.values()])
        loss, norm = float(total), optim.global_norm(list(gradients.values()))
        first = gradients.get(self.first_layer)
        finite = bool(np.isfinite(loss)) and bool(paddle.isfinite(norm))
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
        with paddle.no_grad():
            for name, average in (self.average or {}).items():
                average.lerp_(self.trained[name], 1 - (self.recipe.optimizer.average or 0.0))
        return result

    @paddle.no_grad()
    def _share(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the processes, in place, many in one message."""
        self.processes.barrier("gradients")
        while tensors and self.processes.world > 1:
            count, size = 0, 0
            while count < len(tensors) and size < MESSAGE:
                count, size = count + 1, size + tensors[count].size
            some, tensors = tensors[:count], tensors[count:]
            flat = self.processes.reduce(paddle.concat([tensor.flatten() for tensor in some])) / self.processes.world
            for tensor, part in zip(some, flat.split([tensor.size for tensor in some])):
                paddle.assign(part.reshape(tensor.shape), tensor)

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """A batch as the tensors that the objective's forward takes."""
        images = [paddle.to_tensor(view) for view in batch.images]
        objective = self.recipe.model.objective
        if isinstance(objective, MoCo):
            return {"one": images[0], "two": images[1]}
        if isinstance(objective, MAE):
            assert batch.mask_noise is not None
            mask = masking.mask(batch.mask_noise, objective.mask_ratio)
            return {"one": images[0], **{k: paddle.to_tensor(v) for k, v in mask._asdict().items()}}
        draws, targets = batch.drop_path, batch.targets
        return {
            "one": images[0],
            "labels": paddle.to_tensor(batch.labels),
            "targets": None if targets is None else paddle.to_tensor(targets),
            "draws": None if draws is None else paddle.to_tensor(draws),
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
        averaged = {f"average/{name}": value.numpy() for name, value in (self.average or {}).items()}
        state = build.turned(self.recipe.model, {**self.optimizer.arrays(), **averaged})
        return {name: np.array(array, order="C") for name, array in state.items()}

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint, in place."""
        build.check(self.recipe.model, arrays)
        held = self.model.state_dict()
        for name, array in build.turned(self.recipe.model, arrays).items():
            held[name].set_value(build.tensor(array))
        if optimizer_arrays is not None:
            state = build.turned(self.recipe.model, optimizer_arrays)
            self.optimizer.load(state)
            for name, value in (self.average or {}).items():
                value.set_value(build.tensor(state[f"average/{name}"]))

    def memory(self) -> int:
        """Most bytes in use so far: of the device, or of the process on a CPU."""
        if self.device.is_gpu_place():
            return paddle.device.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _mode(self, training: bool) -> None:
        objective = self.recipe.model.objective
        frozen = isinstance(objective, Classifier) and objective.frozen_encoder and objective.frozen_mode == "eval"
        self.model.train() if training and not frozen else self.model.eval()

    def _precision(self):  # type: ignore[no-untyped-def]
        return paddle.amp.auto_cast(enable=self.precision == "bfloat16", dtype="bfloat16", level="O1")

    def _evaluate(self, function, images: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        self._mode(training=False)
        self._swap()  # to the averaged weights; the trained ones come back after
        try:
            with paddle.no_grad(), self._precision():
                return function(paddle.to_tensor(images)).astype("float32").numpy()
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in (self.average or {}).items():
            trained = self.trained[name]
            kept = trained.detach().clone()
            trained.set_value(average)
            average.set_value(kept)


class _Step(nn.Layer):
    """Inputs -> loss and outputs, as one module."""

    def __init__(self, model: nn.Layer, recipe: Recipe, processes: Processes) -> None:
        super().__init__()
        self.model, self.objective, self.processes = model, recipe.model.objective, processes

    def forward(self, one: Tensor, two: Tensor | None = None, **rest: Tensor | None) -> dict[str, Tensor]:
        """`one` and `two` are views; `rest` is a mask (MAE), or labels, targets and draws (classifiers)."""
        if isinstance(self.objective, MoCo):
            return self.model(one, two, self.processes.gather_rows, self.processes.rank)
        if isinstance(self.objective, MAE):
            return self.model.reconstruct(one, **rest)
        if self.objective.frozen_encoder:
            with paddle.no_grad():
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
    unit = F.normalize(rows.detach().astype("float32"), axis=1)
    return float(unit.std(axis=0).mean() * rows.shape[1] ** 0.5)


def _first_bad(loss: float, gradients: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that is not finite, in the order of computation: the loss, then gradients."""
    if not np.isfinite(loss):
        return "loss"
    return next((name for name, g in gradients.items() if not bool(paddle.isfinite(g).all())), "gradient norm")
