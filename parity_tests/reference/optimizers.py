"""The reference, part three: update rules, parameter groups, schedules and slopes, each as its paper's formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triport.core.spec import OptimizerSpec
from triport.parity_tests.reference.layers import Array, Arrays

# ---------------------------------------------------------------- slopes
STEP = 1e-200  # its square underflows to 0, so real parts stay as they are to the bit


def slope(loss: Callable[[Arrays], float], arrays: Arrays, direction: Arrays) -> float:
    """How fast `loss` grows when the arrays move along `direction`: the sum over arrays of gradient times direction.

    The arrays take an imaginary step, so that nothing is subtracted and no digit is lost, as it is in a difference
    quotient: f(x + i h d) = f(x) + i h f'(x) d + O(h^2) (Squire and Trapp 1998). No step is taken across a ReLU's bend.
    """
    ahead = dict(arrays)
    for name, d in direction.items():
        ahead[name] = np.asarray(arrays[name], np.float64) + 1j * STEP * np.asarray(d, np.float64)
    return float(np.imag(loss(ahead))) / STEP


def random_direction(arrays: Arrays, names: Iterable[str], seed: int) -> dict[str, Array]:
    """A direction of length 1 over the named arrays together, the same for the same seed."""
    draw = np.random.Generator(np.random.Philox(seed))
    parts = {name: draw.standard_normal(np.shape(arrays[name])) for name in names}
    length = math.sqrt(sum(float((part**2).sum()) for part in parts.values()))
    return {name: part / length for name, part in parts.items()}


# ---------------------------------------------------------------- update rules, one tensor each
def adamw(
    p: Array, g: Array, m: Array, v: Array, t: int, lr: float, decay: float, betas: tuple[float, float], eps: float
) -> tuple[Array, Array, Array]:
    """AdamW (Loshchilov and Hutter 2019) at its t-th step, counted from 1: new p, m, v."""
    m = betas[0] * m + (1.0 - betas[0]) * g
    v = betas[1] * v + (1.0 - betas[1]) * g**2
    mean, square = m / (1.0 - betas[0] ** t), v / (1.0 - betas[1] ** t)
    return p - lr * decay * p - lr * mean / (np.sqrt(square) + eps), m, v


def lars(p: Array, g: Array, mu: Array, lr: float, decay: float, momentum: float, trust: float) -> tuple[Array, Array]:
    """LARS (You et al. 2017) as MoCo v3 and MAE use it: new p, mu. Vectors get neither decay nor trust."""
    if p.ndim > 1:
        g = g + decay * p
        length, size = float(np.sqrt((p**2).sum())), float(np.sqrt((g**2).sum()))
        if length > 0.0 and size > 0.0:
            g = g * (trust * length / size)
    mu = momentum * mu + g
    return p - lr * mu, mu


def sgd(p: Array, g: Array, mu: Array, lr: float, decay: float, momentum: float) -> tuple[Array, Array]:
    """SGD with heavy-ball momentum: new p, mu."""
    mu = momentum * mu + g + decay * p
    return p - lr * mu, mu


def clipped(gradients: Arrays, limit: float) -> tuple[dict[str, Array], float]:
    """Gradients scaled so that their common length is at most `limit`, and their length before."""
    length = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients.values()))
    scale = min(1.0, limit / (length + 1e-6))
    return {name: np.asarray(g, np.float64) * scale for name, g in gradients.items()}, length


class Rule(NamedTuple):
    """What one parameter adds to the update rule."""

    lr_scale: float
    decay: float


def rule(name: str, dimensions: int, optimizer: OptimizerSpec, depth: int) -> Rule:
    """Learning-rate scale and weight decay of a parameter of a ViT of `depth` blocks.

    Layer decay d scales block i (from 0) by d^(depth - i), tokens, positions and patch embedding by d^(depth + 1),
    what follows the blocks by 1 (arXiv 2111.06377, appendix A.1).
    """
    parts = name.split(".")
    if name in ("cls_token", "pos_embed") or parts[0] == "patch_embed":
        layer = 0
    else:
        layer = int(parts[1]) + 1 if parts[0] == "blocks" else depth + 1
    scale = 1.0 if optimizer.layer_decay is None else optimizer.layer_decay ** (depth + 1 - layer)
    plain = dimensions <= 1 or name.endswith(".bias")
    token = parts[-1] in ("cls_token", "pos_embed", "mask_token")
    norm = any("norm" in part for part in parts[:-1])
    spared = {
        "all": False,
        "matrices": plain,
        "matrices_but_tokens": plain or token,
        "all_but_norms_and_tokens": norm or token,
    }[optimizer.decays]
    return Rule(scale, 0.0 if spared else optimizer.weight_decay)


def optimizer_step(
    optimizer: OptimizerSpec,
    arrays: Arrays,
    gradients: Arrays,
    state: Mapping[str, NDArray],
    lr: float,
    rules: Mapping[str, Rule],
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """One update of all arrays that have a gradient: new arrays, new state.

    State is named as in checkpoints: `exp_avg/<name>`, `exp_avg_sq/<name>`, `mu/<name>`, `average/<name>`, `step`.
    An empty state is the start.
    """
    new, after = dict(arrays), dict(state)
    t = int(state.get("step", np.int64(0))) + 1
    after["step"] = np.asarray(t, np.int64)
    if optimizer.clip_norm is not None:
        gradients, _ = clipped(gradients, optimizer.clip_norm)
    for name, gradient in gradients.items():
        p, g = np.asarray(arrays[name], np.float64), np.asarray(gradient, np.float64)
        rate, decay, zero = lr * rules[name].lr_scale, rules[name].decay, np.zeros_like(p)
        if optimizer.kind == "adamw":
            first, second = f"exp_avg/{name}", f"exp_avg_sq/{name}"
            m, v = after.get(first, zero), after.get(second, zero)
            betas, eps = optimizer.betas, optimizer.eps
            new[name], after[first], after[second] = adamw(p, g, m, v, t, rate, decay, betas, eps)
            continue
        mu = after.get(f"mu/{name}", zero)
        if optimizer.kind == "lars":
            new[name], after[f"mu/{name}"] = lars(p, g, mu, rate, decay, optimizer.momentum, optimizer.trust)
        else:
            new[name], after[f"mu/{name}"] = sgd(p, g, mu, rate, decay, optimizer.momentum)
    if optimizer.average is not None:
        for name in gradients:
            old = np.asarray(after.get(f"average/{name}", arrays[name]), np.float64)
            after[f"average/{name}"] = optimizer.average * old + (1.0 - optimizer.average) * new[name]
    return new, after


# ---------------------------------------------------------------- schedules; `now` is in epochs and may be a fraction
def scaled_lr(lr: float, batch: int, per: int = 256) -> float:
    """The linear rule: a learning rate given for `per` images, at `batch` images."""
    return lr * batch / per


def pretraining_lr(now: float, peak: float, warmup: float, epochs: float, floor: float = 0.0) -> float:
    """MoCo v3 and MAE: a straight line from 0 to the peak, then half a cosine over what is left of the run."""
    if now < warmup:
        return peak * now / warmup
    return floor + (peak - floor) * (1.0 + math.cos(math.pi * (now - warmup) / (epochs - warmup))) / 2.0


def probe_lr(epoch: int, peak: float, epochs: int) -> float:
    """MoCo v3's linear probe: half a cosine in steps of an epoch, no warm-up."""
    return peak * (1.0 + math.cos(math.pi * epoch / epochs)) / 2.0


def deit_lr(epoch: int, peak: float, epochs: int, warmup: int = 5, start: float = 1e-6, floor: float = 1e-5) -> float:
    """DeiT: in steps of an epoch, one epoch late; the cosine runs under the warm-up."""
    t = max(epoch - 1, 0)
    if t < warmup:
        return start + (peak - start) * t / warmup
    return floor + (peak - floor) * (1.0 + math.cos(math.pi * t / epochs)) / 2.0


def encoder_momentum(now: float, start: float, epochs: float) -> float:
    """MoCo v3's momentum: from `start` up to 1 along half a cosine."""
    return 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * now / epochs)) / 2.0
