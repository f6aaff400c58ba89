"""A backend as functions, numpy in and numpy out: what the parity tool asks of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from triport.core.backend import objectives
from triport.core.backend.base_learner import BaseLearner
from triport.core.backend.learner import StepResult, settled
from triport.core.backend.recorder import recording
from triport.core.backend.tensors import Arrays, Tensor
from triport.core.data.batches import Batch
from triport.core.model.schedule import Values
from triport.core.spec import MAE, AugmentSpec, DataSpec, MoCo, ModelSpec, OptimizerSpec, Recipe, ScheduleSpec

Answer = dict[str, np.ndarray]
DEVICE = "TRIPORT_PARITY_DEVICE"  # the variable that says where a probe computes; the CPU where it is not set
NO_OPTIMIZER = OptimizerSpec(kind="sgd", lr=0.0, weight_decay=0.0, decays="all")


class Probe:
    """The questions of the parity tool, for the backend whose processes and learner these are."""

    def __init__(self, start: Callable[[str], Any], make: Callable[..., BaseLearner]) -> None:
        self.start, self.make = start, make

    def learner(self, spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, precision: str) -> BaseLearner:
        """A learner on the chosen device, in the group that the launcher's environment describes."""
        device = os.environ.get(DEVICE, "cpu")
        return self.make(recipe_around(spec, optimizer), arrays, self.start(device), precision)

    def forward(
        self,
        spec: ModelSpec,
        arrays: Arrays,
        inputs: Arrays,
        layers: bool = False,
        gradients: bool = False,
        precision: str = "float32",
    ) -> Answer:
        """Evaluation mode. `inputs`: images, and mask_noise (MAE) or labels (classifiers).

        MoCo gives projection and prediction; MAE loss, mask, prediction; a classifier features, logits and, with
        labels, loss. With `layers` the output of every module too, as "layers/<module>"; with `gradients`
        "grad/<parameter>".
        """
        learner = self.learner(spec, arrays, NO_OPTIMIZER, precision)
        tensors, recorded = learner.tensors, contextlib.nullcontext(dict[str, Tensor]())
        learner.set_mode(training=False)
        with contextlib.ExitStack() as stack:
            if not gradients:
                stack.enter_context(tensors.no_grad())
            seen = stack.enter_context(recording(learner.model, tensors) if layers else recorded)
            stack.enter_context(learner.autocast())
            outputs = objectives.evaluation_outputs(learner.model, spec, inputs, learner.loss, tensors)
        answer = {name: tensors.to_host(value) for name, value in {**outputs, **seen}.items()}
        if gradients:
            outputs["loss"].backward()
            answer |= _gradients(learner, "grad/")
        return answer

    def train(
        self,
        spec: ModelSpec,
        arrays: Arrays,
        optimizer: OptimizerSpec,
        batches: Sequence[Sequence[Batch]],
        values: Sequence[Values],
        record: Sequence[str] = ("gradients",),
        precision: str = "float32",
    ) -> Answer:
        """Training steps from given weights, each on a list of micro-batches.

        Gives "step<i>/loss", the objective's other outputs, at the end "final/<name>", and by choice in `record`:
        "gradients" "step<i>/grad/<name>", or "first gradients" of step 0 alone; "weights" "first/<name>" as the model
        holds them, "step<i>/<name>" after the step; "states" "step<i>/state/<slot>/<name>" after the step; "state"
        "state/<slot>/<name>" at the end; "layers" of the first step "layers/<module>", "layers/<module>/input" and
        "backward/<module>" (see recording).
        """
        learner = self.learner(spec, arrays, optimizer, precision)
        answer: Answer = {f"first/{n}": a for n, a in learner.arrays().items()} if "weights" in record else {}
        for i, (micro, now) in enumerate(zip(batches, values)):
            if i == 0 and "layers" in record:
                with recording(learner.model, learner.tensors, gradients=True) as seen:
                    result = settled(learner.step(micro, now))
                answer |= _layers(learner, seen)
            else:
                result = settled(learner.step(micro, now))
            wanted = {*record, "gradients"} if i == 0 and "first gradients" in record else record
            answer |= {f"step{i}/{name}": array for name, array in _of_step(learner, result, wanted).items()}
        answer |= {f"final/{name}": array for name, array in learner.arrays().items()}
        if "state" in record:
            answer |= {f"state/{name}": array for name, array in learner.optimizer_arrays().items()}
        learner.processes.stop()
        return answer

    def embed(self, spec: ModelSpec, arrays: Arrays, images: np.ndarray, precision: str = "float32") -> np.ndarray:
        """Features (n, width) of images, in evaluation mode."""
        return self.learner(spec, arrays, NO_OPTIMIZER, precision).embed(images)


def _layers(learner: BaseLearner, seen: Mapping[str, Tensor]) -> Answer:
    """What the modules gave, each followed by the loss's gradient of it."""
    answer: Answer = {}
    for name, output in seen.items():
        answer[name] = learner.tensors.to_host(output)
        if output.grad is not None:
            answer[name.replace("layers/", "backward/", 1)] = learner.tensors.to_host(output.grad)
    return answer


def _of_step(learner: BaseLearner, result: StepResult, record: Collection[str]) -> Answer:
    """What a step leaves behind."""
    answer = {"loss": np.array(result.loss), "gradient_norm": np.array(result.gradient_norm)}
    answer |= {n: learner.tensors.to_host(output) for n, output in learner.outputs.items() if n != "loss"}
    if "gradients" in record:
        answer |= _gradients(learner, "grad/")
    if "weights" in record:
        answer |= learner.arrays()
    if "states" in record:
        answer |= {f"state/{name}": array for name, array in learner.optimizer_arrays().items()}
    return answer


def _gradients(learner: BaseLearner, prefix: str) -> Answer:
    """Gradients under canonical names, laid out as the parameters are."""
    found = {f"{prefix}{name}": p.grad for name, p in learner.trained.items() if p.grad is not None}
    return learner.tensors.arrays(found)


def recipe_around(spec: ModelSpec, optimizer: OptimizerSpec) -> Recipe:
    """A recipe around a model: only its model and optimizer are ever read here."""
    task: Literal["pretrain", "finetune"] = "pretrain" if isinstance(spec.objective, (MoCo, MAE)) else "finetune"
    empty = AugmentSpec(views=())
    return Recipe(
        name="probe",
        title="probe",
        source="",
        task=task,
        model=spec,
        train=empty,
        evaluate=empty,
        optimizer=optimizer,
        schedule=ScheduleSpec(epochs=1, warmup_epochs=0),
        data=DataSpec(name=""),
        batch=1,
    )
