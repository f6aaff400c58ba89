"""What a user of `triport.create_model` gets in a framework's own interpreter, numpy out; asked by the tests."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import triport
from triport.api import backend_module


def created(name: str, weights: str | None, images: np.ndarray, backend: str | None = None) -> dict[str, Any]:
    """Create a classifier as a user would and use it as the framework's own module.

    Gives `kinds`, the framework's classes that the module is of; `logits` of the images; and its `arrays`.
    """
    model = triport.create_model(name, backend=backend, weights=weights)
    build = backend_module(backend, "build")
    kinds = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(model).__mro__]
    model.eval()
    framework = sys.modules[kinds[-2].partition(".")[0]]  # the last is `object`
    tensor = framework.to_tensor if framework.__name__ == "paddle" else framework.tensor
    with framework.no_grad():
        logits = model(tensor(images))
    return {"kinds": kinds, "logits": logits.numpy(), "arrays": build.to_arrays(model)}


def refused(name: str, weights: str) -> str:
    """What a user is told where weights do not fit."""
    try:
        triport.create_model(name, weights=weights)
    except triport.UserError as error:
        return str(error)
    return ""
