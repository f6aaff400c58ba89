"""What tests ask of a mesh on LiBai's layers: training, uneven evaluation, taking over a state, LiBai's own files.

LiBai's own trainer and its faults are in libai_faults.py.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.oneflow import libai_folder, libai_learner, libai_mesh, libai_model, libai_options, probe
from backends.oneflow.libai_repairs import LayerNorm, TransformerLayer, dist
from backends.oneflow.quiet import flow
from core.batches import Batch
from core.errors import UserError
from core.inventory import inventory
from core.recipe import load
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
    answer |= {f"state/{name}": array for name, array in made.optimizer_arrays().items()}
    del made
    gc.collect()  # a graph goes on all processes at once, or they wait for each other
    return answer


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
    made.write_libai(Path(path), "model_final")
    with flow.no_grad():
        for p in made.model.parameters():
            p.mul_(0.5)
    checkpointer = Checkpointer(made.model, path)
    assert checkpointer.has_checkpoint()
    found = checkpointer.load(checkpointer.get_checkpoint_file(), checkpointables=[])
    assert found["iter"] == 0
    return made.arrays()


def ranks(degrees: tuple[int, ...]) -> dict[str, int]:
    """Which part of a batch this process learns: LiBai's word for it, the same unmended, and ours."""
    mesh = libai_mesh.start("cpu", libai_mesh.Degrees(*degrees))
    libai_mesh.set_up(mesh.degrees, 4)
    theirs = dist.get_data_parallel_rank
    return {"mended": theirs(), "as it is": theirs.__wrapped__(), "ours": mesh.data_rank}


def about(spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec) -> dict[str, object]:
    """LiBai's names of the arrays; of the model that is built eps and share of kept branches, and its type."""
    made = learner(spec, arrays, optimizer, (1, 1, 1)).model
    return {
        "names": libai_model.Names(spec).own,
        "eps": sorted({m.eps for m in made.modules() if isinstance(m, LayerNorm)}),
        "layer norms": sum(isinstance(m, LayerNorm) for m in made.modules()),
        "keep": [block.keep for block in made.blocks],
        "positions": made.pos_embed.numpy(),
        "of LiBai": all(isinstance(block, TransformerLayer) for block in made.blocks),
    }


def optimizer_in(path: str, recipe: str) -> Arrays:
    """What OneFlow's own AdamW holds after it has taken over the optimiser of a folder, by canonical name."""
    asked = load(recipe)
    arrays = {p.name: np.zeros(p.shape, np.float32) for p in inventory(asked.model)}
    made = libai_learner.Learner(asked, arrays, libai_mesh.start("cpu", libai_mesh.Degrees()))
    kept = flow.load(f"{path}/optimizer", global_src_rank=0)
    own = {id(p): name for name, p in made.trained.items()}
    order = libai_folder.grouped(made.model, made.update)
    theirs = flow.optim.AdamW([{"params": [made.trained[n] for n in names]} for names in order.values()])
    theirs.load_state_dict(kept)
    answer = {"step": np.array(theirs._state["step"])}
    for p, slots in ((p, slots) for p, slots in theirs._state.items() if isinstance(slots, dict)):
        answer |= {f"{slot}/{own[id(p)]}": value.numpy() for slot, value in slots.items()}
    return answer


def settle(given: Sequence[str]) -> list[str]:
    """The words that a command line of a model in parts becomes, or what it is refused with, and its mesh."""
    try:
        options, words = libai_options.settle(given)
        mesh = libai_options.degrees(options)
        return [*words, f"{mesh.data},{mesh.tensor},{mesh.pipeline},{options.graph}", options.said.rest()]
    except UserError as error:
        return ["error", str(error)]


def refusal(spec: ModelSpec, arrays: Arrays, optimizer: OptimizerSpec, degrees: tuple[int, ...]) -> str:
    """What a mesh that does not fit a model or the processes is refused with."""
    try:
        learner(spec, arrays, optimizer, degrees)
    except UserError as error:
        return str(error)
    return ""


def division(spec: ModelSpec, degrees: tuple[int, ...]) -> str:
    """What degrees that do not divide a model are refused with."""
    try:
        libai_mesh.Degrees(*degrees).check(
            probe._recipe(spec, OptimizerSpec(kind="sgd", lr=0, weight_decay=0, decays="all"))
        )
    except UserError as error:
        return str(error)
    return ""
