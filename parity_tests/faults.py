"""Faults that ports of MoCo v3 and MAE really had, planted in the torch backend for the time of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.torch import build, learner
from backends.torch.layers import BatchNorm
from backends.torch.moco import MoCoV3
from core.groups import Group
from core.position import table


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
def altered(change: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within, every model that is built is changed."""
    whole = build.build

    def make(*given: Any) -> nn.Module:
        model = whole(*given)
        change(model)
        return model

    with replaced(build, "build", make):
        yield


@contextmanager
def eps(layer: str, value: float = 1e-5) -> Iterator[None]:
    """A layer norm has the frameworks' own eps instead of the recipe's 1e-6."""

    def change(model: nn.Module) -> None:
        norm = model.get_submodule(layer)
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = value

    with altered(change):
        yield


@contextmanager
def transposed(layer: str, at_load: bool = False) -> Iterator[None]:
    """A square weight is used transposed; `at_load` it is stored so, too."""

    def change(model: nn.Module) -> None:
        linear = model.get_submodule(layer)
        assert isinstance(linear, nn.Linear) and linear.in_features == linear.out_features
        if at_load:
            linear.weight.data = linear.weight.data.T.contiguous()
        else:
            setattr(linear, "forward", lambda x: F.linear(x, linear.weight.T, linear.bias))  # noqa: B010

    with altered(change):
        yield


@contextmanager
def other_position(kind: str, encoder: str = "", at_load: bool = False) -> Iterator[None]:
    """Tokens get the other method's position table; `at_load` the model holds it, else its forward pass has it."""

    def change(model: nn.Module) -> None:
        vit: Any = model.get_submodule(encoder)
        side = round((vit.pos_embed.shape[1] - 1) ** 0.5)
        other = torch.from_numpy(table(kind, vit.pos_embed.shape[2], (side, side)))  # type: ignore[arg-type]
        if at_load:
            vit.pos_embed.data = other
            return
        tokens = vit.tokens

        def swapped(images: Tensor) -> Tensor:
            own = vit.pos_embed.data
            vit.pos_embed.data = other
            try:
                return tokens(images)
            finally:
                vit.pos_embed.data = own

        vit.tokens = swapped

    with altered(change):
        yield


@contextmanager
def batch_norm_momentum(value: float = 0.01) -> Iterator[None]:
    """Running statistics move another part of the way."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.momentum = value

    with altered(change):
        yield


@contextmanager
def biased_variance() -> Iterator[None]:
    """Running variances move towards the biased variance of the batch."""
    whole = BatchNorm.forward

    def forward(norm: BatchNorm, x: Tensor) -> Tensor:
        before, rows = norm.running_var.clone(), x.numel() // x.shape[1]
        y = whole(norm, x)
        if norm.training:
            step = norm.running_var - (1 - norm.momentum) * before
            norm.running_var.data.copy_((1 - norm.momentum) * before + step * (rows - 1) / rows)
        return y

    with replaced(BatchNorm, "forward", forward):
        yield


@contextmanager
def tanh_gelu() -> Iterator[None]:
    """The tanh form of GELU instead of the exact one."""
    exact = F.gelu
    with replaced(F, "gelu", lambda x: exact(x, approximate="tanh")):
        yield


@contextmanager
def no_two_t() -> Iterator[None]:
    """The contrastive loss is not multiplied by 2 T."""
    whole = MoCoV3.contrast
    with replaced(MoCoV3, "contrast", lambda model, *given: whole(model, *given) / (2 * model.temperature)):
        yield


@contextmanager
def momentum_after_keys() -> Iterator[None]:
    """The momentum encoder moves once the keys are computed, before the optimiser's step."""
    move, forward = MoCoV3.update_momentum, MoCoV3.forward
    asked: list[float] = []

    def late(model: MoCoV3, *given: Any) -> dict[str, Tensor]:
        outputs = forward(model, *given)
        move(model, asked.pop())
        return outputs

    with replaced(MoCoV3, "update_momentum", lambda model, m: asked.append(m)), replaced(MoCoV3, "forward", late):
        yield


@contextmanager
def momentum_after_step() -> Iterator[None]:
    """The momentum encoder moves after the optimiser's step."""
    move, step = MoCoV3.update_momentum, learner.Learner.step

    def late(one: learner.Learner, batches: Any, values: Any) -> Any:
        result = step(one, batches, values)
        assert isinstance(one.model, MoCoV3)
        move(one.model, values.momentum)
        return result

    still = replaced(MoCoV3, "update_momentum", lambda model, m: None)
    with still, replaced(learner.Learner, "step", late):
        yield


@contextmanager
def decayed_biases(decay: float = 0.05) -> Iterator[None]:
    """Weight decay on biases, where the recipe has none."""
    whole = learner.groups

    def groups(*given: Any) -> dict[str, Group]:
        rules = whole(*given)
        return {
            name: Group(r.lr_scale, decay if name.endswith(".bias") else r.weight_decay) for name, r in rules.items()
        }

    with replaced(learner, "groups", groups):
        yield


@contextmanager
def wrong_gradient(layer: str, factor: float = 1.01) -> Iterator[None]:
    """The gradient that leaves a layer towards the first ones is a little too large; its forward pass is right."""

    def change(model: nn.Module) -> None:
        def scale(module: nn.Module, into: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(part * factor for part in into)

        model.get_submodule(layer).register_full_backward_hook(scale)

    with altered(change):
        yield
