"""What argparse's message about words that no option takes leaves unsaid: what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

LAUNCHERS = {"-m", "--nproc_per_node", "--nproc-per-node", "--nnodes", "--devices", "--gpus", "--log_dir"}
STARTING = (  # options that are taken before the parser of a run sees the rest
    "--backend", "--processes", "--nodes", "--node-rank", "--master", "--show-command", "--show",
    "--passl-config", "--libai-config", "--mmpretrain-config",
    "--data-parallel", "--tensor-parallel", "--pipeline-parallel", "--eval-only", "--libai-out", "--libai-every",
)  # fmt: skip


def remedy(message: str, options: Collection[str]) -> str:
    """What goes behind the message: whose the options are, or which one is spelt almost alike."""
    if not message.startswith("unrecognized arguments"):
        return ""
    words = re.split(r"[ =]", message)
    if set(words) & LAUNCHERS:
        return (
            ": a launcher's options; --processes N starts several, or a launcher that they stand before, such as "
            "`python -m paddle.distributed.launch --nproc_per_node N backends/paddle/pretrain.py RECIPE`"
        )
    names = {option.strip("-"): option for option in options if option.startswith("--")}
    unknown = next((word.strip("-") for word in words if word.startswith("--")), "")
    near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.75)
    return f". Did you mean '{names[near[0]]}'?" if near else ""
