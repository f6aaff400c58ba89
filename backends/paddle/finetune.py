"""Fine-tuning: the whole network learns.

python -m paddle.distributed.launch --nproc_per_node 2 --log_dir LOG backends/paddle/finetune.py RECIPE ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Paddle's launcher starts this file by its path, so that its folder stands for the project
    sys.path[0] = str(next(p for p in Path(__file__).resolve().parents if (p / "triport").is_dir()))

from triport.backends.paddle import distributed
from triport.backends.paddle.passl import config as passl_config
from triport.core.run import run
from triport.core.spec.foreign import hand_over


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return hand_over.run("finetune", argv, start)


def start(words: list[str], reading: hand_over.Reading | None) -> int:
    """Start the run of a command line with a recipe; `reading`: the configuration that it was read from."""
    return run.finetune(words, backend=run.Backend("paddle", distributed.start, passl_config.half(reading, words)))


if __name__ == "__main__":
    sys.exit(main())
