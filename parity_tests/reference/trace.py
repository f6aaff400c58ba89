"""The first half of a training step in numpy float64, with every layer: the reference in the place of a backend."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triport.core.spec import MAE, Classifier, MoCo, ViT
from triport.parity_tests.reference import objectives
from triport.parity_tests.reference.layers import Array, Walk
from triport.parity_tests.tool.trial import Trial


@dataclass
class Watch(Walk):
    """A walk that keeps the outputs of every call of a module, not of the last alone."""

    every: dict[str, list[Array]] = field(default_factory=dict)

    def leave(self, name: str, x: Array) -> Array:
        """Note `x` as one more output of module `name`."""
        self.every.setdefault(name, []).append(x)
        return x


def reference_answer(trial: Trial) -> dict[str, NDArray]:
    """Step 0 of a trial up to its loss, in float64, under the names of a trace."""
    arrays, inputs, spec = trial.arrays, trial.inputs(), trial.recipe.model
    momentum = trial.values[0].momentum
    if isinstance(spec.objective, MoCo):
        layers = _moco(trial, momentum)
    else:
        objective = spec.objective
        frozen = isinstance(objective, Classifier) and objective.frozen_encoder and objective.frozen_mode == "eval"
        walk = Watch(arrays, training=not frozen)
        if isinstance(objective, MAE):
            assert isinstance(spec.encoder, ViT)
            objectives.mae(walk, spec.encoder, objective, inputs)
        else:
            objectives.classify(walk, spec, inputs)
        layers = walk.every
    step = objectives.train_step(spec, arrays, inputs, momentum)
    answer: dict[str, NDArray] = {f"first/{name}": array for name, array in arrays.items()}
    answer |= {f"layers/{name}": np.concatenate(calls) for name, calls in layers.items()}
    answer |= {"step0/loss": np.array(step.loss), **{f"step0/{name}": x for name, x in step.outputs.items()}}
    return answer | {f"step0/{name}": np.asarray(array) for name, array in step.moved.items()}


def _moco(trial: Trial, momentum: float) -> dict[str, list[Array]]:
    """Queries of both views, then keys of both views, as the backends compute them."""
    spec, arrays, inputs = trial.recipe.model, trial.arrays, trial.inputs()
    base = Watch(arrays, training=True)
    views = (inputs["view1"], inputs["view2"])
    for z in [objectives.project(base, "base_encoder.", spec.encoder, view) for view in views]:
        objectives.predict(base, spec.encoder, z)
    keys = Watch({**arrays, **objectives.momentum_update(arrays, momentum)}, training=True)
    for view in views:
        objectives.project(keys, "momentum_encoder.", spec.encoder, view)
    return {**base.every, **keys.every}
