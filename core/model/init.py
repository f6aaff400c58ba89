"""Initial values of every parameter, drawn once for all frameworks."""

from __future__ import annotations

import numpy as np

from triport.core.model import position
from triport.core.model.inventory import inventory
from triport.core.model.parameters import Constant, Copy, Normal, Parameter, SinCos, Uniform
from triport.core.rng import generator
from triport.core.spec import ModelSpec


def initial_values(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Return name -> first value: float32, counters int64. Each depends on seed and name alone."""
    arrays: dict[str, np.ndarray] = {}
    for p in inventory(spec):
        arrays[p.name] = arrays[p.first.of].copy() if isinstance(p.first, Copy) else draw(p, seed)
    return arrays


def draw(p: Parameter, seed: int) -> np.ndarray:
    """Return one parameter's first value. A Copy has none of its own."""
    first = p.first
    if isinstance(first, Constant):
        return np.full(p.shape, first.value, np.int64 if p.role == "counter" else np.float32)
    if isinstance(first, SinCos):
        return position.table(first.kind, p.shape[-1], first.grid)
    dice = generator(seed, "first value", p.name)
    if isinstance(first, Uniform):
        return (dice.random(p.shape, dtype=np.float32) * 2 - 1) * np.float32(first.bound)
    if isinstance(first, Normal):
        return np.clip(dice.standard_normal(p.shape, dtype=np.float32) * np.float32(first.std), -2, 2)
    raise TypeError(f"{p.name}: no first value for {first!r}")
