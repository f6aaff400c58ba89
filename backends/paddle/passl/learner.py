"""float16 with loss scaling on GPUs, as PASSL trains (FP16 level O1 or O2): after its description, not run on one."""

from __future__ import annotations

from typing import Any

from triport.backends.paddle import learner


def make(recipe: Any, arrays: Any, *, processes: Any, **rest: Any) -> Any:
    """As triport.backends.paddle.learner.make, in float16."""
    return learner.make(recipe, arrays, processes=processes, **{**rest, "precision": "float16"})


def make_o2(recipe: Any, arrays: Any, *, processes: Any, **rest: Any) -> Any:
    """The same at level O2."""
    return make(recipe, arrays, processes=processes, **{**rest, "amp_o2": True})
