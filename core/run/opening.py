"""What a run says before its first step."""

from __future__ import annotations

import math

from triport.core.backend.learner import Processes
from triport.core.data import datasets
from triport.core.data.loader_checks import left_out
from triport.core.model.inventory import inventory
from triport.core.model.schedule import peak_lr
from triport.core.run.images import Splits
from triport.core.spec import MoCo, Recipe


def opening(recipe: Recipe, splits: Splits, processes: Processes, micro: int, precision: str) -> list[str]:
    """Return what is worth knowing before the first step, line by line."""
    parameters = [p for p in inventory(recipe.model) if not p.buffer]
    trained, whole = (sum(p.size for p in part) for part in ([p for p in parameters if p.trainable], parameters))
    own = recipe.batch // processes.world // micro
    half = " activations, float32 weights (--precision chooses)" if precision in ("bfloat16", "float16") else ""
    apart = len(splits.test) if splits.test is not None else 0
    lines = [
        f"{recipe.title} ({recipe.name})",
        f"parameters {trained / 1e6:.2f} M trained, {whole / 1e6:.2f} M in all; {precision}{half}",
        f"images {len(splits.train)} to train ({splits.train.name}), {apart} held out",
        *datasets.remarks(splits.train, splits.test),
        *filter(None, [left_out(recipe.train, splits.train.channels)]),
        f"batch {recipe.batch} = {processes.world} processes x {micro} micro-batches x {own} images; "
        f"peak learning rate {peak_lr(recipe):.4g}",
    ]
    objective = recipe.model.objective
    if isinstance(objective, MoCo):
        seen = own * processes.world
        lines.append(f"the loss begins near {4 * objective.temperature * math.log(seen):.3f} = 4 T ln({seen})")
        if micro > 1:
            lines.append(
                f"accumulation does not add negatives: an image is compared with the {seen} of its micro-batch, "
                f"not the {recipe.batch} of the batch"
            )
    return lines
