"""Initial values of every parameter, drawn once for all frameworks."""

from __future__ import annotations

import numpy as np

from triport.core.model import position
from triport.core.model.inventory import inventory
from triport.core.model.parameters import Constant, Copy, Normal, Parameter, SinCos, Uniform
from triport.core.rng import generator
from triport.core.spec import ModelSpec


def initial_values(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Return name -> initial value: float32, counters int64. Each depends on seed and name alone."""
    arrays: dict[str, np.ndarray] = {}
    for p in inventory(spec):
        arrays[p.name] = arrays[p.initial.of].copy() if isinstance(p.initial, Copy) else draw(p, seed)
    return arrays


def draw(p: Parameter, seed: int) -> np.ndarray:
    """Return one parameter's initial value. A Copy has none of its own."""
    rule = p.initial
    if isinstance(rule, Constant):
        return np.full(p.shape, rule.value, np.int64 if p.role == "counter" else np.float32)
    if isinstance(rule, SinCos):
        return position.table(rule.kind, p.shape[-1], rule.grid)
    rng = generator(seed, "first value", p.name)
    if isinstance(rule, Uniform):
        return (rng.random(p.shape, dtype=np.float32) * 2 - 1) * np.float32(rule.bound)
    if isinstance(rule, Normal):
        return np.clip(rng.standard_normal(p.shape, dtype=np.float32) * np.float32(rule.std), -2, 2)
    raise TypeError(f"{p.name}: no initial value for {rule!r}")
