"""Faults that ports of MoCo v3 and MAE really had, planted in a backend of this interpreter for the time of a test.

Each takes the backend's name first. The backends are twins, so a fault is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from triport.core.backend import base_learner
from triport.core.model.groups import Group
from triport.core.model.position import table

Kind = Literal["moco", "mae"]
Plant = Callable[[str], AbstractContextManager[Any]]


def planted(fault: Callable[..., AbstractContextManager[Any]], *given: Any) -> Plant:
    """A fault with all but the backend's name given."""
    return lambda backend: fault(backend, *given)


def part(backend: str, name: str) -> Any:
    """A file of a backend."""
    return import_module(f"triport.backends.{backend}.{name}")


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[Any]:
    """Within, `owner.name` is `value`; gives what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


@contextmanager
def altered(backend: str, change: Callable[[Any], None]) -> Iterator[None]:
    """Within, every model that is built is changed."""
    build = part(backend, "build")
    whole = build.build

    def make(*given: Any) -> Any:
        model = whole(*given)
        change(model)
        return model

    with replaced(build, "build", make):
        yield


@contextmanager
def loaded(backend: str, name: str, change: Callable[[NDArray], NDArray]) -> Iterator[None]:
    """Within, a model is built with another value of one array."""
    build = part(backend, "build")
    whole = build.build

    def make(spec: Any, arrays: dict[str, NDArray], *given: Any) -> Any:
        return whole(spec, {**arrays, name: change(arrays[name])}, *given)

    with replaced(build, "build", make):
        yield


def layer_of(model: Any, name: str) -> Any:
    """The module with a dotted name; the model itself of an empty one."""
    for word in name.split(".") if name else ():
        model = getattr(model, word)
    return model


# ---------------------------------------------------------------- layers
@contextmanager
def eps(backend: str, layer: str, value: float = 1e-5) -> Iterator[None]:
    """A layer norm has the frameworks' own eps instead of the recipe's 1e-6."""

    def change(model: Any) -> None:
        norm, name = layer_of(model, layer), "_epsilon" if backend == "paddle" else "eps"
        assert getattr(norm, name) == 1e-6
        setattr(norm, name, value)

    with altered(backend, change):
        yield


@contextmanager
def transposed(backend: str, layer: str) -> Iterator[None]:
    """A square weight is used transposed."""
    functional = part(backend, "layers").F

    def change(model: Any) -> None:
        linear = layer_of(model, layer)
        assert linear.weight.shape[0] == linear.weight.shape[1]
        linear.forward = lambda x: functional.linear(x, linear.weight.T, linear.bias)

    with altered(backend, change):
        yield


@contextmanager
def transposed_when_loaded(backend: str, layer: str) -> Iterator[None]:
    """A square weight is stored transposed."""
    with loaded(backend, f"{layer}.weight", np.transpose):
        yield


def _other_table(kind: Kind, stored: tuple[int, ...]) -> NDArray:
    side = round((stored[1] - 1) ** 0.5)
    return table(kind, stored[2], (side, side))


@contextmanager
def other_position(backend: str, kind: Kind, encoder: str) -> Iterator[None]:
    """Tokens get the other method's position table, though the model holds its own."""
    tensors = part(backend, "tensors").Tensors(None, "cpu")

    def change(model: Any) -> None:
        vit = layer_of(model, encoder)
        other, tokens = tensors.from_host(_other_table(kind, tuple(vit.pos_embed.shape))), vit.tokens
        vit.tokens = lambda images: tokens(images) + (other - vit.pos_embed)

    with altered(backend, change):
        yield


@contextmanager
def other_position_when_loaded(backend: str, kind: Kind, encoder: str) -> Iterator[None]:
    """The model holds the other method's position table."""
    name = f"{encoder}.pos_embed" if encoder else "pos_embed"
    with loaded(backend, name, lambda stored: _other_table(kind, stored.shape)):
        yield


