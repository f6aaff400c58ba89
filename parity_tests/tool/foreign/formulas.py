"""The formulas of the known classes of modules, in numpy: each fed with what this very module was given.

A module is judged by its own settings and weights, so a fault upstream does not hide or smear it. Float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from triport.parity_tests.reference import layers as reference
from triport.parity_tests.reference.layers import Array
from triport.parity_tests.tool.foreign.files import Record

Arrays = Mapping[str, NDArray]
Formula = Callable[[Array, Arrays, Mapping[str, Any], bool], Array]
BIASED = ("paddle",)  # whose running variances move towards the batch's biased variance
# Whose kernels take eps in float32, whatever the arrays are (`recording.round_eps` gives it so to others).
# Momentum is so on Paddle and OneFlow, see `statistics`.
FLOAT32_EPS = {"paddle": ("layer norm", "batch norm"), "oneflow": ("batch norm",)}


def missed(record: Record, call: str) -> float | None:
    """How far a call of a module in step 0 is from its class's formula, relative to the largest value.

    None where the class has no formula here, its input was not recorded, or the record is in a lower precision.
    """
    name = base(call)
    known, x, y = record.modules.get(name, {}), record.input_of(call), record.arrays.get(f"out/{call}")
    formula = FORMULAS.get(known.get("kind", ""))
    if formula is None or x is None or y is None or x.dtype.kind != "f" or known["settings"].get("p"):
        return None
    training = record.about["mode"] == "train"
    try:
        wanted = formula(np.asarray(x, np.float64), own(record, name), settings(record, name), training)
    except (ValueError, IndexError, KeyError):
        return None  # called in a way that the formula does not know
    if wanted.shape != y.shape:
        return None
    return float(np.abs(y - wanted).max(initial=0.0) / max(np.abs(wanted).max(initial=0.0), 1e-12))


def base(call: str) -> str:
    """The module of a call."""
    return call.partition("@")[0].partition("[")[0]


def own(record: Record, name: str) -> dict[str, Array]:
    """A module's own arrays and those below it, as step 0 found them, by local name."""
    return {key: np.asarray(a, np.float64) for key, a in record.part(f"first/{name}.").items()}


def settings(record: Record, name: str) -> dict[str, Any]:
    """A module's settings as its framework's kernel takes them."""
    known = record.modules[name]
    given = dict(known["settings"])
    rounded = record.about.get("eps") == "float32" and "eps" in given
    if rounded or known["kind"] in FLOAT32_EPS.get(record.about["backend"], ()):
        given["eps"] = rough(given["eps"])
    return given


def rough(number: float) -> float:
    """A number as float32 has it."""
    return float(np.float32(number))


def shares(backend: str, momentum: float) -> tuple[float, float]:
    """What a framework's batch norm multiplies old statistics and those of the batch with."""
    stays = 1 - momentum if backend == "torch" else rough(1 - momentum)  # the others' kernels take this share
    return stays, 1 - stays


def statistics(record: Record, name: str, step: int) -> dict[str, float]:
    """By how much a batch norm's statistics after step 0 miss their rule on its own input, relative; {} if unknown."""
    x, given = record.input_of(name), settings(record, name)
    if step or x is None or given.get("momentum") is None or record.about["mode"] != "train":
        return {}
    if any(call.startswith(f"{name}@") for call in record.about["inputs"]) or f"in/{name}@2" in record.arrays:
        return {}  # called twice: moved twice
    x = np.asarray(x, np.float64)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    count, (old, new) = x.size // x.shape[1], shares(record.about["backend"], given["momentum"])
    freedom = 0 if record.about["backend"] in BIASED else 1
    batch = {"running_mean": x.mean(axes), "running_var": x.var(axes) * (count / (count - freedom) if count > 1 else 1)}
    out = {}
    for key, now in batch.items():
        before, after = record.arrays.get(f"first/{name}.{key}"), record.arrays.get(f"step0/after/{name}.{key}")
        if before is not None and after is not None:
            wanted = old * before.astype(np.float64) + new * now
            size = np.abs(wanted).max() if key == "running_var" else max(np.abs(wanted).max(), math.sqrt(x.var()))
            out[key] = float(np.abs(after - wanted).max() / max(size, 1e-12))
    return out


# ---------------------------------------------------------------- the classes
def linear(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """x W^T + b."""
    return x @ arrays["weight"].T + arrays.get("bias", 0.0)


def conv(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """A 2-D convolution with zeros around."""
    weight, groups = arrays["weight"], int(given["groups"])
    if weight.ndim != 4 or isinstance(given["padding"], str) or given["padding mode"] != "zeros":
        raise ValueError("another convolution")
    stride, padding, dilation = (_two(given[key]) for key in ("stride", "padding", "dilation"))
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:])]
    views = sliding_window_view(x, extent, axis=(2, 3))[
        :, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]
    ]
    parts = [
        np.tensordot(v, w, axes=((1, 4, 5), (1, 2, 3)))
        for v, w in zip(np.split(views, groups, axis=1), np.split(weight, groups))
    ]
    y = np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2)
    return np.asarray(y + arrays["bias"].reshape(1, -1, 1, 1) if "bias" in arrays else y)


