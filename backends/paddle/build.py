"""ModelSpec and arrays -> model, and back: the only file that knows where Paddle's layout differs (Linear weights)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.backends.paddle.classify import classifier
from triport.backends.paddle.mae import MaskedAutoencoder
from triport.backends.paddle.moco import MoCoV3
from triport.backends.paddle.runtime import Tensor, nn, paddle
from triport.core.errors import UserError
from triport.core.model.inventory import inventory
from triport.core.spec import MAE, MoCo, ModelSpec, ViT


def build(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> nn.Layer:
    """Return the model with the given values under canonical names, which must be all of them and no others.

    Raises UserError naming the first array that is missing, unexpected or of another shape.
    """
    with paddle.LazyGuard():  # no values are drawn here: they are all given
        model = structure(spec)
    check(spec, arrays)
    model.spec = spec
    held = model.state_dict()
    for name, array in turned(spec, arrays).items():
        held[name].set_value(tensor(array))
    trainable = {p.name: p.trainable for p in inventory(spec)}
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not trainable[name]
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


def turned(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical arrays as Paddle holds them, or the other way round: Linear weights are (in, out) there.

    Keys are names of parameters, or end in "/<name>" as an optimiser's state does.
    """
    linear = {p.name for p in inventory(spec) if p.role == "linear"}
    return {key: array.T if key.rpartition("/")[2] in linear else array for key, array in arrays.items()}


def tensor(array: np.ndarray) -> Tensor:
    """A copy of an array as a float32 (or, for counters, int64) tensor."""
    dtype = np.int64 if array.dtype.kind in "iu" else np.float32
    return paddle.to_tensor(np.array(array, dtype=dtype, order="C"))


def to_arrays(model: nn.Layer) -> dict[str, np.ndarray]:
    """Return every parameter and buffer under its canonical name, copied to the host."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return {name: np.array(array, order="C") for name, array in turned(model.spec, arrays).items()}
