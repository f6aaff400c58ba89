"""Linear probes: the encoder stays as it is, a head learns.

python -m oneflow.distributed.launch --nproc_per_node 2 -m backends.oneflow.linear ...
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.oneflow import distributed, learner
from backends.oneflow.quiet import leave
from core import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run.linear(argv, backend=run.Backend("oneflow", distributed.start, learner.make))


if __name__ == "__main__":
    leave(main())
