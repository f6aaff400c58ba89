"""What the training loop drives, for a model that a mesh of processes holds together on LiBai's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from backends.oneflow import learner as plain
from backends.oneflow import libai_model, optim
from backends.oneflow.libai_graph import Loss, Step
from backends.oneflow.libai_mesh import Mesh, set_up
from backends.oneflow.numerics import check_labels, length, refuse
from backends.oneflow.quiet import Tensor, flow
from core.errors import UserError
from core.groups import groups
from core.inventory import inventory
from core.learner import StepResult
from core.loader import Batch
from core.schedule import Values
from core.spec import Classifier, Recipe, ViT

Arrays = Mapping[str, np.ndarray]
PREDICT, EMBED, ARRAYS, STATE = range(1, 5)  # what one process may ask of all, beside libai_mesh.WAIT


class Learner:
    """A classifier, its optimiser and its recipe on one process of a mesh. Each process brings its own images."""

    def __init__(self, recipe: Recipe, arrays: Arrays, mesh: Mesh, graph: bool = False) -> None:
        mesh.degrees.check(recipe)
        encoder, objective = recipe.model.encoder, recipe.model.objective
        assert isinstance(encoder, ViT)
        if not isinstance(objective, Classifier):
            raise UserError("LiBai's layers are for fine-tuning and linear probes: pretrain without --*-parallel.")
        set_up(mesh.degrees, encoder.depth)
        self.recipe, self.mesh, self.objective = recipe, mesh, objective
        self.model = libai_model.model(recipe.model, arrays)
        self.names = libai_model.Names(recipe.model)
        state = dict(self.model.named_parameters())
        parameters = inventory(recipe.model)
        self.trained = {p.name: state[self.names.own[p.name]] for p in parameters if p.trainable}
        if recipe.optimizer.kind == "lars" and any(libai_model.is_split(p) for p in self.trained.values()):
            raise UserError("LARS needs the norms of whole matrices, and tensor degrees split them: take adamw or sgd.")
        rules = groups(parameters, recipe.optimizer)
        # The rules go number by number, so each process updates its own parts; to_local shares their memory.
        with flow.no_grad():
            self.parts = {name: p.to_local() for name, p in self.trained.items()}
        self.own = [name for name, part in self.parts.items() if part.numel()]
        self.optimizer = optim.make(self.parts, {name: rules[name] for name in self.own}, recipe.optimizer)
        average = recipe.optimizer.average
        self.average = {name: self.parts[name].clone() for name in self.own} if average else {}
        self.loss = Loss(self.model)
        self.sums: dict[str, Tensor] = {}  # gradients that a graph gave
        self.graph = Step(self.loss, [self.names.own[name] for name in self.trained]) if graph else None
        self.first_layer = next(p.name for p in parameters if p.trainable and p.role in ("linear", "conv"))
        mesh.joins |= {
            PREDICT: lambda rows: self._predict(None, rows),
            EMBED: lambda rows: self._embed(None, rows),
            ARRAYS: lambda rows: self._arrays(),
            STATE: lambda rows: self._state(),
        }

    # ------------------------------------------------------------ training
    def step(self, batches: Sequence[Batch], values: Values) -> StepResult:
        """Learn from one optimiser step's micro-batches. Where anything is not finite, nothing is updated."""
        self._mode(training=True)
        self.sums = {}
        for p in self.trained.values():
            p.grad = None
        total = sum(self._learn(self._given(batch), 1 / len(batches)) for batch in batches)
        with flow.no_grad():
            return self._update(total, values)

    def _learn(self, given: Sequence[Tensor], share: float) -> float:
        """Add a micro-batch's gradients, times its share of the step, to the others'; returns its share of the loss."""
        if self.graph is None:
            loss = self.loss(*given)
            (loss * share).backward()
        else:
            loss, gradients = self.graph(*given)
            for name, gradient in zip(self.trained, gradients):
                self.sums[name] = self.sums[name] + gradient * share if name in self.sums else gradient * share
        return float(loss.detach().numpy()) * share

    def _given(self, batch: Batch) -> list[Tensor]:
        """Images, labels or soft targets, and draws where there are some; the answers are whole where logits are."""
        check_labels(batch.labels, self.objective.classes)
        like = {"placement": self.model.head.weight.placement, "sbp": libai_model.whole()}
        answers = self._everywhere(batch.labels if batch.targets is None else batch.targets).to_global(**like)
        draws = [] if batch.drop_path is None else [self._placed(batch.drop_path, 0)]
        return [self._placed(batch.images[0], 0), answers, *draws]

    def _update(self, total: float, values: Values) -> StepResult:
        gradients = self.sums or {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        squares = {name: self._square(gradient) for name, gradient in gradients.items()}
        every = self.mesh.reduce(flow.tensor([sum(squares.values()), squares.get(self.first_layer, 0.0)]))
        norm, first = (float(square) ** 0.5 for square in every.numpy())
        finite = bool(np.isfinite(total)) and bool(np.isfinite(norm))
        bad = None if finite else self._first_bad(total, list(gradients), squares)
        result = StepResult(loss=total, gradient_norm=norm, first_layer_gradient=first, bad=bad)
        if not finite:
            return result
        limit = self.recipe.optimizer.clip_norm
        factor = 1.0 if limit is None else min(limit / (norm + 1e-6), 1.0)
        for name in self.own:
            if name in gradients:
                self.parts[name].grad = gradients[name].to_local() * factor
        self.optimizer.step(values.lr)
        rate = 1 - (self.recipe.optimizer.average or 0.0)
        for name, average in self.average.items():
            average.mul_(1 - rate).add_(self.parts[name], alpha=rate)
        return result

    def _square(self, gradient: Tensor) -> float:
        """This process's share of a gradient's squared length: what several processes have counts once."""
        part = gradient.to_local()
        if not part.numel():
            return 0.0
        whole, own = np.prod(gradient.shape), part.numel()
        copies = own * gradient.placement.ranks.size / whole
        return float(length(part).numpy()) ** 2 / float(copies)

    def _first_bad(self, total: float, names: list[str], squares: Mapping[str, float]) -> str:
        """Name of the first tensor that is not finite on any process: the loss, then gradients."""
        if not np.isfinite(total):
            return "loss"
        own = next((i for i, name in enumerate(names) if not np.isfinite(squares[name])), len(names))
        first = int(self.mesh.gather_rows(flow.tensor([own])).numpy().min())
        return [*names, "gradient norm"][first]

    # ------------------------------------------------------------ evaluation
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width) float32 of images (n, channels, height, width), in evaluation mode."""
        return self._embed(images, self.mesh.ask(EMBED, len(images)))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) float32, in evaluation mode, of the averaged weights where the recipe keeps them."""
        return self._predict(images, self.mesh.ask(PREDICT, len(images)))

    def _embed(self, images: np.ndarray | None, rows: list[int]) -> np.ndarray:
        def features(x: Tensor) -> Tensor:
            return self.model.forward_features(x).to_global(sbp=libai_model.whole())

        return self._evaluate(features, images, rows)

    def _predict(self, images: np.ndarray | None, rows: list[int]) -> np.ndarray:
        return self._evaluate(self.model, images, rows)

    def _evaluate(self, function: Callable[[Tensor], Tensor], images: np.ndarray | None, rows: list[int]) -> np.ndarray:
        """This process's rows of what all processes compute together; `rows`: how many each of them brings."""
        encoder, most = self.recipe.model.encoder, max(rows)
        padded = np.zeros((most, encoder.channels, *encoder.image), np.float32)
        padded[: rows[self.mesh.rank]] = 0 if images is None else images
        self._mode(training=False)
        self._swap()
        try:
            with flow.no_grad():
                answer = function(self._placed(padded, 0)).numpy()
        finally:
            self._swap()
        start = most * self.mesh.rank
        return answer[start : start + rows[self.mesh.rank]]

    def _swap(self) -> None:
        """Exchange the trained weights for the averaged ones, and back."""
        with flow.no_grad():
            for name, average in self.average.items():
                kept = self.parts[name].clone()
                self.parts[name].copy_(average)
                average.copy_(kept)

    # ------------------------------------------------------------ arrays
    def arrays(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer under its canonical name."""
        self.mesh.ask(ARRAYS)
        return self._arrays()

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimiser's state under canonical names, and the averaged weights under "average/<name>"."""
        self.mesh.ask(STATE)
        return self._state()

    def _arrays(self) -> dict[str, np.ndarray]:
        return libai_model.to_arrays(self.model, self.names)

    def _state(self) -> dict[str, np.ndarray]:
        state = {slot: self.optimizer.state[slot] for slot in self.optimizer.slots}
        state |= {"average": self.average} if self.recipe.optimizer.average else {}
        arrays = {"step": np.array(self.optimizer.steps, np.int64)}
        for slot, parts in state.items():
            for name, p in self.trained.items():
                part = parts.get(name, self.parts[name])  # a process without a part of it brings its empty one
                array = part.to_global(placement=p.placement, sbp=p.sbp).numpy()
                arrays[f"{slot}/{name}"] = self.names.to_canonical(name, array)
        return arrays

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint, in place."""
        libai_model.build.check(self.recipe.model, arrays)
        libai_model.fill(self.model, self.names, arrays)
        if optimizer_arrays is None:
            return
        self.optimizer.steps = int(optimizer_arrays["step"])
        for slot, parts in {**self.optimizer.state, "average": self.average}.items():
            for name, p in self.trained.items() if slot != "average" or self.recipe.optimizer.average else ():
                array = self.names.to_libai(name, np.asarray(optimizer_arrays[f"{slot}/{name}"], np.float32))
                part = Mesh.split(array, p).to_local()
                if name in parts:
                    parts[name].copy_(part)

    def write_libai(self, folder: Path) -> None:
        """Leave the model in LiBai's folder form: FOLDER/model_final/model, and last_checkpoint beside it."""
        self.mesh.ask(ARRAYS)
        arrays = self._arrays()
        if self.mesh.rank == 0:
            libai_model.write(folder, self.names, arrays)
        self.mesh.barrier("LiBai's folder")

    memory = plain.Learner.memory

    # ------------------------------------------------------------ small parts
    def _mode(self, training: bool) -> None:
        frozen = self.objective.frozen_encoder and self.objective.frozen_mode == "eval"
        self.model.train(training and not frozen)

    def _everywhere(self, rows: np.ndarray) -> Tensor:
        """The rows of all processes in rank order, on each of them."""
        return self.mesh.gather_rows(flow.from_numpy(np.ascontiguousarray(rows)).to(self.mesh.device))

    def _placed(self, rows: np.ndarray, layer: int) -> Tensor:
        return self.mesh.place(self._everywhere(rows), layer)


def make(
    recipe: Recipe,
    arrays: Arrays,
    *,
    processes: Mesh,
    device: str = "auto",
    precision: str = "float32",
    compile: bool = False,
    graph: bool = False,
) -> Learner:
    """Return the learner of a recipe from first values under canonical names. graph: compile its steps."""
    refuse(precision, compile)
    return Learner(recipe, arrays, processes, graph)
