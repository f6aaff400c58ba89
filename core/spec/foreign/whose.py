"""Whose a configuration file is, told by its ending and, of a Python file, by what it imports."""

from __future__ import annotations

import re
from pathlib import Path

from triport.core.errors import UserError

LIBAI = ("libai", "LazyCall", "get_config(", "OmegaConf")
MMENGINE = ("read_base(", "_base_ =", "mmpretrain", "mmengine", "mmselfsup")
IMPORT = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+import\b", re.MULTILINE)


def project_of(path: Path) -> str:
    """Return whose configuration a file is: "PASSL", "LiBai" or "mmpretrain"."""
    if path.suffix != ".py":
        return "PASSL"
    return "LiBai" if _is_libais(path, set()) else "mmpretrain"


def _is_libais(path: Path, seen: set[Path]) -> bool:
    """Look for what only one of the two writes; where there is neither, in the files that this one begins with."""
    seen.add(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if any(word in text for word in LIBAI):
        return True
    if any(word in text for word in MMENGINE):
        return False
    begun = [file for dots, name in IMPORT.findall(text) for file in _files(path, dots, name) if file not in seen]
    return any(_is_libais(file, seen) for file in begun)


def _files(path: Path, dots: str, name: str) -> list[Path]:
    """The files that `from NAME import` can mean here: beside this one, or in a folder above it."""
    above = list(path.resolve().parents)
    folders = above[len(dots) - 1 : len(dots)] if dots else above
    found = [folder.joinpath(*name.split(".")).with_suffix(".py") for folder in folders if name]
    return [file for file in found if file.is_file()][:1]
