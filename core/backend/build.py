"""What building a model from arrays needs on every framework: names, shapes, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.core.errors import UserError
from triport.core.model.inventory import inventory
from triport.core.spec import ModelSpec


def check(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UserError where names or shapes are not the model's."""
    expected = {p.name: p.shape for p in inventory(spec)}
    for name, shape in expected.items():
        if name not in arrays:
            raise UserError(f"the weights lack '{name}' {shape}: were they made for another model?")
        if arrays[name].shape != shape:
            raise UserError(f"'{name}' has shape {arrays[name].shape} in the weights and {shape} in the model")
    for name in arrays:
        if name not in expected:
            raise UserError(f"the weights hold '{name}', which the model does not have")


def trainable(spec: ModelSpec) -> dict[str, bool]:
    """Whether each parameter is trained, by canonical name."""
    return {p.name: p.trainable for p in inventory(spec)}


def first_layer(spec: ModelSpec) -> str:
    """The weight of the first trained layer, whose gradient is watched: MoCo v3's instability shows there first."""
    return next(p.name for p in inventory(spec) if p.trainable and p.role in ("linear", "conv"))


def lowered(arrays: Mapping[str, np.ndarray], precision: str) -> str:
    """A line about arrays that a learner takes over in fewer digits than they have; "" where there are none."""
    wide = [name for name, array in arrays.items() if array.dtype == np.float64]
    if not wide or precision == "float64":
        return ""
    return f"{len(wide)} arrays are float64 and are used as float32, '{wide[0]}' first: --precision float64 keeps them"
