"""Fine-tuning: the whole network learns.

python -m oneflow.distributed.launch --nproc_per_node 2 -m triport.backends.oneflow.finetune ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from triport.backends.oneflow import distributed, learner
from triport.backends.oneflow.libai import finetune as libai_finetune
from triport.backends.oneflow.libai import options as libai_options
from triport.backends.oneflow.runtime import leave
from triport.core.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; with degrees, on LiBai's layers."""
    words = sys.argv[1:] if argv is None else list(argv)
    if libai_options.wanted(words):
        return libai_finetune.main(words, "finetune")
    return run.finetune(argv, backend=run.Backend("oneflow", distributed.start, learner.make))


if __name__ == "__main__":
    leave(main())
