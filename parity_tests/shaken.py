"""A run whose first values have one last bit changed: python -m parity_tests.shaken BACKEND TASK words of the run.

What then differs from the plain run is what rounding grows to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core import prepare
from core.spec import ModelSpec
from parity_tests.trial import shake


def main(words: Sequence[str]) -> int:
    """Run the task and return its exit code."""
    backend, task, *rest = words
    drawn = prepare.first_values

    def first_values(spec: ModelSpec, seed: int) -> dict[str, NDArray]:
        dice = np.random.Generator(np.random.Philox(1))
        return {name: shake(array, dice) for name, array in drawn(spec, seed).items()}

    prepare.first_values = first_values  # in this process alone, which ends with the run
    return int(importlib.import_module(f"backends.{backend}.{task}").main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
