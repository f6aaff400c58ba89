"""What core itself computes in a framework's interpreter, with its numpy and Pillow: initial values and batches."""

from __future__ import annotations

from typing import Any

from triport.core.spec import Recipe
from triport.parity_tests.tool.trial import assemble, named


def made(
    recipe: Recipe, data: str | None, batch: int, weights: str | None, precision: str = "float32"
) -> dict[str, Any]:
    """The initial values and the first batch of a trial."""
    trial = assemble(recipe, steps=1, batch=batch, data=data, weights=weights, precision=precision)
    return {"arrays": trial.arrays, "inputs": named(trial.batches[0][0], trial.recipe)}
