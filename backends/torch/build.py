"""ModelSpec and arrays -> model, and back: the only file that knows where PyTorch's layout differs (it does not)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from triport.backends.torch.classify import classifier
from triport.backends.torch.mae import MaskedAutoencoder
from triport.backends.torch.moco import MoCoV3
from triport.backends.torch.tensors import Tensors
from triport.core.backend.build import check, trainable
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def build(spec: ModelSpec, arrays: Mapping[str, np.ndarray], precision: str = "float32") -> nn.Module:
    """Return the model with the given values under canonical names, which must be all of them and no others.

    Raises UserError naming the first array that is missing, unexpected or of another shape.
    """
    check(spec, arrays)
    with torch.device("meta"):  # no values are drawn here: they are all given
        model = structure(spec)
    tensors = Tensors(spec, torch.device("cpu"), precision)
    model.load_state_dict({name: tensors.from_host(array.copy()) for name, array in arrays.items()}, assign=True)
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
