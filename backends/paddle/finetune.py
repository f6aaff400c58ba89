"""Fine-tuning: the whole network learns.

python -m paddle.distributed.launch --nproc_per_node 2 --log_dir LOG backends/paddle/finetune.py RECIPE ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Paddle's launcher starts this file by its path, so that its folder stands for the project
    sys.path[0] = str(next(p for p in Path(__file__).resolve().parents if (p / "triport").is_dir()))

from triport.backends.paddle import distributed, learner
from triport.core.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    theirs = any(word.partition("=")[0] in ("--passl-config", "-o") for word in words)
    if theirs and not {"-h", "--help"}.intersection(words):
        from triport.backends.paddle.passl import config as passl_config  # only here: it knows PASSL

        return passl_config.finetune(words)
    return run.finetune(words, backend=run.Backend("paddle", distributed.start, learner.make))


if __name__ == "__main__":
    sys.exit(main())
