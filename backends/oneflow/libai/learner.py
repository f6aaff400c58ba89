"""What the training loop drives, for a model that a mesh of processes shares on LiBai's layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from triport.backends.oneflow.libai import folder as libai_folder
from triport.backends.oneflow.libai import model as libai_model
from triport.backends.oneflow.libai.graph import Loss, Step
from triport.backends.oneflow.libai.mesh import Mesh, set_up
from triport.backends.oneflow.libai.trainer import Compiled, Eager, Given, Update
from triport.backends.oneflow.numerics import refuse
from triport.backends.oneflow.runtime import Tensor, flow
from triport.backends.oneflow.tensors import Tensors
from triport.core.backend.base_learner import check_options, process_memory
from triport.core.backend.build import check
from triport.core.backend.learner import StepResult
from triport.core.backend.objectives import check_labels, trains_in_evaluation_mode
from triport.core.data.loader import Batch
from triport.core.errors import UserError
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.spec import Classifier, Recipe, ViT

Arrays = Mapping[str, np.ndarray]
PREDICT, EMBED, ARRAYS, STATE = range(1, 5)  # what one process may ask of all, beside libai_mesh.WAIT


class Learner:
    """A classifier, its optimiser and its recipe on one process of a mesh. Each process brings its own images."""

    gives_features = False  # of pretraining alone

    def __init__(
        self, recipe: Recipe, arrays: Arrays, mesh: Mesh, graph: bool = False, precision: str = "float32"
    ) -> None:
        mesh.degrees.check(recipe)
        encoder, objective = recipe.model.encoder, recipe.model.objective
        assert isinstance(encoder, ViT)
        if not isinstance(objective, Classifier):
            raise UserError("LiBai's layers are for fine-tuning and linear probes: pretrain without --*-parallel.")
        if graph and objective.head_norm:
            raise UserError(
                "a compiled step of OneFlow 0.9.0 does not move the statistics of the batch norm before this head: "
                "leave out --graph."
            )
        set_up(mesh.degrees, encoder.depth)
        self.recipe, self.mesh, self.objective = recipe, mesh, objective
        self.tensors = Tensors(recipe.model, mesh.device, precision)
        self.model = libai_model.model(recipe.model, arrays, precision)
        self.names = libai_model.Names(recipe.model)
        state = dict(self.model.named_parameters())
        parameters = inventory(recipe.model)
        self.trained = {p.name: state[self.names.own[p.name]] for p in parameters if p.trainable}
        if recipe.optimizer.kind == "lars" and any(libai_model.is_split(p) for p in self.trained.values()):
            raise UserError("LARS needs the norms of whole matrices, and tensor degrees split them: take adamw or sgd.")
        self.update = Update(recipe, mesh, self.trained, groups(parameters, recipe.optimizer), self.tensors)
        loss = Loss(self.model, precision)
        compiled = Step(loss, [self.names.own[name] for name in self.trained]) if graph else None
        self.trainer = Eager(loss, self.update) if compiled is None else Compiled(loss, compiled, self.update)
        # No cycle: a graph has to go on all processes at once, not when one of them collects its garbage.
        me = weakref.proxy(self)
        mesh.joins |= {
            PREDICT: lambda rows: me._predict(None, rows),
            EMBED: lambda rows: me._embed(None, rows),
            ARRAYS: lambda rows: me._arrays(),
            STATE: lambda rows: me._state(),
        }

    # ------------------------------------------------------------ training
    def step(self, batches: Sequence[Batch], values: Values) -> StepResult:
        """Learn from one optimiser step's micro-batches. Where anything is not finite, nothing is updated."""
        self._mode(training=True)
        return self.trainer.learn((self._given(batch) for batch in batches), len(batches), values.lr)

    def _given(self, batch: Batch) -> Given:
        """Images, labels or soft targets, and draws where there are some; the answers are whole where logits are."""
        check_labels(batch.labels, self.objective.classes)
        like = {"placement": self.model.head.weight.placement, "sbp": libai_model.whole()}
        answers = self._everywhere(batch.labels if batch.targets is None else batch.targets).to_global(**like)
        draws = {} if batch.drop_path is None else {"draws": self._placed(batch.drop_path, 0)}
        return {"images": self._placed(batch.images[0], 0), "answers": answers, **draws}

    # ------------------------------------------------------------ evaluation
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width) of images (n, channels, height, width), in evaluation mode."""
        return self._embed(images, self.mesh.ask(EMBED, len(images)))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes), in evaluation mode, of the averaged weights where the recipe keeps them."""
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
        padded = np.zeros((most, encoder.channels, *encoder.image), self.tensors.dtype)
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
            for name, average in self.update.average.items():
                own = self.update.parts[name].clone()
                self.update.parts[name].copy_(average)
                average.copy_(own)

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
        arrays = {"step": np.array(self.update.rule.steps, np.int64)}
        for slot, parts in self._slots().items():
            for name, p in self.trained.items():
                part = parts.get(name, self.update.parts[name])  # a process without a part of it brings its empty one
                array = part.to_global(placement=p.placement, sbp=p.sbp).numpy()
                arrays[f"{slot}/{name}"] = self.names.to_canonical(name, array)
        return arrays

    def _slots(self) -> dict[str, dict[str, Tensor]]:
        average = {"average": self.update.average} if self.recipe.optimizer.average else {}
        return {**self.update.rule.state, **average}

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        """Take over a checkpoint, in place."""
        check(self.recipe.model, arrays)
        libai_model.fill(self.model, self.names, arrays)
        if optimizer_arrays is None:
            return
        self.update.rule.steps = int(optimizer_arrays["step"])
        for slot, parts in self._slots().items():
            for name, p in self.trained.items():
                array = self.names.to_libai(name, self.tensors.typed(np.asarray(optimizer_arrays[f"{slot}/{name}"])))
                part = Mesh.split(array, p).to_local()  # a global operation: all processes make all of them
                if name in parts:
                    parts[name].copy_(part)

    def leave_libai(self, folder: Path, period: int) -> None:
        """From now on keep LiBai's form of the run in a folder, with a checkpoint every `period` steps, 0 for none."""
        hooks = libai_folder.hooks(folder, partial(self.write_libai, folder), period, self.mesh.rank == 0)
        self.trainer.register_hooks(hooks)

    def write_libai(self, folder: Path, name: str = "model_final") -> None:
        """Write a checkpoint in LiBai's form: FOLDER/NAME/{model, optimizer}, and FOLDER/last_checkpoint."""
        self.mesh.ask(ARRAYS)
        arrays = self._arrays()
        self.mesh.ask(STATE)
        state = self._state()
        if self.mesh.rank == 0:
            libai_folder.write(folder, name, self.model, self.names, self.update, arrays, state)
        self.mesh.barrier("LiBai's folder")

    def memory(self) -> int:
        """Most bytes in use so far by the process; OneFlow does not tell of a device."""
        return process_memory()

    # ------------------------------------------------------------ small parts
    def _mode(self, training: bool) -> None:
        self.model.train(training and not trains_in_evaluation_mode(self.recipe.model))

    def _everywhere(self, rows: np.ndarray) -> Tensor:
        """The rows of all processes in rank order, on each of them."""
        return self.mesh.gather_rows(self.tensors.from_host(np.ascontiguousarray(rows)))

    def _placed(self, rows: np.ndarray, layer: int) -> Tensor:
        return self.mesh.place(self._everywhere(rows), layer)


def make(
    recipe: Recipe,
    arrays: Arrays,
    *,
    processes: Mesh,
    device: str = "auto",
    precision: str = "float32",
    compile: bool | None = False,
    graph: bool = False,
    **memory: bool,
) -> Learner:
    """Return the learner of a recipe from initial values under canonical names. graph: compile its steps."""
    check_options([name for name, value in memory.items() if value], ())
    refuse(precision, processes.device)
    if compile:
        raise UserError("on LiBai's layers a compiled step is --graph: take it in the place of --compile.")
    if precision == "float16":
        raise UserError("float16 needs a scaled loss, which LiBai's trainers have not here: take --precision bfloat16.")
    return Learner(recipe, arrays, processes, graph, precision)
