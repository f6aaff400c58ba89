"""What a run was made with: written into environment.json at every start, so that a result can be traced."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from triport.core import atomic
from triport.core.version import VERSION

PACKAGES = ("numpy", "pillow", "safetensors", "torch", "paddlepaddle", "paddlepaddle-gpu", "oneflow")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(**more: Any) -> dict[str, Any]:
    """Return interpreter, packages, machine, command and `more` as JSON values."""
    return {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {"triport": VERSION, **{name: found for name in PACKAGES if (found := _version(name))}},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        **more,
    }


def record(path: Path, start: Mapping[str, Any]) -> bool:
    """Add a start to the list in environment.json; a run that was resumed has several.

    False where the file was damaged and begins again: what is lost is a note, not a result.
    """
    starts, whole = [], True
    if path.exists():
        try:
            starts = [*json.loads(path.read_text(encoding="utf-8"))["starts"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
    atomic.write_text(path, json.dumps({"starts": [*starts, dict(start)]}, indent=1) + "\n")
    return whole
