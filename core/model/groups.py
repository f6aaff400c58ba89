"""Which parameter decays, and by how much its learning rate is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from triport.core.model.parameters import Parameter
from triport.core.spec import OptimizerSpec


class Group(NamedTuple):
    """What one parameter adds to the optimiser's rule."""

    lr_scale: float
    weight_decay: float


def groups(parameters: Sequence[Parameter], optimizer: OptimizerSpec) -> dict[str, Group]:
    """Return the rule of every trainable parameter, in the parameters' order.

    Weight decay after moco-v3 (all), mae main_pretrain.py (matrices) and mae util/lr_decay.py or DeiT
    (matrices_but_tokens). Layer decay d gives layer i of n the scale d ** (n - i) (mae util/lr_decay.py).
    """
    last = max((p.layer for p in parameters), default=0)
    rules = {}
    for p in parameters:
        if p.trainable:
            scale = 1.0 if optimizer.layer_decay is None else optimizer.layer_decay ** (last - p.layer)
            rules[p.name] = Group(scale, optimizer.weight_decay if _decays(p, optimizer.decays) else 0.0)
    return rules


def _decays(p: Parameter, rule: str) -> bool:
    if rule == "all":
        return True
    module, _, last = p.name.rpartition(".")
    token = last in ("cls_token", "pos_embed", "mask_token")
    if rule == "all_but_norms_and_tokens":
        return not token and "norm" not in module
    if len(p.shape) == 1 or last == "bias":
        return False
    return not (rule == "matrices_but_tokens" and token)
