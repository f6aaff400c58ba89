"""What a config.json says of a model's function that no array tells: activation, pooling, strides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from triport.weights.canonical import Architecture

GELU = ("gelu", "gelu_python")  # transformers' names of the exact GELU
# registered ResNets of timm that blur before they stride, which takes no array
BLURRED = re.compile(r"(aa|blur)", re.IGNORECASE)
STRIDE, POOLED = 32, "avg"  # of a ResNet


def of_transformers(found: Mapping[str, Any]) -> str:
    """What transformers' config.json says that the model known here does otherwise: "hidden_act 'relu'"; else ""."""
    activation = found.get("hidden_act", "gelu")
    return "" if activation in GELU else _said("hidden_act", activation)


def of_timm(found: Mapping[str, Any], arguments: Mapping[str, Any], shape: Architecture) -> str:
    """The same of timm's config.json and the arguments of the model in it."""
    resnet = shape.family == "resnet"
    activation = arguments.get("act_layer")
    if activation not in (None, "relu" if resnet else "gelu"):
        return _said("act_layer", activation)
    pooling = arguments.get("global_pool", found.get("global_pool", ""))
    if not resnet:
        lost = shape.pooled and pooling == "token"
        return "global_pool 'token' beside an fc_norm" if lost else ""
    if BLURRED.search(str(found["architecture"])):
        return _said("architecture", found["architecture"])
    if arguments.get("aa_layer"):
        return _said("aa_layer", arguments["aa_layer"])
    if arguments.get("output_stride", STRIDE) != STRIDE:
        return _said("output_stride", arguments["output_stride"])
    return "" if shape.method != "classifier" or pooling in ("", POOLED) else _said("global_pool", pooling)


def _said(word: str, value: object) -> str:
    """A word and its value as a line of text may have them."""
    text = ascii(value)
    return f"{word} {text if len(text) <= 60 else text[:60] + '...'}"
