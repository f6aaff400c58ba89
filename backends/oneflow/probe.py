"""The backend as functions, numpy in and numpy out: what parity asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from triport.backends.oneflow import build, distributed
from triport.backends.oneflow.classify import classification_loss
from triport.backends.oneflow.learner import Learner
from triport.backends.oneflow.runtime import Tensor, flow, nn
from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.schedule import Values
from triport.core.spec import MAE, AugmentSpec, DataSpec, MoCo, ModelSpec, OptimizerSpec, Recipe, ScheduleSpec

Arrays = Mapping[str, np.ndarray]
Answer = dict[str, np.ndarray]


def forward(spec: ModelSpec, arrays: Arrays, inputs: Arrays, layers: bool = False, gradients: bool = False) -> Answer:
    """Evaluation mode. `inputs`: images, and mask_noise (MAE) or labels (classifiers).

    MoCo gives projection and prediction; MAE loss, mask, prediction; a classifier features, logits and, with labels,
    loss. With `layers` the output of every module too, as "layers/<module>"; with `gradients` "grad/<parameter>".
    """
    model = build.build(spec, arrays).eval()
    images = flow.from_numpy(inputs["images"])
    seen: dict[str, Tensor] = {}
    with flow.set_grad_enabled(gradients), _watched(model, seen if layers else None):
        outputs = _outputs(spec, model, images, inputs)
    if gradients:
        outputs["loss"].backward()
        outputs |= {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().numpy() for name, value in {**outputs, **seen}.items()}


def _outputs(spec: ModelSpec, model: nn.Module, images: Tensor, inputs: Arrays) -> dict[str, Tensor]:
    if isinstance(model, build.MoCoV3):
        projection = model.base_encoder(images)
        return {"projection": projection, "prediction": model.predictor(projection)}
    if isinstance(spec.objective, MAE):
        mask = masking.mask(inputs["mask_noise"], spec.objective.mask_ratio)
        tensors = {name: flow.from_numpy(value) for name, value in mask._asdict().items()}
        return model.reconstruct(images, **tensors)
    features = model.features(images)
    head = model.fc if hasattr(model, "fc") else model.head
    outputs = {"features": features, "logits": head(features)}
    if "labels" in inputs:
        outputs["loss"] = classification_loss(outputs["logits"], flow.from_numpy(inputs["labels"]), None)
    return outputs


def train(
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
    "gradients" "step<i>/grad/<name>"; "weights" "first/<name>" as the model holds them, "step<i>/<name>" after the
    step; "states" "step<i>/state/<slot>/<name>" after the step; "state" "state/<slot>/<name>" at the end; "layers"
    of the first step "layers/<module>", "layers/<module>/input" and "backward/<module>" (see `_watched`).
    """
    processes = distributed.start("cpu")
    learner = Learner(_recipe(spec, optimizer), arrays, processes, precision)
    answer: Answer = {f"first/{n}": a for n, a in learner.arrays().items()} if "weights" in record else {}
    for i, (micro, now) in enumerate(zip(batches, values)):
        seen: dict[str, Tensor] | None = {} if i == 0 and "layers" in record else None
        with _watched(learner.model, seen, gradients=True):
            result = learner.step(micro, now)
        for name, output in (seen or {}).items():
            answer[name] = output.detach().float().cpu().numpy()
            if output.grad is not None:
                answer[name.replace("layers/", "backward/", 1)] = output.grad.float().cpu().numpy()
        answer[f"step{i}/loss"] = np.array(result.loss)
        answer[f"step{i}/gradient_norm"] = np.array(result.gradient_norm)
        for name, output in learner.outputs.items():
            if name != "loss":
                answer[f"step{i}/{name}"] = output.float().cpu().numpy()
        if "gradients" in record:
            grads = {n: p.grad for n, p in learner.trained.items() if p.grad is not None}
            answer |= {f"step{i}/grad/{n}": g.cpu().numpy().copy() for n, g in grads.items()}
        if "weights" in record:
            answer |= {f"step{i}/{n}": a for n, a in learner.arrays().items()}
        if "states" in record:
            answer |= {f"step{i}/state/{n}": a for n, a in learner.optimizer_arrays().items()}
    answer |= {f"final/{name}": array for name, array in learner.arrays().items()}
    if "state" in record:
        answer |= {f"state/{name}": array for name, array in learner.optimizer_arrays().items()}
    processes.stop()
    return answer


def embed(spec: ModelSpec, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    """Features (n, width) of images, in evaluation mode."""
    optimizer = OptimizerSpec(kind="sgd", lr=0.0, weight_decay=0.0, decays="all")
    return Learner(_recipe(spec, optimizer), arrays, distributed.start("cpu")).embed(images)


def _recipe(spec: ModelSpec, optimizer: OptimizerSpec) -> Recipe:
    """A recipe around a model: only its model and optimiser are ever read here."""
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


@contextmanager
def _watched(model: nn.Module, seen: dict[str, Tensor] | None, gradients: bool = False) -> Iterator[None]:
    """Within, modules leave their outputs in `seen`, in order: "layers/<module>", at a second call "layers/<module>@2".

    Modules without children leave what they are fed as well, "layers/<module>/input", where it is not the very output
    of another. With `gradients` these tensors keep theirs.
    """
    calls: dict[str, int] = {}

    def note(name: str, value: object) -> None:
        if isinstance(value, Tensor) and seen is not None:
            if gradients and value.requires_grad:
                value.retain_grad()
            seen[name] = value

    def watch(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            if seen is None:
                return
            calls[name] = calls.get(name, 0) + 1
            call = f"@{calls[name]}" if calls[name] > 1 else ""
            if not any(True for _ in module.children()) and not any(given[0] is x for x in seen.values()):
                note(f"layers/{name}/input{call}", given[0])
            note(f"layers/{name}{call}", output)

        return hook

    for name, module in [] if seen is None else model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    yield
    seen = None  # hooks of OneFlow cannot be removed
