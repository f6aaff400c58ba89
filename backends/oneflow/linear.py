"""Linear probes: the encoder stays as it is, a head learns.

python -m oneflow.distributed.launch --nproc_per_node 2 -m triport.backends.oneflow.linear ...
"""

from __future__ import annotations

from collections.abc import Sequence

from triport.backends.oneflow import distributed, learner
from triport.backends.oneflow.libai import finetune as libai_finetune
from triport.backends.oneflow.libai import options as libai_options
from triport.backends.oneflow.runtime import leave
from triport.core.run import run
from triport.core.spec.foreign import hand_over


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return hand_over.run("linear", argv, start)


def start(words: list[str], reading: hand_over.Reading | None) -> int:
    """Start the run of a command line with a recipe; degrees mean LiBai's layers. `reading`: its origin."""
    words = libai_options.degrees_of(reading, words)
    if libai_options.wanted(words):
        return libai_finetune.main(words, "linear")
    return run.linear(words, backend=run.Backend("oneflow", distributed.start, learner.make))


if __name__ == "__main__":
    leave(main())
