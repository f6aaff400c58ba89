"""LiBai's form of a run: FOLDER/model_0000009/{model, optimizer}, model_final, last_checkpoint, metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triport.backends.oneflow.libai.model import Names, Vit
from triport.backends.oneflow.libai.repairs import HookBase, JSONWriter, PeriodicWriter
from triport.backends.oneflow.libai.trainer import Update
from triport.backends.oneflow.runtime import flow
from triport.core.model.groups import Group
from triport.core.spec import OptimizerSpec
from triport.weights.arrays import Lazy, Tree, lazy
from triport.weights.files import oneflow_writer

Arrays = Mapping[str, np.ndarray]
SLOTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "mu": "momentum_buf"}  # ours -> OneFlow's


class Periodic(HookBase):
    """LiBai's hook that leaves a checkpoint every so many steps, named by the last one, counted from 0."""

    def __init__(self, save: Callable[[str], None], period: int) -> None:
        self.save, self.period = save, period

    def after_step(self) -> None:
        """LiBai's trainer calls it."""
        if (self.trainer.iter + 1) % self.period == 0:
            self.save(f"model_{self.trainer.iter:07d}")


def hooks(folder: Path, save: Callable[[str], None], period: int, first: bool) -> list[HookBase]:
    """What LiBai's trainer does for its folder after each step. period: of checkpoints, 0 for none on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[HookBase] = [Periodic(save, period)] if period else []
    return [*made, PeriodicWriter([JSONWriter(str(folder / "metrics.json"))], 1)] if first else made


def write(folder: Path, name: str, made: Vit, names: Names, update: Update, arrays: Arrays, state: Arrays) -> None:
    """Write canonical arrays as LiBai's Checkpointer would, each checkpoint whole or not at all."""
    parts: dict[str, Tree] = {"model": {own: lazy(names.to_libai(n, arrays[n])) for n, own in names.own.items()}}
    if update.recipe.optimizer.kind in ("adamw", "sgd"):  # OneFlow has no LARS
        parts["optimizer"] = optimizer(made, names, update, state)
    folder.mkdir(parents=True, exist_ok=True)
    oneflow_writer.write_libai(folder / name, parts, force=True)
    (folder / "last_checkpoint").write_text(name)


def optimizer(made: Vit, names: Names, update: Update, state: Arrays) -> dict[str, Any]:
    """The state of OneFlow's own optimiser, had it taken the steps: parameters by number, in the model's order."""
    groups = grouped(made, update)
    order = [name for group in groups.values() for name in group]
    slots = {slot: SLOTS[slot] for slot in update.rule.slots}
    return {
        "state": {
            "step": update.rule.steps,
            **{i: {theirs: _transposed(names, n, state[f"{ours}/{n}"]) for ours, theirs in slots.items()}
               for i, n in enumerate(order)},
        },
        "param_groups": _shell(update, groups).state_dict()["param_groups"],
    }  # fmt: skip


def grouped(made: Vit, update: Update) -> dict[Group, list[str]]:
    """Names of the trained parameters by their rule, in the order of LiBai's model, as LiBai groups them."""
    own = {id(p): name for name, p in update.trained.items()}
    groups: dict[Group, list[str]] = {}
    for name in (own[id(p)] for p in made.parameters() if id(p) in own):
        groups.setdefault(update.rules[name], []).append(name)
    return groups


def _transposed(names: Names, name: str, array: np.ndarray) -> Lazy:
    return lazy(names.to_libai(name, array))


def _shell(update: Update, grouped_names: Mapping[Group, list[str]]) -> Any:
    """An optimiser of OneFlow with our groups, for the options that it writes down."""
    spec: OptimizerSpec = update.recipe.optimizer
    clip = {} if spec.clip_norm is None else {"clip_grad_max_norm": spec.clip_norm, "clip_grad_norm_type": 2.0}
    groups = [
        {
            "params": [update.trained[name] for name in group],
            "lr": update.lr * rule.lr_scale,
            "weight_decay": rule.weight_decay,
            **clip,
        }
        for rule, group in grouped_names.items()
    ]
    if spec.kind == "adamw":
        return flow.optim.AdamW(groups, betas=tuple(spec.betas), eps=spec.eps)
    return flow.optim.SGD(groups, lr=update.lr, momentum=spec.momentum)