@contextmanager
def batch_norm_momentum(backend: str, value: float = 0.01) -> Iterator[None]:
    """Running statistics move another part of the way."""
    kind = part(backend, "layers").BatchNorm

    def change(model: Any) -> None:
        for module in model.sublayers() if backend == "paddle" else model.modules():
            if isinstance(module, kind):
                module.momentum = value

    with altered(backend, change):
        yield


@contextmanager
def biased_variance(backend: str) -> Iterator[None]:
    """Running variances move towards the biased variance of the batch."""
    kind = part(backend, "layers").BatchNorm
    whole = kind.forward

    def forward(norm: Any, x: Any) -> Any:
        before, rows = norm.running_var.detach().clone(), math.prod(x.shape) // x.shape[1]
        y = whole(norm, x)
        if norm.training:
            step = norm.running_var - before * (1 - norm.momentum)
            biased = before * (1 - norm.momentum) + step * ((rows - 1) / rows)
            norm.running_var.set_value(biased) if backend == "paddle" else norm.running_var.data.copy_(biased)
        return y

    with replaced(kind, "forward", forward):
        yield


@contextmanager
def tanh_gelu(backend: str) -> Iterator[None]:
    """The tanh form of GELU instead of the exact one."""

    def forward(mlp: Any, x: Any) -> Any:
        h = mlp.fc1(x)
        return mlp.fc2(h * 0.5 * (((h + h * h * h * 0.044715) * math.sqrt(2 / math.pi)).tanh() + 1))

    with replaced(part(backend, "layers").MLP, "forward", forward):
        yield


@contextmanager
def wrong_gradient(backend: str, layer: str, factor: float = 1.01) -> Iterator[None]:
    """The gradient that leaves a layer towards the first ones is a little too large; its forward pass is right."""

    def change(model: Any) -> None:
        module = layer_of(model, layer)
        forward = module.forward
        module.forward = lambda x: forward(x + (x - x.detach()) * (factor - 1))

    with altered(backend, change):
        yield


# ---------------------------------------------------------------- losses, steps
@contextmanager
def no_two_t(backend: str) -> Iterator[None]:
    """The contrastive loss is not multiplied by 2 T."""
    kind = part(backend, "moco").MoCoV3
    whole = kind.contrast
    with replaced(kind, "contrast", lambda model, *given: whole(model, *given) / (2 * model.temperature)):
        yield


@contextmanager
def momentum_after_keys(backend: str) -> Iterator[None]:
    """The momentum encoder moves once the keys are computed, before the optimiser's step."""
    kind = part(backend, "moco").MoCoV3
    move, forward = kind.update_momentum, kind.forward
    asked: list[float] = []

    def late(model: Any, *given: Any) -> Any:
        outputs = forward(model, *given)
        move(model, asked.pop())
        return outputs

    with replaced(kind, "update_momentum", lambda model, m: asked.append(m)), replaced(kind, "forward", late):
        yield


@contextmanager
def momentum_after_step(backend: str) -> Iterator[None]:
    """The momentum encoder moves after the optimiser's step."""
    kind, learner = part(backend, "moco").MoCoV3, part(backend, "learner").Learner
    move, step = kind.update_momentum, learner.step

    def late(one: Any, batches: Any, values: Any) -> Any:
        result = step(one, batches, values)
        move(one.model, values.momentum)
        return result

    still = replaced(kind, "update_momentum", lambda model, m: None)
    with still, replaced(learner, "step", late):
        yield


@contextmanager
def decayed_biases(backend: str, decay: float = 0.05) -> Iterator[None]:
    """Weight decay on biases, where the recipe has none."""
    whole = base_learner.groups

    def groups(*given: Any) -> dict[str, Group]:
        rules = whole(*given)
        return {
            name: Group(r.lr_scale, decay if name.endswith(".bias") else r.weight_decay) for name, r in rules.items()
        }

    with replaced(base_learner, "groups", groups):
        yield
