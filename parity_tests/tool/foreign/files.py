"""Records of models: arrays in order of computation and, as JSON, what made them. One safetensors file each.

`first/<array>` parameters and buffers before; `input/<i>/<name>` what step i was fed; of step 0 `out/<module>`,
`in/<module>` where that is not the output of another module, `grad/<module>` the loss's gradient of the output; of each
step `step<i>/loss`, `step<i>/grad/<parameter>`, `step<i>/after/<array>`. A second call of a module is `<module>@2`, the
parts of an output that is not one tensor are `<module>[0]` and so on. Arrays are named and laid out as PyTorch does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from triport.core import atomic
from triport.core.errors import UserError, room_for

FORMAT = "model 1"
TITLES = {"torch": "PyTorch", "paddle": "Paddle", "oneflow": "OneFlow"}


@dataclass(frozen=True, eq=False)
class Record:
    """What one framework computed with somebody's model."""

    name: str
    about: Mapping[str, Any]  # format, backend, version, precision, steps, model, modules, inputs, command
    arrays: Mapping[str, NDArray]  # in order of computation

    @property
    def modules(self) -> dict[str, dict[str, Any]]:
        """Of each module, by name, what it says of itself (see `kinds.describe`)."""
        return dict(self.about["modules"])

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return int(self.about["steps"])

    @property
    def title(self) -> str:
        """The framework, its version and the precision."""
        about = self.about
        return f"{TITLES[about['backend']]} {about['version']}, {about['precision']}"

    def part(self, prefix: str) -> dict[str, NDArray]:
        """The arrays under a prefix, without it."""
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}

    def input_of(self, call: str) -> NDArray | None:
        """What a module was fed in a call of step 0."""
        return self.arrays.get(self.about["inputs"].get(call, f"in/{call}"))


def write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    """Write a record whole or not at all. UserError where another file than a record would be replaced."""
    if path.exists() and not is_record(path):
        raise UserError(f"{path} is there and is not a record: move it aside first, it would be replaced.")
    texts = {"about": json.dumps(dict(about)), "order": json.dumps(list(arrays))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with room_for(path), atomic.replaced(path) as part:
            save_file({name: np.require(a, requirements="C") for name, a in arrays.items()}, part, texts)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from None


def read(path: Path) -> Record:
    """Read a record. Raises UserError for what is not one."""
    try:
        with safe_open(path, framework="np") as file:
            texts = file.metadata() or {}
            about = json.loads(texts["about"])
            if "recipe" in about:
                raise UserError(f"{path} is of a recipe: compare it with another of that recipe, not with a --model's.")
            if about["format"] != FORMAT:
                raise UserError(f"{path} has format {about['format']}; this version reads records of '{FORMAT}'.")
            return Record(path.stem, about, {name: file.get_tensor(name) for name in json.loads(texts["order"])})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the record {path}: {error}.") from None
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path} is not a record; `triport parity record` makes them.") from None


def is_record(path: Path) -> bool:
    """Whether a file is a record of a model; a file that cannot be read is not."""
    try:
        with safe_open(path, framework="np") as file:
            return bool(json.loads((file.metadata() or {})["about"])["format"] == FORMAT)
    except Exception:
        return False


def coarse(a: Record, b: Record) -> bool:
    """Whether one of them is in float32."""
    return "float64" not in (a.about["precision"], b.about["precision"]) or a.about["precision"] != b.about["precision"]
