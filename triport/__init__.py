"""The public API: MoCo v3 and MAE on PyTorch, Paddle and OneFlow, with the same numbers.

    import triport
    model = triport.create_model("moco_v3_vit_small", backend="torch", weights="vit-s-300ep.pth.tar")
    features = triport.embed("runs/mine", ["cat.jpg", "dog.jpg"])
    for prediction in triport.predict("runs/linear", "photos/"):
        print(prediction.file, prediction.name, prediction.probability)

Nothing is imported before it is used, so `import triport` costs nothing and needs no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from triport.core.version import VERSION

if TYPE_CHECKING:
    from triport.api import create_model, embed, list_models, list_recipes, logits
    from triport.core.errors import UserError
    from triport.inference import get_model, inference_model
    from triport.verbs.attention import attention
    from triport.verbs.compare import compare
    from triport.verbs.export import export
    from triport.verbs.measure import measure
    from triport.verbs.neighbours import neighbours
    from triport.verbs.predict import predict
    from triport.verbs.reconstruct import reconstruct
    from triport.weights.commands.convert import convert
    from triport.weights.commands.diff import diff
    from triport.weights.commands.inspect import inspect
    from triport.weights.commands.load import load_weights

__version__ = VERSION

__all__ = [
    "UserError",
    "attention",
    "compare",
    "convert",
    "create_model",
    "diff",
    "embed",
    "export",
    "get_model",
    "inference_model",
    "inspect",
    "list_models",
    "list_recipes",
    "load_weights",
    "logits",
    "measure",
    "neighbours",
    "predict",
    "reconstruct",
]

WHERE = {
    "UserError": "triport.core.errors",
    "attention": "triport.verbs.attention",
    "compare": "triport.verbs.compare",
    "neighbours": "triport.verbs.neighbours",
    "predict": "triport.verbs.predict",
    "reconstruct": "triport.verbs.reconstruct",
    "measure": "triport.verbs.measure",
    "convert": "triport.weights.commands.convert",
    "diff": "triport.weights.commands.diff",
    "export": "triport.verbs.export",
    "get_model": "triport.inference",
    "inference_model": "triport.inference",
    "inspect": "triport.weights.commands.inspect",
    "load_weights": "triport.weights.commands.load",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'triport' has no attribute '{name}'")
    value = getattr(importlib.import_module(WHERE.get(name, "triport.api")), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
