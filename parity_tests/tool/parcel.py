"""Values as JSON and a flat table of arrays: how questions and answers travel between interpreters.

Numbers, texts, lists, tuples, dicts with text keys, arrays, and the dataclasses and named tuples of `core`. Nothing is
pickled, so a folder may be kept, sent by mail and read by any version of numpy.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from triport.core import atomic

Arrays = dict[str, NDArray]


def pack(value: Any, arrays: Arrays, where: str = "") -> Any:
    """Return `value` as JSON can hold it; arrays go to `arrays` under their place in it.

    Raises TypeError for what cannot travel, with its place.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        arrays[where] = np.require(value, requirements="C")
        return {"array": where}
    if isinstance(value, dict):
        return {"dict": {str(k): pack(v, arrays, f"{where}/{k}" if where else str(k)) for k, v in value.items()}}
    fields = _fields(value)
    if fields is not None:
        kind = type(value)
        packed = {name: pack(getattr(value, name), arrays, f"{where}/{name}") for name in fields}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": packed}
    if isinstance(value, (list, tuple)):
        items = [pack(item, arrays, f"{where}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise TypeError(f"{where or 'the value'} is a {type(value).__name__}, which cannot travel to another interpreter")


def unpack(packed: Any, arrays: Arrays) -> Any:
    """The reverse of `pack`. Only classes of `core` are made."""
    if isinstance(packed, list):
        return [unpack(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    if "tuple" in packed:
        return tuple(unpack(item, arrays) for item in packed["tuple"])
    if "dict" in packed:
        return {key: unpack(item, arrays) for key, item in packed["dict"].items()}
    module, _, name = packed["class"].partition(":")
    if not module.startswith("triport.core."):
        raise TypeError(f"{packed['class']} is not a class of core")
    made = getattr(importlib.import_module(module), name)
    return made(**{key: unpack(item, arrays) for key, item in packed["fields"].items()})


def _fields(value: Any) -> list[str] | None:
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    return list(value._fields) if isinstance(value, tuple) and hasattr(value, "_fields") else None


# ---------------------------------------------------------------- files
def write(value: Any, path: Path, arrays_path: Path | None = None) -> None:
    """Write a value whole or not at all: into one safetensors file, or JSON beside the arrays' file."""
    arrays: Arrays = {}
    text = json.dumps(pack(value, arrays), indent=1)
    target, metadata = (path, {"value": text}) if arrays_path is None else (arrays_path, None)
    with atomic.replaced(target, durable=False) as part:
        save_file(arrays, part, metadata)
    if arrays_path is not None:
        path.write_text(text)


def read(path: Path, arrays_path: Path | None = None) -> Any:
    """Read what `write` wrote."""
    with safe_open(path if arrays_path is None else arrays_path, framework="np") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        text = path.read_text() if arrays_path is not None else file.metadata()["value"]
    return unpack(json.loads(text), arrays)
