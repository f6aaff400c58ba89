"""Read any file of weights and write any: the form is found by content when reading, by ending when writing."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from triport.core.errors import UserError, closest
from triport.core.source import Damaged, Source, parsing, reading
from triport.weights.arrays import File, Inert, Lazy, Tree, lazy, refusal
from triport.weights.files import (
    folders,
    npz_file,
    oneflow_file,
    oneflow_writer,
    others,
    paddle_file,
    safetensors_file,
    torch_file,
    torch_shards,
    torch_writer,
    zips,
)
from triport.weights.writing import Digest

__all__ = ["ENDINGS", "FORMS", "STREAMED", "File", "detect", "form_of", "read", "write"]

FORMS = ("torch", "paddle", "oneflow", "oneflow-file", "libai", "safetensors", "npz")
STREAMED = ("paddle", "oneflow-file")
ENDINGS = {
    ".pth.tar": "torch", ".pth": "torch", ".pt": "torch", ".bin": "torch",
    ".pdparams": "paddle", ".pdopt": "paddle", ".pd": "paddle",
    ".oneflow": "oneflow", ".oneflow.pkl": "oneflow-file",
    ".safetensors": "safetensors", ".safetensors.index.json": "safetensors", ".npz": "npz",
}  # fmt: skip


def read(path: str | Path) -> File:
    """Read headers and structure of a file or folder of any form; arrays stay in the file until their `read()`.

    Runs nothing that the file holds. Raises UserError, one line that begins with the path, for everything that is
    missing, unknown, hostile or broken.
    """
    path = Path(path)
    form = detect(path)
    with parsing(path):
        path = folders.inside(path) if path.is_dir() else path
        file = READERS[form](path)
        if isinstance(file.tree, Inert):
            raise Damaged(refusal(file.tree))
        return file


READERS = {
    "torch": lambda path: (torch_shards if path.name.endswith(torch_shards.INDEX) else torch_file).read(path),
    "paddle": paddle_file.read,
    "oneflow": oneflow_file.read,
    "safetensors": safetensors_file.read,
    "npz": npz_file.read,
}


def detect(path: str | Path) -> str:
    """Return the form by content; all of OneFlow and LiBai is "oneflow". UserError if it is none."""
    path = Path(path)
    with parsing(path):
        if fault := others.address(path):
            raise Damaged(fault)
        return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> str:
    """The form of a folder."""
    found = folders.inside(path)
    if found != path:
        return _file(found)
    return "safetensors" if safetensors_file.in_folder(path) else "oneflow"


def _file(path: Path) -> str:
    """The form of a file."""
    source = Source(path)
    if not source.size:
        raise Damaged("is empty")
    head = source.bytes(0, min(source.size, 4096))
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        names = list(zips.members(source))
        if any(name.split("/")[-1] == "data.pkl" for name in names):
            return "torch"
        if all(name.endswith(".npy") for name in names):
            return "npz"
        raise Damaged(others.archive(names, path.name))
    if head[:1] == b"\x80" and len(head) > 2 and 2 <= head[1] <= 5:
        if head[2 : 2 + len(torch_file.MAGIC)] == torch_file.MAGIC:
            return "torch"
        own = b"protocol_version" in head[:64] or oneflow_file.BEGINS.search(head)
        return "oneflow" if own else "paddle"
    if (
        len(head) > 8
        and head[8:9] == b"{"
        and struct.unpack("<Q", head[:8])[0] <= max(source.size, safetensors_file.MAX_HEADER)
    ):
        return "safetensors"
    if head.lstrip()[:1] == b"{" and path.name.endswith(torch_shards.INDEX):
        return "torch"
    if head.lstrip()[:1] == b"{" and path.name.endswith(safetensors_file.INDEX):
        return "safetensors"
    raise Damaged(others.describe(head, path.name))


def form_of(path: str | Path) -> str:
    """Return the form that a target's ending asks for; a name without an ending is a OneFlow folder."""
    name = Path(path).name.lower()
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return ENDINGS[ending]
    suffix = Path(path).suffix
    if not suffix or Path(path).is_dir():
        return "oneflow"
    raise UserError(
        f"{path}: the ending {suffix!r} belongs to no form; one of {', '.join(ENDINGS)} does.{closest(suffix, ENDINGS)}"
    )


def write(
    path: str | Path,
    tree: Tree,
    form: str | None = None,
    metadata: dict[str, str] | None = None,
    force: bool = False,
    digest: Digest | None = None,
) -> None:
    """Write a structure whole or not at all, one array in memory at a time.

    tree: dict, list, tuple, numbers, texts and None with Lazy or numpy arrays; safetensors and npz take a flat dict of
    names to arrays only. form: one of `FORMS`, by the ending if not given; "libai" writes LiBai's folders,
    "oneflow-file" the single file of OneFlow after 0.9.
    metadata: text to text, kept by safetensors only. digest: fed with the file's bytes while they are written, for the
    forms in `STREAMED`, which are written from begin to end. Raises UserError if `path` exists and not `force`, if a
    form cannot hold what is given, or if the system refuses; then what was at `path` is still there.
    """
    path = Path(path)
    form = form or form_of(path)
    if form not in FORMS:
        raise UserError(f"{form!r} is not a file format; the formats are {', '.join(FORMS)}.{closest(form, FORMS)}")
    with reading(path):
        tree = _lazy(tree)
        if form == "torch":
            torch_writer.write(path, tree, force)
        elif form == "paddle":
            paddle_file.write(path, tree, force, digest)
        elif form == "oneflow":
            oneflow_writer.write(path, tree, force)
        elif form == "oneflow-file":
            oneflow_writer.write_single(path, tree, force, digest)
        elif form == "libai":
            oneflow_writer.write_libai(path, tree, force)
        elif form == "safetensors":
            safetensors_file.write(path, tree, metadata, force)
        else:
            npz_file.write(path, tree, force)


def _lazy(tree: Tree) -> Tree:
    """Return the tree with numpy's arrays and numbers as Lazy arrays and plain numbers."""
    done: dict[int, Lazy] = {}

    def walk(value: Tree) -> Tree:
        if isinstance(value, np.ndarray):
            return done.setdefault(id(value), lazy(value))
        if isinstance(value, (np.bool_, np.integer, np.floating)):
            return value.item()
        if isinstance(value, dict):
            return {key: walk(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            parts = [walk(part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        return value

    return walk(tree)
