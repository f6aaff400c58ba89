"""A trace of two processes, each with half of every batch, in the form of one of one process; and faults between them.

As a probe (`ask_ranks(..., probe="triport.parity_tests.tool.ranks")`) it answers `train` under a named fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


_group: list[Any] = []  # the processes of this job, once they have met


def train(backend: str, fault: str, given: Mapping[str, Any], last: bool) -> dict[str, NDArray]:
    """The backend's own answer under a fault, in this process, which leaves its group after the last question."""
    probe = part(backend, "probe").probe
    if not _group:
        _group.append(probe.start("cpu"))
    (processes,) = _group
    stay = nullcontext() if last else replaced(processes, "stop", lambda: processes.barrier("end of a question"))
    with replaced(probe, "start", lambda device: processes), stay, PLANTS[fault](backend):
        return dict(probe.train(**given))


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
def record(backend: str, asked: Sequence[tuple[Trial, str, Any]]) -> list[trace.Trace]:
    """What two processes compute of each trial under a fault, as one trace: rows of both, the rest of the first.

    asked: (trial, fault, what becomes of each batch of the second process); one job answers all. Raises a Failure, and
    ValueError where the processes end with different weights.
    """
    halves = [_halves(what, second) for what, _, second in asked]
    questions: list[list[Question]] = [[] for _ in range(RANKS)]
    for at, (_, fault, _) in enumerate(asked):
        for rank, own in enumerate(halves[at]):
            given = {"backend": backend, "fault": fault, "given": dict(trace.question(own).given)}
            questions[rank].append(Question("train", {**given, "last": at + 1 == len(asked)}))
    answers = ask_ranks(backend, questions, probe=__name__)
    return [
        _whole(what, backend, parts, [answer[at] for answer in answers])
        for at, ((what, _, _), parts) in enumerate(zip(asked, halves))
    ]


def _halves(what: Trial, second: Any) -> list[Trial]:
    parts = []
    for rank in range(RANKS):
        change = second if rank == 1 and second is not None else (lambda batch: batch)
        parts.append(replace(what, batches=[[change(half(b, rank)) for b in step] for step in what.batches]))
    return parts


def _whole(what: Trial, backend: str, parts: Sequence[Trial], answers: Sequence[Mapping[str, NDArray]]) -> trace.Trace:
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
