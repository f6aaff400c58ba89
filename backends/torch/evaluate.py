"""Evaluation: accuracy, kNN and features: torchrun --nproc_per_node 2 -m triport.backends.torch.evaluate ..."""

from __future__ import annotations

from collections.abc import Sequence

from triport.backends.torch import distributed, ending, learner
from triport.core.run import run
from triport.core.spec.foreign import hand_over


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return hand_over.run("evaluate", argv, start)


def start(words: list[str], reading: hand_over.Reading | None) -> int:
    """Start the run of a command line with a recipe; `reading`: the configuration that it was read from."""
    return run.evaluate(words, backend=run.Backend("torch", distributed.start, learner.make))


if __name__ == "__main__":
    ending.leave(main())
