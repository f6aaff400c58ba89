"""mmpretrain's configurations through mmengine, which executes them as Python: only where `--mmengine` asks for it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from triport.core.errors import UserError


def read_tree(path: Path) -> dict[str, Any]:
    """Return a configuration as mmengine understands it, as plain values; classes as their names."""
    try:
        config = importlib.import_module("mmengine.config").Config
    except ImportError as error:
        raise UserError(
            f"--mmengine: mmengine cannot be imported here ({error}): pip install mmengine, or leave --mmengine out, "
            "and the file is read without being executed"
        ) from None
    try:
        found = config.fromfile(str(path)).to_dict()
    except Exception as error:  # whatever the file's own code raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: mmengine cannot read it: {what[:300]}") from None
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _last(item) if key == "type" else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else _last(value)


def _last(value: Any) -> str:
    """The name of a class, without the modules it lies in."""
    return str(getattr(value, "__name__", value)).rpartition(".")[2]
