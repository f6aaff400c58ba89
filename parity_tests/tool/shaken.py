"""A run whose initial values and pixels are changed in their last bits.

    python -m triport.parity_tests.tool.shaken BACKEND TASK words of the run

What then differs from the plain run is what rounding grows to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from triport.core.data.batches import Batch, BatchMaker, Job
from triport.core.run import initial
from triport.core.spec import ModelSpec
from triport.parity_tests.tool.trial import COARSE, shake


def main(words: Sequence[str]) -> int:
    """Run the task and return its exit code."""
    backend, task, *rest = words
    drawn = initial.initial_values

    def initial_values(spec: ModelSpec, seed: int) -> dict[str, NDArray]:
        rng = np.random.Generator(np.random.Philox(1))
        return {name: shake(array, rng, COARSE) for name, array in drawn(spec, seed).items()}

    finish = BatchMaker.finish

    def shaken_batch(maker: BatchMaker, arrays: dict[str, NDArray], job: Job) -> Batch:
        batch = finish(maker, arrays, job)
        rng = np.random.Generator(np.random.Philox(1))
        return replace(batch, images=tuple(shake(view, rng, COARSE) for view in batch.images))

    initial.initial_values = initial_values  # in this process alone, which ends with the run
    setattr(BatchMaker, "finish", shaken_batch)  # noqa: B010
    return int(importlib.import_module(f"triport.backends.{backend}.{task}").main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
