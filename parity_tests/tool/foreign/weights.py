"""Carries the weights of a record into any model: by name or a map of names, laid out by class, never by shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError
from triport.parity_tests.tool.foreign import files, frameworks, kinds
from triport.parity_tests.tool.foreign.names import Names

OWN_COUNTERS = ("num_batches_tracked",)  # which Paddle does not have


def copy_weights(model: Any, path: str | Path, names: Names | None = None) -> list[str]:
    """Overwrite a model's parameters and buffers with those that a record began with; returns the names of the record.

    names: the record's names to the model's. Raises UserError where an array of the model is not in the record or has
    another shape, or where parameters of the record would be left over.
    """
    record, framework = files.read(Path(path)), frameworks.of(model)
    arrays = (names or Names()).onto(record.part("first/"))
    used: set[str] = set()
    for name, module in {"": model, **dict(framework.modules(model))}.items():
        prefix = f"{name}." if name else ""
        inside = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        for tensors in framework.own_tensors(module):
            for key, tensor in tensors.items():
                if key not in OWN_COUNTERS:
                    _fill(framework, module, prefix, key, tensor, inside)
                used |= {f"{prefix}{own}" for own in kinds.neutral(module, {key: framework.array(tensor)})}
    rest = [name for name in arrays if name not in used and not name.endswith(OWN_COUNTERS)]
    if rest:
        raise UserError(
            f"{record.name} has '{rest[0]}'{_more(rest)}, for which {type(model).__name__} has no place; "
            "--names FILE says which of its arrays they are."
        )
    return [name for name in arrays if name in used]


def _fill(
    framework: frameworks.Framework, module: Any, prefix: str, key: str, tensor: Any, inside: Mapping[str, NDArray]
) -> None:
    """Overwrite one tensor of a module."""
    array = kinds.native(module, key, inside)
    if array is None:
        raise UserError(f"no array '{prefix}{key}' in the record; --names FILE says which of its arrays it is.")
    stored = framework.array(tensor)
    if array.shape != stored.shape:
        raise UserError(f"'{prefix}{key}' has shape {array.shape} in the record and {stored.shape} in the model.")
    framework.assign(tensor, np.asarray(array, stored.dtype))


def _more(rest: list[str]) -> str:
    return f" and {len(rest) - 1} more" if len(rest) > 1 else ""


def read_names(path: Path | None) -> Names:
    """A map of names from a JSON file; an empty one for None. UserError for what is none."""
    if path is None:
        return Names()
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    good = isinstance(table, dict) and all(
        isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
        for value in table.values()
    )
    if not good:
        raise UserError(f'{path} must map names of A to names of B: {{"layer1": "stages.0", "qkv": ["q", "k", "v"]}}.')
    return Names(table)
