"""ModelSpec and arrays -> model, and back: the only file that knows where OneFlow's layout differs (it does not)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.backends.oneflow.classify import classifier
from triport.backends.oneflow.mae import MaskedAutoencoder
from triport.backends.oneflow.moco import MoCoV3
from triport.backends.oneflow.runtime import nn
from triport.backends.oneflow.tensors import Tensors
from triport.core.backend.build import check, trainable
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def build(spec: ModelSpec, arrays: Mapping[str, np.ndarray], precision: str = "float32") -> nn.Module:
    """Return the model with the given values under canonical names, which must be all of them and no others.

    Raises UserError naming the first array that is missing, unexpected or of another shape.
    """
    check(spec, arrays)
    model = structure(spec)
    if precision == "float64":
        model = model.double()
    tensors = Tensors(spec, "cpu", precision)
    model.load_state_dict({name: tensors.from_host(array.copy()) for name, array in arrays.items()})
    trained = trainable(spec)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    return model


def structure(spec: ModelSpec) -> nn.Module:
    """Return the model without values."""
    objective = spec.objective
    if isinstance(objective, MoCo):
        return MoCoV3(spec.encoder, objective)
    if isinstance(objective, MAE):
        assert isinstance(spec.encoder, ViT)
        return MaskedAutoencoder(spec.encoder, objective)
    return classifier(spec.encoder, objective)


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return every parameter and buffer under its canonical name, copied to the host."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}
