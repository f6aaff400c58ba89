"""What a trace's own numbers should have led to: each rule fed with what this very backend had before it.

A stage is judged by how far it is from its formula, so a fault upstream does not hide or smear it: the optimiser gets
the recorded gradients, moments and weights, the momentum encoder the recorded weights. Float64 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.spec import MoCo
from triport.parity_tests.reference.layers import Array, Walk
from triport.parity_tests.reference.objectives import momentum_update, project
from triport.parity_tests.reference.optimizers import Rule, optimizer_step
from triport.parity_tests.tool.trace import REFERENCE, Trace


@dataclass(frozen=True, eq=False)
class Missed:
    """By how much an array misses its formula, and how large it is."""

    by: Array
    size: float  # the largest value

    @property
    def relative(self) -> float:
        """The largest miss over the largest value."""
        return float(np.abs(self.by).max(initial=0.0)) / max(self.size, 1e-12)


def before(trace: Trace, step: int) -> dict[str, NDArray]:
    """All arrays of the model as a step found them."""
    if step == 0:
        return trace.part("first/")
    names = [parameter.name for parameter in inventory(trace.recipe.model)]
    return {name: trace.arrays[f"step{step - 1}/{name}"] for name in names}


def update(trace: Trace, step: int) -> dict[str, Missed]:
    """Of a step's optimiser: "state/<slot>/<name>" and, after it, "<name>" of every trained parameter."""
    recipe = trace.recipe
    rules = {name: Rule(*rule) for name, rule in groups(inventory(recipe.model), recipe.optimizer).items()}
    gradients = {name: g for name, g in trace.part(f"step{step}/grad/").items() if name in rules}
    state = trace.part(f"step{step - 1}/state/") if step > 0 else {}
    unclipped = replace(recipe.optimizer, clip_norm=None)  # recorded gradients are clipped ones
    lr = trace.about["values"][step][0]
    arrays, after = optimizer_step(unclipped, before(trace, step), gradients, state, lr, rules)
    wanted: dict[str, NDArray] = {f"state/{name}": array for name, array in after.items() if name != "step"}
    return _missed(trace, step, {**wanted, **{name: arrays[name] for name in gradients}})


def momentum(trace: Trace, step: int) -> dict[str, Missed]:
    """Of a step's momentum encoder: every parameter."""
    if not isinstance(trace.recipe.model.objective, MoCo):
        return {}
    return _missed(trace, step, momentum_update(before(trace, step), trace.about["values"][step][1]))


def keys(trace: Trace, step: int) -> dict[str, Missed]:
    """Of a step: k1 and k2, which the momentum encoder computes as it stands after its move."""
    spec, views = trace.recipe.model, trace.part(f"inputs/{step}/")
    name = next((name for name in trace.part("first/") if name.startswith("momentum_encoder.")), "")
    if not name or f"step{step}/{name}" not in trace.arrays or trace.precision == "bfloat16":
        return {}
    walk = Walk(before(trace, step + 1), training=True)
    keys = {f"k{i}": project(walk, "momentum_encoder.", spec.encoder, views[f"view{i}"]) for i in (1, 2)}
    return _missed(trace, step, keys)


def _missed(trace: Trace, step: int, wanted: Mapping[str, NDArray]) -> dict[str, Missed]:
    found = {}
    for name, formula in wanted.items():
        array = trace.arrays.get(f"step{step}/{name}")
        if array is not None:
            ours = np.asarray(array, np.float64)
            found[name] = Missed(ours - formula, float(np.abs(ours).max(initial=0.0)))
    return found


# ---------------------------------------------------------------- layers
def layer(trace: Trace, name: str) -> float | None:
    """How far a linear layer or a layer norm of step 0 is from its formula on its own input, relative to the largest.

    None where the layer is of another kind, its input was not recorded, or the precision is lower.
    """
    if trace.about["backend"] == REFERENCE or trace.precision == "bfloat16":
        return None
    x, y = layer_input(trace, name), trace.arrays.get(f"layers/{name}")
    weight, bias = _array(trace, f"{name}.weight"), _array(trace, f"{name}.bias")
    if x is None or y is None or weight is None:
        return None
    x = np.asarray(x, np.float64)
    if weight.ndim == 2 and x.shape[-1] == weight.shape[1]:
        wanted = x @ weight.T + (0.0 if bias is None else bias)
    elif weight.ndim == 1 and bias is not None and "norm" in name.rpartition(".")[2] and x.shape[-1] == len(weight):
        eps = getattr(trace.recipe.model.encoder, "norm_eps", 1e-6)
        centred = x - x.mean(axis=-1, keepdims=True)
        wanted = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias
    else:
        return None
    if wanted.shape != y.shape:
        return None
    return float(np.abs(y - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def layer_input(trace: Trace, name: str) -> NDArray | None:
    """What a layer was fed: recorded as such, or the output recorded last before it."""
    own = trace.arrays.get(f"layers/{name}/input")
    if own is not None:
        return own
    last = None
    for key, array in trace.arrays.items():
        if key == f"layers/{name}":
            return last
        if key.startswith("layers/") and not key.endswith("/input"):
            last = array
    return None


def _array(trace: Trace, name: str) -> Array | None:
    """A parameter as step 0's forward pass saw it: the momentum encoder has moved before."""
    place = f"step0/{name}" if name.startswith("momentum_encoder.") else f"first/{name}"
    array = trace.arrays.get(place)
    return None if array is None else np.asarray(array, np.float64)
