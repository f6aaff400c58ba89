"""ModelSpec and arrays -> model, and back: the only file that knows where Paddle's layout differs (Linear weights)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.backends.paddle.classify import classifier
from triport.backends.paddle.mae import MaskedAutoencoder
from triport.backends.paddle.moco import MoCoV3
from triport.backends.paddle.runtime import nn, paddle
from triport.backends.paddle.tensors import Tensors
from triport.core.backend.build import check, trainable
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def build(spec: ModelSpec, arrays: Mapping[str, np.ndarray], precision: str = "float32") -> nn.Layer:
    """Return the model with the given values under canonical names, which must be all of them and no others.

    Raises UserError naming the first array that is missing, unexpected or of another shape.
    """
    check(spec, arrays)
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(precision if precision == "float64" else "float32")
    try:
        with paddle.LazyGuard():  # no values are drawn here: they are all given
            model = structure(spec)
    finally:
        paddle.set_default_dtype(default)
    model.spec = spec
    tensors, state = Tensors(spec, None, precision), model.state_dict()
    for name, array in tensors.layout(arrays).items():
        state[name].set_value(tensors.from_host(array))
    trained = trainable(spec)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not trained[name]
    return model


def structure(spec: ModelSpec) -> nn.Layer:
    """Return the model without values."""
    objective = spec.objective
    if isinstance(objective, MoCo):
        return MoCoV3(spec.encoder, objective)
    if isinstance(objective, MAE):
        assert isinstance(spec.encoder, ViT)
        return MaskedAutoencoder(spec.encoder, objective)
    return classifier(spec.encoder, objective)


def to_arrays(model: nn.Layer) -> dict[str, np.ndarray]:
    """Return every parameter and buffer under its canonical name, copied to the host."""
    return Tensors(model.spec, None).arrays(model.state_dict())
