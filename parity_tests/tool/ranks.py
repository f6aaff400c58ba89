"""A trace of two processes, each with half of every batch, in the form of one of one process; and faults between them.

As a probe (`ask_ranks(..., probe="triport.parity_tests.tool.ranks")`) it answers `train` under a named fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.data.batches import Batch
from triport.parity_tests.tool import trace
from triport.parity_tests.tool.ask import Question, ask_ranks
from triport.parity_tests.tool.faults import part, replaced
from triport.parity_tests.tool.questions import half
from triport.parity_tests.tool.trial import Trial

RANKS = 2
ROWS = ("q1", "q2", "k1", "k2", "mask", "prediction", "features", "logits")  # outputs that have the batch's rows


def train(backend: str, fault: str, given: Mapping[str, Any]) -> dict[str, NDArray]:
    """The backend's own answer under a fault, in this process."""
    with PLANTS[fault](backend):
        return dict(part(backend, "probe").train(**given))


# ---------------------------------------------------------------- faults
@contextmanager
def averaged_again(backend: str) -> Iterator[None]:
    """The all-reduce of gradients gives means where sums are expected: they are divided by the processes twice."""
    learner = part(backend, "learner").Learner
    whole = learner.average_gradients

    def average(own: Any, gradients: Mapping[str, Any]) -> None:
        whole(own, gradients)
        with own.tensors.no_grad():
            for gradient in gradients.values():
                own.tensors.copy_into(gradient, gradient / own.processes.world)

    with replaced(learner, "average_gradients", average):
        yield


def nothing(backend: str) -> AbstractContextManager[None]:
    """No fault."""
    return nullcontext()


PLANTS = {"": nothing, "averaged again": averaged_again}


def labels_shifted(batch: Batch) -> Batch:
    """A batch whose labels are each the next sample's."""
    return replace(batch, labels=np.roll(batch.labels, 1))


# ---------------------------------------------------------------- the trace
def record(what: Trial, backend: str, fault: str = "", second: Any = None) -> trace.Trace:
    """What two processes compute, as one trace: rows of both, gradients and weights of the first.

    second: what becomes of each batch of the second process. Raises a Failure, and ValueError where the processes end
    with different weights.
    """
    parts = []
    for rank in range(RANKS):
        change = second if rank == 1 and second is not None else (lambda batch: batch)
        parts.append(replace(what, batches=[[change(half(b, rank)) for b in step] for step in what.batches]))
    questions = [
        [Question("train", {"backend": backend, "fault": fault, "given": dict(trace.question(own).given)})]
        for own in parts
    ]
    answers = [answer[0] for answer in ask_ranks(backend, questions, probe=__name__)]
    for name in (name for name in answers[0] if name.startswith("final/")):
        if not np.array_equal(answers[0][name], answers[1][name]) and "running" not in name:
            raise ValueError(f"{name} is not the same in both processes")
    joined = {name: _joined(name, [answer[name] for answer in answers]) for name in answers[0]}
    result = trace.assemble(what, backend, joined)
    inputs = {
        f"inputs/{i}/{name}": np.concatenate([own.inputs(i)[name] for own in parts])
        for i in range(what.steps)
        for name in what.inputs(i)
    }
    return replace(result, arrays={**result.arrays, **inputs})


def _joined(name: str, pair: list[NDArray]) -> NDArray:
    """Arrays of two processes as one process has them: each's loss is the mean over its own half."""
    stage, _, rest = name.partition("/")
    if stage == "layers":
        return np.concatenate(pair)
    if stage == "backward":
        return np.asarray(np.concatenate(pair) / RANKS)
    if stage.startswith("step") and rest in ROWS:
        return np.concatenate(pair)
    return pair[0]
