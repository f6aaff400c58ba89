"""ModelSpec and arrays -> model, and back: the only file that knows where PyTorch's layout differs (it does not)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from triport.backends.torch.classify import classifier
from triport.backends.torch.mae import MaskedAutoencoder
from triport.backends.torch.moco import MoCoV3
from triport.core.errors import UserError
from triport.core.model.inventory import inventory
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def build(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Return the model with the given values under canonical names, which must be all of them and no others.

    Raises UserError naming the first array that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):  # no values are drawn here: they are all given
        model = structure(spec)
    check(spec, arrays)
    state = {name: tensor(array) for name, array in arrays.items()}
    model.load_state_dict(state, assign=True)
    trainable = {p.name: p.trainable for p in inventory(spec)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
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


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy of an array as a float32 (or, for counters, int64) tensor."""
    dtype = np.int64 if array.dtype.kind in "iu" else np.float32
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return every parameter and buffer under its canonical name, copied to the host."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}
