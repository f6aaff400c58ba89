"""A run whose first values and pixels are changed in their last bits.

    python -m parity_tests.shaken BACKEND TASK words of the run

What then differs from the plain run is what rounding grows to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core import prepare
from core.batches import Batch, BatchMaker, Job
from core.spec import ModelSpec
from parity_tests.trial import COARSE, shake


def main(words: Sequence[str]) -> int:
    """Run the task and return its exit code."""
    backend, task, *rest = words
    drawn = prepare.first_values

    def first_values(spec: ModelSpec, seed: int) -> dict[str, NDArray]:
        dice = np.random.Generator(np.random.Philox(1))
        return {name: shake(array, dice, COARSE) for name, array in drawn(spec, seed).items()}

    finish = BatchMaker.finish

    def shaken_batch(maker: BatchMaker, arrays: dict[str, NDArray], job: Job) -> Batch:
        batch = finish(maker, arrays, job)
        dice = np.random.Generator(np.random.Philox(1))
        return replace(batch, images=tuple(shake(view, dice, COARSE) for view in batch.images))

    prepare.first_values = first_values  # in this process alone, which ends with the run
    setattr(BatchMaker, "finish", shaken_batch)  # noqa: B010
    return int(importlib.import_module(f"backends.{backend}.{task}").main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
