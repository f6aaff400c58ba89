"""A forward pass of which every module's output can be had, on any backend, in numpy."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from triport import api
from triport.core.backend import objectives
from triport.core.backend.probe import NO_OPTIMIZER, recipe_around
from triport.core.backend.recorder import recording
from triport.core.backend.tensors import Arrays
from triport.core.spec import ModelSpec


class Forward:
    """A model in evaluation mode on a backend."""

    def __init__(self, spec: ModelSpec, arrays: Arrays, backend: str | None = None, device: str = "auto") -> None:
        make = api.backend_module(backend, "learner").make
        processes = api.backend_module(backend, "distributed").start(device)
        recipe = recipe_around(spec, NO_OPTIMIZER)
        self.spec = spec
        self.learner = make(recipe, arrays, processes=processes, device=device, precision="float32", compile=False)

    def __call__(self, inputs: Arrays, layers: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Return what the objective gives (see core.backend.objectives) and the outputs of `layers`, by their names."""
        learner, tensors = self.learner, self.learner.tensors
        learner.set_mode(training=False)
        with tensors.no_grad(), recording(learner.model, tensors) as seen, learner.autocast():
            outputs = objectives.evaluation_outputs(learner.model, self.spec, inputs, learner.loss, tensors)
        wanted = {name: seen[f"layers/{name}"] for name in layers}
        return {name: tensors.to_host(value) for name, value in {**outputs, **wanted}.items()}
