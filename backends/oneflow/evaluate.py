"""Evaluation: accuracy, kNN and features.

python -m oneflow.distributed.launch --nproc_per_node 2 -m backends.oneflow.evaluate ...
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.oneflow import distributed, learner
from backends.oneflow.quiet import leave
from core import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run.evaluate(argv, backend=run.Backend("oneflow", distributed.start, learner.make))


if __name__ == "__main__":
    leave(main())
