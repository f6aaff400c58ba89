"""What tests ask of a mesh on LiBai's layers: training, uneven evaluation, taking over a state, LiBai's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.oneflow import libai_learner, libai_mesh, libai_model, libai_options, probe
from backends.oneflow.quiet import flow
from core.batches import Batch
from core.errors import UserError
from core.schedule import Values
from core.spec import ModelSpec, OptimizerSpec

Arrays = dict[str, NDArray]


def learner(spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, degrees: tuple[int, ...], graph: bool = False):
    """A learner on the mesh that this process is part of."""
    mesh = libai_mesh.start("cpu", libai_mesh.Degrees(*degrees))
    return libai_learner.Learner(probe._recipe(spec, optimizer), arrays, mesh, graph)


def train(
    spec: ModelSpec,
    arrays: Arrays,
    optimizer: OptimizerSpec,
    degrees: tuple[int, ...],
    batches: Sequence[Sequence[Batch]],
    values: Sequence[Values],
    graph: bool = False,
    state: Arrays | None = None,
) -> Arrays:
    """Training steps from given weights and, with `state`, a given optimiser's state."""
    made = learner(spec, arrays, optimizer, degrees, graph)
    if state is not None:
        made.load(arrays, state)
    answer: Arrays = {}
    for i, (micro, now) in enumerate(zip(batches, values)):
        result = made.step(micro, now)
        answer[f"step{i}/loss"] = np.array(result.loss)
        answer[f"step{i}/gradient_norm"] = np.array(result.gradient_norm)
        answer[f"step{i}/first"] = np.array(result.first_layer_gradient)
        answer[f"step{i}/bad"] = np.array(result.bad is not None)
    answer |= {f"final/{name}": array for name, array in made.arrays().items()}
    return answer | {f"state/{name}": array for name, array in made.optimizer_arrays().items()}


def evaluate(
    spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, degrees: tuple[int, ...], calls: Sequence[NDArray]
) -> Arrays:
    """Answers to each call's images; processes make another number of calls, with other numbers of images."""
    made = learner(spec, arrays, optimizer, degrees)
    answers = [made.predict(images) for images in calls]
    features = [made.embed(images) for images in calls[:1]]
    rows = made.mesh.gather(np.array([[len(calls)]]))  # whoever is done takes part in what the others ask
    made.mesh.barrier("end")
    width = spec.objective.classes  # type: ignore[union-attr]
    empty = [np.zeros((0, width), np.float32)]
    return {
        "logits": np.concatenate(answers or empty),
        "features": np.concatenate(features or [np.zeros((0, 1), np.float32)]),
        "calls": rows,
    }


def folder(spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, degrees: tuple[int, ...], path: str) -> Arrays:
    """Write LiBai's folder form, then let LiBai's Checkpointer read it into a model of other values."""
    from libai.utils.checkpoint import Checkpointer

    made = learner(spec, arrays, optimizer, degrees)
    made.write_libai(Path(path))
    with flow.no_grad():
        for p in made.model.parameters():
            p.mul_(0.5)
    checkpointer = Checkpointer(made.model, path)
    assert checkpointer.has_checkpoint()
    found = checkpointer.load(checkpointer.get_checkpoint_file(), checkpointables=[])
    assert found["iter"] == 0
    return made.arrays()


def names(spec: ModelSpec) -> dict[str, str]:
    """Canonical names and LiBai's."""
    return libai_model.Names(spec).own


def settle(given: Sequence[str]) -> list[str]:
    """The words that a command line of a model in parts becomes, or what it is refused with, and its mesh."""
    try:
        options, words = libai_options.settle(given)
        mesh = libai_options.degrees(options)
        return [*words, f"{mesh.data},{mesh.tensor},{mesh.pipeline},{options.graph}"]
    except UserError as error:
        return ["error", str(error)]


def refusal(spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, degrees: tuple[int, ...]) -> str:
    """What a mesh that does not fit a model or the processes is refused with."""
    try:
        learner(spec, arrays, optimizer, degrees)
    except UserError as error:
        return str(error)
    return ""
