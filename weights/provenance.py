"""Where converted weights come from: in the metadata of safetensors files, in `<target>.json` beside others."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from weights import facts
from weights.layout import Layout
from weights.writing import whole_file

CHUNK = 1 << 22
UNKNOWN_DIGEST = "?" * 64
UNKNOWN = (
    "Licence of the source weights unknown. Those released by facebookresearch (moco-v3, mae) are under CC BY-NC 4.0: "
    "no commercial use."
)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder: of the names and SHA-256 of its files in order."""
    if path.is_dir():
        parts = (f"{p.relative_to(path).as_posix()} {digest(p)}\n" for p in sorted(path.rglob("*")) if p.is_file())
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            whole.update(block)
    return whole.hexdigest()


def notice(layout: Layout, earlier: dict[str, Any]) -> str:
    """The licence notice of source weights: what an earlier conversion noted, what their project says, or unknown."""
    known = earlier.get("licence")
    return known if isinstance(known, str) else layout.notice or UNKNOWN


def own_version() -> str:
    """The version of this project."""
    try:
        return version("triport")
    except PackageNotFoundError:
        return "not installed"


def path_beside(target: Path) -> Path:
    """Where the provenance of a file without metadata stands."""
    return target.with_name(target.name + ".json")


def write_beside(target: Path, provenance: dict[str, Any], own_digest: str, force: bool) -> None:
    """Write provenance beside a target, with the target's size and SHA-256, so that a reader can tell whose it is."""
    own = {**provenance, "bytes": _size(target), "sha256": own_digest}
    with whole_file(path_beside(target), force) as file:
        file.write(json.dumps({facts.KEY: own}, indent=1).encode())


def text(provenance: dict[str, Any]) -> str:
    """Provenance as the one line that safetensors metadata takes."""
    return json.dumps(provenance)


def fill_in(path: Path, source: str) -> None:
    """Put a digest in the place of `UNKNOWN_DIGEST` in the header of a safetensors file, which has the same length."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        at = file.read(length).index(UNKNOWN_DIGEST.encode())
        file.seek(8 + at)
        file.write(source.encode())
        file.flush()
        os.fsync(file.fileno())


def beside(path: Path, quick: bool = False) -> dict[str, Any]:
    """Provenance beside a file, if it was written for exactly these bytes, or (quick) for as many; else empty."""
    found = facts.read_json(path_beside(path)).get(facts.KEY)
    if not isinstance(found, dict) or found.get("bytes") != _size(path):
        return {}
    return found if quick or found.get("sha256") == digest(path) else {}


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
