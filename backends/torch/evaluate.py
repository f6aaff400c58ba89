"""Evaluation: accuracy, kNN and features: torchrun --nproc_per_node 2 -m triport.backends.torch.evaluate ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from triport.backends.torch import distributed, learner
from triport.core.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run.evaluate(argv, backend=run.Backend("torch", distributed.start, learner.make))


if __name__ == "__main__":
    sys.exit(main())
