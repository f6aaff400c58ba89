"""float16 with loss scaling on GPUs, as PASSL trains (FP16 level O1): written after its description, not run on one."""

from __future__ import annotations

from typing import Any

from triport.backends.paddle import learner


def make(recipe: Any, arrays: Any, *, processes: Any, **rest: Any) -> Any:
    """As triport.backends.paddle.learner.make, in float16."""
    return learner.make(recipe, arrays, processes=processes, **{**rest, "precision": "float16"})
