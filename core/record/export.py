"""What a finished run leaves for others: encoder.safetensors, the bare encoder under canonical names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.model.inventory import encoder_inventory
from triport.core.record.checkpoint import class_words, write_arrays
from triport.core.spec import MoCo, Recipe, schema
from triport.core.spec import recipe as recipes
from triport.core.version import VERSION


def encoder_arrays(recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the encoder's arrays without prefix: MoCo's base encoder without projector, MAE's without decoder."""
    prefix = "base_encoder." if isinstance(recipe.model.objective, MoCo) else ""
    names = (p.name for p in encoder_inventory(recipe.model.encoder))
    # A mean-pooled classifier has `fc_norm` where the encoder has `norm`.
    return {name: arrays[prefix + name] for name in names if prefix + name in arrays}


def averaged(arrays: Mapping[str, np.ndarray], optimizer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a model's arrays, as moving averages where the optimiser keeps any: these are what a run is scored by."""
    means = {key.partition("/")[2]: array for key, array in optimizer.items() if key.startswith("average/")}
    return {**arrays, **means}


def write_encoder(
    path: Path, recipe: Recipe, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None
) -> None:
    """Write the encoder of a model's `arrays`, whole or not at all, with words that say what it is.

    about: what the run's checkpoints say of its images, "classes" and "data", whether it was "lengthened", and the
    "licence" of weights it began with.
    """
    about = about or {}
    words = {
        "model": json.dumps(schema.plain(recipe.model)),
        "method": recipe.model.objective.kind,
        "recipe": recipe.name,
        "recipe_toml": recipes.to_toml(recipe),
        "triport": VERSION,
        **class_words(about),
        **({"lengthened": json.dumps(about["lengthened"])} if about.get("lengthened") else {}),
        **({"provenance": json.dumps({"licence": about["licence"]})} if about.get("licence") else {}),
    }
    try:
        with atomic.replaced(path) as part:
            write_arrays(part, encoder_arrays(recipe, arrays), words)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. Free space, then --resume writes it."
        ) from error
