"""What the known classes of modules say about themselves, in one language for three frameworks.

`describe` gives the kind ("linear", "conv", "layer norm" ...), the settings that decide its numbers, and whether the
class computes by its framework's own `forward`; `neutral` and `native` rename and turn its arrays, by class, never by
shape: Paddle's linear weights are (in, out), its running statistics `_mean` and `_variance`; PyTorch's attention keeps
three projections in one array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Settings = dict[str, Any]
Arrays = dict[str, NDArray]

# class -> kind
KINDS = {
    "Linear": "linear",
    "Conv1d": "conv", "Conv2d": "conv", "Conv3d": "conv", "Conv1D": "conv", "Conv2D": "conv", "Conv3D": "conv",
    "LayerNorm": "layer norm",
    "BatchNorm1d": "batch norm", "BatchNorm2d": "batch norm", "BatchNorm3d": "batch norm",
    "BatchNorm1D": "batch norm", "BatchNorm2D": "batch norm", "BatchNorm3D": "batch norm",
    "SyncBatchNorm": "batch norm",
    "GELU": "gelu",
    "ReLU": "relu",
    "Softmax": "softmax",
    "MultiheadAttention": "attention", "MultiHeadAttention": "attention",
    "Dropout": "dropout", "Dropout1d": "dropout", "Dropout2d": "dropout", "Dropout2D": "dropout",
    "AlphaDropout": "dropout", "DropPath": "dropout", "StochasticDepth": "dropout",
    "MaxPool2d": "max pool", "MaxPool2D": "max pool",
    "Embedding": "embedding",
}  # fmt: skip
ROOTS = ("torch", "paddle", "oneflow")
PACKED = re.compile(r"in_proj_(weight|bias)")  # of PyTorch's attention: queries, keys, values below each other
STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}  # of Paddle's batch norms


def describe(module: Any) -> dict[str, Any]:
    """Class, kind ("" if unknown), settings, and `exact`: whether it computes as its framework's class does."""
    own = type(module)
    known = {"class": own.__name__, "kind": "", "settings": {}, "exact": False}
    for base in own.__mro__:
        if base.__name__ in KINDS and (base.__module__.partition(".")[0] in ROOTS or base.__name__ in ("DropPath",)):
            kind = KINDS[base.__name__]
            known |= {
                "kind": kind,
                "settings": _plain(_settings(module, kind)),
                "exact": _forward(own) is _forward(base),
            }
            break
    else:
        if _fused_attention(module):
            known |= {"kind": "qkv attention", "settings": {"heads": int(module.num_heads)}}
    return known


def eps_of(module: Any) -> dict[str, float]:
    """The attributes of a module that are an eps, with their values."""
    found = {name: getattr(module, name, None) for name in ("eps", "epsilon", "_epsilon")}
    return {name: value for name, value in found.items() if isinstance(value, float)}


def shortest(eps: float) -> float:
    """The shortest number that float32 has as this eps: 1e-05 of 9.999999747378752e-06."""
    return float(str(np.float32(eps)))


def _forward(kind: Any) -> Any:
    return kind.forward


def _fused_attention(module: Any) -> bool:
    """Whether a module is an attention as timm and DeiT write it: one `qkv`, one `proj`, a number of heads."""
    return all(hasattr(module, name) for name in ("qkv", "proj", "num_heads"))


def _first(module: Any, *names: str) -> Any:
    """The first of some attributes that a module has."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _settings(module: Any, kind: str) -> Settings:
    """The numbers that a module's class was given, as PyTorch counts them."""
    paddle = hasattr(module, "named_sublayers")
    match kind:
        case "conv":
            padding = _first(module, "_padding", "padding")
            return {
                "stride": _first(module, "_stride", "stride"),
                "padding": padding if isinstance(padding, (str, int)) else list(padding),
                "dilation": _first(module, "_dilation", "dilation"),
                "groups": _first(module, "_groups", "groups"),
                "padding mode": _first(module, "_padding_mode", "padding_mode"),
            }
        case "layer norm":
            return {"eps": _first(module, "_epsilon", "eps"), "axes": len(_shape(module))}
        case "batch norm":
            momentum = _first(module, "_momentum", "momentum")
            if paddle:  # there the share that stays
                momentum = round(1 - momentum, 12)
            return {"eps": _first(module, "_epsilon", "eps"), "momentum": momentum}
        case "gelu":
            approximate = _first(module, "_approximate", "approximate")
            return {"tanh": approximate in (True, "tanh")}
        case "softmax":
            return {"axis": _first(module, "_axis", "dim")}
        case "attention":
            return {
                "heads": module.num_heads,
                "batch first": paddle or bool(getattr(module, "batch_first", False)),
                "dropout": float(getattr(module, "dropout", 0.0) or 0.0),
            }
        case "dropout":
            return {"p": float(_first(module, "p", "drop_prob") or 0.0)}
        case "max pool":
            names = (("kernel_size", "ksize"), ("stride", "stride"), ("padding", "padding"))
            return {name: _pair(_first(module, name, other)) for name, other in names}
    return {}


def _shape(module: Any) -> tuple[int, ...]:
    shape = _first(module, "_normalized_shape", "normalized_shape")
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _pair(value: Any) -> Any:
    """One number for two equal ones."""
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return value[0]
    return value


def _plain(settings: Settings) -> Settings:
    """Settings as JSON values, equal where they mean the same."""
    return {key: _pair(list(value) if isinstance(value, tuple) else value) for key, value in settings.items()}


# ---------------------------------------------------------------- arrays
def neutral(module: Any, arrays: Mapping[str, NDArray]) -> Arrays:
    """A module's own arrays by local name, named and laid out as PyTorch does, projections of attention apart."""
    known, out = describe(module), dict[str, NDArray]()
    paddle = hasattr(module, "named_sublayers")
    for name, array in arrays.items():
        packed = PACKED.fullmatch(name) if known["kind"] == "attention" else None
        if packed:
            parts = np.split(array, 3)
            out |= {f"{letter}_proj.{packed[1]}": part for letter, part in zip("qkv", parts)}
        elif paddle and known["kind"] == "linear" and name == "weight":
            out[name] = np.ascontiguousarray(array.T)
        elif paddle and known["kind"] == "batch norm" and name in STATISTICS:
            out[STATISTICS[name]] = array
        else:
            out[name] = array
    return out


def native(module: Any, name: str, wanted: Mapping[str, NDArray]) -> NDArray | None:
    """One array of a module as its framework stores it, from a module's neutral arrays; None where one is lacking."""
    known, paddle = describe(module), hasattr(module, "named_sublayers")
    packed = PACKED.fullmatch(name) if known["kind"] == "attention" else None
    if packed:
        parts = [wanted.get(f"{letter}_proj.{packed[1]}") for letter in "qkv"]
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if len(found) == 3 else None
    if paddle and known["kind"] == "batch norm":
        name = STATISTICS.get(name, name)
    array = wanted.get(name)
    if array is not None and paddle and known["kind"] == "linear" and name == "weight":
        return np.ascontiguousarray(array.T)
    return array
