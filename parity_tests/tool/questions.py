"""The questions of the parity levels: probe functions asked across interpreters, batches made of inputs, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triport.core.data.batches import Batch
from triport.core.model.schedule import Values
from triport.core.spec import ModelSpec, OptimizerSpec
from triport.parity_tests.tool.ask import Question, ask, ask_ranks

Arrays = Mapping[str, NDArray]
Steps = Sequence[Sequence[Batch]]  # of each optimiser step its micro-batches


def batch(inputs: Arrays) -> Batch:
    """Named inputs (see reference_objectives) as the loader's batch."""
    views = [inputs[name] for name in ("view1", "view2") if name in inputs] or [inputs["images"]]
    n = len(views[0])
    return Batch(
        images=tuple(views),
        labels=inputs.get("labels", np.zeros(n, np.int64)),
        targets=inputs.get("targets"),
        indices=np.arange(n),
        mask_noise=inputs.get("mask_noise"),
        drop_path=inputs.get("drop_path"),
    )


def parts(inputs: Arrays, count: int) -> list[dict[str, NDArray]]:
    """Inputs cut into `count` contiguous parts of equal length, as ranks and micro-batches get them."""
    cut = {name: np.split(array, count) for name, array in inputs.items()}
    return [{name: pieces[i] for name, pieces in cut.items()} for i in range(count)]


def half(batch: Batch, rank: int) -> Batch:
    """The first or second half of a batch's rows."""
    count = len(batch.indices) // 2
    rows = slice(rank * count, (rank + 1) * count)

    def cut(array: NDArray | None) -> NDArray | None:
        return None if array is None else array[rows]

    return Batch(
        images=tuple(view[rows] for view in batch.images),
        labels=batch.labels[rows],
        targets=cut(batch.targets),
        indices=batch.indices[rows],
        mask_noise=cut(batch.mask_noise),
        drop_path=cut(batch.drop_path),
    )


class Remote:
    """A backend's probe in the framework's own interpreter, with the probe's functions; each call is one ask.

    Several calls are cheaper as one `ask` with several questions: importing a framework takes seconds.
    """

    def __init__(self, backend: str, **how: Any) -> None:
        """`how`: see ask.ask_ranks."""
        self.backend, self.how = backend, how

    def forward(
        self,
        spec: ModelSpec,
        arrays: Arrays,
        inputs: Arrays,
        layers: bool = False,
        gradients: bool = False,
        precision: str = "float32",
    ) -> dict[str, NDArray]:
        """Evaluation mode: see core/backend/probe.py."""
        given = {"spec": spec, "arrays": arrays, "inputs": inputs, "layers": layers, "gradients": gradients}
        return self._one("forward", {**given, "precision": precision})

    def train(
        self,
        spec: ModelSpec,
        arrays: Arrays,
        optimizer: OptimizerSpec,
        batches: Steps,
        values: Sequence[Values],
        record: Sequence[str] = ("gradients",),
        precision: str = "float32",
    ) -> dict[str, NDArray]:
        """Training steps: see core/backend/probe.py."""
        return self._one("train", training(spec, arrays, optimizer, batches, values, record, precision).given)

    def embed(self, spec: ModelSpec, arrays: Arrays, images: NDArray) -> NDArray:
        """Features in evaluation mode."""
        return self._one("embed", {"spec": spec, "arrays": arrays, "images": images})

    def together(self, questions: Sequence[Question]) -> list[dict[str, NDArray]]:
        """One question for each of several processes that train together; answers by rank."""
        return [answers[0] for answers in ask_ranks(self.backend, [[q] for q in questions], **self.how)]

    def _one(self, function: str, given: Mapping[str, Any]) -> Any:
        return ask(self.backend, [Question(function, given)], **self.how)[0]


def training(
    spec: ModelSpec,
    arrays: Arrays,
    optimizer: OptimizerSpec,
    batches: Steps,
    values: Sequence[Values],
    record: Sequence[str] = ("gradients",),
    precision: str = "float32",
) -> Question:
    """The question of training steps."""
    given = {"spec": spec, "arrays": arrays, "optimizer": optimizer, "precision": precision}
    steps = [list(micro) for micro in batches]
    return Question("train", {**given, "batches": steps, "values": list(values), "record": tuple(record)})


def distance(got: ArrayLike, want: ArrayLike) -> float:
    """Largest difference over the largest wanted value. Other shapes are an error; NaN where anything is NaN."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shapes {got.shape} and {want.shape} cannot be compared")
    if got.size == 0:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-12))
