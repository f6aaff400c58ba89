"""Learning rate and encoder momentum at a step of the run."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from triport.core.spec import MoCo, Recipe, ScheduleSpec


class Values(NamedTuple):
    """What changes from step to step."""

    lr: float
    momentum: float  # of the momentum encoder; 0 where there is none


def peak_lr(recipe: Recipe) -> float:
    """The learning rate after warm-up: the recipe's base rate scaled by its global batch."""
    return recipe.optimizer.lr * recipe.batch / recipe.optimizer.lr_batch


def at(recipe: Recipe, step: int, steps_per_epoch: int) -> Values:
    """Values of optimiser step `step`, counted over the whole run from 0."""
    epoch, within = divmod(step, steps_per_epoch)
    now = epoch + within / steps_per_epoch
    objective = recipe.model.objective
    momentum = 0.0
    if isinstance(objective, MoCo) and objective.momentum_compounds:
        momentum = compounded_at(objective.momentum, step, recipe.schedule.epochs * steps_per_epoch)
    elif isinstance(objective, MoCo):
        momentum = momentum_at(objective.momentum, now, recipe.schedule.epochs, objective.momentum_cosine)
    return Values(lr_at(recipe.schedule, peak_lr(recipe), now), momentum)


def lr_at(schedule: ScheduleSpec, peak: float, now: float) -> float:
    """Learning rate at fractional epoch `now` (moco-v3 main_moco.py, mae util/lr_sched.py, DeiT with timm's cosine)."""
    if schedule.per == "epoch":
        now = max(math.floor(now) - schedule.lag, 0)
    warmup = schedule.warmup_epochs
    if now < warmup:
        end = peak if schedule.warmup_end == "peak" else _cosine(schedule, peak, warmup)
        return schedule.warmup_lr + (end - schedule.warmup_lr) * now / warmup
    return _cosine(schedule, peak, now)


def _cosine(schedule: ScheduleSpec, peak: float, now: float) -> float:
    begin = schedule.warmup_epochs if schedule.cosine == "after_warmup" else 0.0
    length = schedule.epochs if schedule.cosine == "whole" else schedule.epochs - schedule.warmup_epochs
    return schedule.min_lr + (peak - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * (now - begin) / length))


def momentum_at(start: float, now: float, epochs: int, cosine: bool) -> float:
    """Momentum of the momentum encoder at fractional epoch `now`: from `start` to 1 (moco-v3 main_moco.py).

    It is a function of the time alone.
    """
    return 1 - 0.5 * (1 + math.cos(math.pi * now / epochs)) * (1 - start) if cosine else start


def compounded_at(start: float, step: int, steps: int) -> float:
    """Momentum at a step of LiBai's trainer (projects/MOCOV3), which feeds each value into the next step's cosine.

    What is left to 1 is multiplied by every cosine up to this step, so that the momentum encoder soon stands still.
    """
    return 1 - (1 - start) * float(_cosines(steps)[step])


@functools.lru_cache(maxsize=2)
def _cosines(steps: int) -> np.ndarray:
    return np.cumprod(0.5 * (1 + np.cos(np.pi * np.arange(steps + 1) / steps)))