def layer_norm(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """By mean and deviation over the last axes."""
    axes = tuple(range(-int(given["axes"]), 0))
    centred = x - x.mean(axes, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + given["eps"])
    return np.asarray(y * arrays.get("weight", 1.0) + arrays.get("bias", 0.0))


def batch_norm(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """By mean and biased variance of the batch or, in evaluation mode, by the running ones."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    if training or "running_mean" not in arrays:
        mean, variance = x.mean(axes), x.var(axes)
    else:
        mean, variance = arrays["running_mean"], arrays["running_var"]
    y = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + given["eps"])
    scale, shift = (arrays[key].reshape(shape) if key in arrays else other for key, other in
                    (("weight", 1.0), ("bias", 0.0)))  # fmt: skip
    return np.asarray(y * scale + shift)


def gelu(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """The exact form, or the tanh one where the module says so."""
    if given["tanh"]:
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return reference.gelu(x)


def softmax(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """Over the module's axis, the last one where it names none."""
    axis = -1 if given["axis"] is None else int(given["axis"])
    return np.moveaxis(reference.softmax(np.moveaxis(x, axis, -1)), -1, axis)


def relu(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """max(x, 0)."""
    return reference.relu(x)


def attention(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """Self-attention without a mask; of cross-attention the input is not recorded."""
    if given.get("dropout"):
        raise ValueError("it drops at random")
    rows = x if given["batch first"] else x.swapaxes(0, 1)
    q, k, v = (rows @ arrays[f"{p}_proj.weight"].T + arrays.get(f"{p}_proj.bias", 0.0) for p in "qkv")
    y = _attend(q, k, v, given["heads"]) @ arrays["out_proj.weight"].T + arrays.get("out_proj.bias", 0.0)
    return np.asarray(y if given["batch first"] else y.swapaxes(0, 1))


def qkv_attention(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """Self-attention whose queries, keys and values are one product."""
    q, k, v = np.split(x @ arrays["qkv.weight"].T + arrays.get("qkv.bias", 0.0), 3, axis=-1)
    return np.asarray(_attend(q, k, v, given["heads"]) @ arrays["proj.weight"].T + arrays.get("proj.bias", 0.0))


def _attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """(n, tokens, width) each -> (n, tokens, width)."""
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in (q, k, v))
    weights = reference.softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    return np.asarray((weights @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1))


def max_pool(x: Array, arrays: Arrays, given: Mapping[str, Any], training: bool) -> Array:
    """The largest value of each window; the border counts as minus infinity."""
    (size, _), (stride, _), (padding, _) = (_two(given[key]) for key in ("kernel_size", "stride", "padding"))
    return reference.max_pool(x, size, stride, padding)


def _two(value: Any) -> tuple[int, int]:
    """A number for both axes, or one for each."""
    return (int(value), int(value)) if isinstance(value, (int, float)) else (int(value[0]), int(value[1]))


FORMULAS: dict[str, Formula] = {
    "linear": linear,
    "conv": conv,
    "layer norm": layer_norm,
    "batch norm": batch_norm,
    "gelu": gelu,
    "softmax": softmax,
    "relu": relu,
    "attention": attention,
    "qkv attention": qkv_attention,
    "max pool": max_pool,
}


# ---------------------------------------------------------------- optimizers
def updates(record: Record) -> dict[tuple[int, str], Array] | None:
    """By how much each parameter misses its optimizer's rule, by step and name; None where the rule is not known.

    Moments are made of the recorded gradients of all steps before. OneFlow takes every setting in float32, and Paddle
    the momentum of SGD.
    """
    rule = record.about.get("optimizer")
    if not rule:
        return None
    first: dict[str, Array] = {}
    second: dict[str, Array] = {}
    out: dict[tuple[int, str], Array] = {}
    for step in range(record.steps):
        before = record.part("first/") if step == 0 else record.part(f"step{step - 1}/after/")
        for name, gradient in record.part(f"step{step}/grad/").items():
            p, g = before[name].astype(np.float64), gradient.astype(np.float64)
            move = _adamw if rule["kind"] == "adamw" else _sgd
            wanted = move(rule, record.about["backend"], p, g, step + 1, first, second, name)
            out[step, name] = record.arrays[f"step{step}/after/{name}"].astype(np.float64) - wanted
    return out


def _sgd(
    rule: Mapping[str, Any],
    backend: str,
    p: Array,
    g: Array,
    t: int,
    first: dict[str, Array],
    second: object,
    name: str,
) -> Array:
    momentum = rule["momentum"] if backend == "torch" else rough(rule["momentum"])
    lr = rough(rule["lr"]) if backend == "oneflow" else rule["lr"]
    first[name] = momentum * first.get(name, np.zeros_like(g)) + g + rule["decay"] * p
    return np.asarray(p - lr * first[name])


def _adamw(
    rule: Mapping[str, Any],
    backend: str,
    p: Array,
    g: Array,
    t: int,
    first: dict[str, Array],
    second: dict[str, Array],
    name: str,
) -> Array:
    number: Callable[[float], float] = rough if backend == "oneflow" else float
    lr, (b1, b2) = number(rule["lr"]), (number(0.9), number(0.999))
    first[name] = b1 * first.get(name, np.zeros_like(g)) + (1 - b1) * g
    second[name] = b2 * second.get(name, np.zeros_like(g)) + (1 - b2) * g**2
    mean, square = first[name] / number(1 - 0.9**t), second[name] / number(1 - 0.999**t)
    return np.asarray(p - lr * rule["decay"] * p - lr * mean / (np.sqrt(square) + 1e-8))
