"""OneFlow checkpoints read without OneFlow: the folder of flow.save, LiBai's folders, and single files.

`PATH/pickled_data` is a pickle in which each tensor is only the name of a folder beside it; `PATH/tensor_<n>/meta`
is its shape and dtype in protobuf's text form, `out` its bytes. LiBai keeps several such folders (model, optimizer
or graph, lr_scheduler) in `RUN/model_<iteration>` and the newest one's name in `RUN/last_checkpoint`.
OneFlow after 0.9 writes a single pickle that holds the arrays. Writing is oneflow_writer's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triport.core.pickle.numpy_arrays import Array, Pending, checked_shape, ready
from triport.core.pickle.reader import load
from triport.core.source import Damaged, Source, Stretch, parsing
from triport.weights.arrays import DTYPES, File, Inert, Lazy, Tree, converted
from triport.weights.pickle.constructors import common
from triport.weights.pickle.plain import plain

PICKLE, META, DATA, DONE, LAST = "pickled_data", "meta", "out", "snapshot_done", "last_checkpoint"
TYPES = {
    "kFloat": "float32", "kDouble": "float64", "kFloat16": "float16", "kInt8": "int8", "kInt32": "int32",
    "kInt64": "int64", "kUInt8": "uint8", "kBool": "bool", "kBFloat16": "bfloat16", "kChar": "int8", "kInt16": "int16",
}  # fmt: skip
BFLOAT16 = 11  # OneFlow's number for the dtype
BEGINS = re.compile(
    rb"(?:c|\x8c.)oneflow[.\w]*(?:\n|\x94?\x8c.)(?:Tensor|Parameter)\b", re.DOTALL
)  # a pickle of its tensors
META_TEXT = re.compile(r"shape ?\{((?: ?dim ?: ?\d{1,19})*) ?\} ?data_type ?: ?(\w{1,40})", re.ASCII)  # one space each
FOLDER = re.compile(r"[\w.\-]{1,255}", re.ASCII)
MAX_FOLDERS = 200_000


class Tensor(Pending):
    """A tensor in the pickle: a folder's name (flow.save), or its values (single file)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.lazy = folder, None  # type: tuple[Path | None, Lazy | Inert | None]

    def build(self, state: object) -> None:
        """Take {"path": folder} or {"data": array, "dtype": ...}."""
        if not isinstance(state, dict) or self.lazy is not None:
            raise Damaged("describes a tensor in an unknown form")
        where, data, dtype = state.get("path"), state.get("data"), state.get("dtype")
        if self.folder is not None and isinstance(where, str):
            if not FOLDER.fullmatch(where) or where in (".", ".."):
                raise Damaged(f"a tensor is stored in {where[:80]!r}, which is not a folder beside the pickle")
            self.lazy = _from_folder(self.folder / where)
        elif isinstance(data, Array):
            self.lazy = data.finish()
            if isinstance(self.lazy, Inert):
                raise Damaged(f"holds a tensor made of a {self.lazy.name}")
            if isinstance(dtype, Number) and dtype.value == BFLOAT16 and self.lazy.dtype == "float32":
                self.lazy = converted(self.lazy, "bfloat16")
        else:
            raise Damaged("describes a tensor in an unknown form")

    def finish(self) -> Lazy:
        """The array, once described."""
        if not isinstance(self.lazy, Lazy):
            raise Damaged("holds a tensor that is never described")
        return self.lazy


class Number(Pending):
    """oneflow.dtype: only its number."""

    value: object = None

    def build(self, state: object) -> None:
        """Take the number."""
        self.value = state if type(state) is int else None

    def finish(self) -> object:
        """The number as a value."""
        return self.value


def read(path: Path) -> File:
    """Read a folder of flow.save, a folder of LiBai (a run or one checkpoint), or a single file."""
    if not path.is_dir():
        return File("oneflow", path, _pickle(Source(path), None), note="OneFlow single file")
    if (path / PICKLE).exists():
        return File("oneflow", path, _saved(path), note="OneFlow folder (flow.save)")
    if (path / DONE).exists():
        tree = {folder.name: _from_folder(folder) for folder in _folders(path) if (folder / DATA).exists()}
        return File("oneflow", path, tree, note="OneFlow folder of the older form, one folder per array")
    folder = path
    if (path / LAST).exists():
        source = Source(path / LAST)
        name = source.bytes(0, source.size, 4096).decode("utf-8", "replace").strip()
        if not FOLDER.fullmatch(name) or not (path / name).is_dir():
            raise Damaged(f"its {LAST} names {name[:80]!r}, which is not one of its folders")
        folder = path / name
    parts = {part.name: _saved(part) for part in _folders(folder) if (part / PICKLE).exists()}
    if not parts:
        raise Damaged(f"holds neither {PICKLE} nor {LAST} nor folders that do: it is not a OneFlow or LiBai checkpoint")
    return File("oneflow", path, parts, note=f"LiBai checkpoint {folder.name} ({', '.join(parts)})")


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder, by name."""
    with os.scandir(path) as entries:
        names = sorted(entry.name for _, entry in zip(range(MAX_FOLDERS), entries, strict=False) if entry.is_dir())
    return [path / name for name in names]


def _saved(folder: Path) -> Tree:
    """Read one folder of flow.save."""
    return _pickle(Source(folder / PICKLE), folder)


def _pickle(source: Source, folder: Path | None) -> Tree:
    """Read the pickle of a folder, or a single file."""
    table: dict[str, Callable[..., Any]] = common(source)
    made: list[Tensor] = []

    def tensor() -> Tensor:
        made.append(Tensor(folder))
        return made[-1]

    for name in (
        "oneflow.Tensor",
        "oneflow.nn.Parameter",
        "oneflow._oneflow_internal.Tensor",
        "oneflow.nn.parameter.Parameter",
    ):
        table[name] = tensor
    table["oneflow._oneflow_internal.dtype"] = table["oneflow.dtype"] = Number
    value, end = load(source, table)
    if end != source.size:
        raise Damaged(f"has {source.size - end} bytes after the end of its pickle")
    beside = sum(part.lazy.nbytes for part in made if isinstance(part.lazy, Lazy)) if folder else 0
    tree = plain(value, source, source.size + beside)
    if isinstance(tree, dict) and "protocol_version" in tree:
        if tree["protocol_version"] != 1 or "data" not in tree:
            raise Damaged("is a OneFlow checkpoint of an unknown version")
        return tree["data"]
    if folder and not isinstance(tree, Inert):
        raise Damaged(f"has a {PICKLE} that does not say which version it is")
    return tree


def _from_folder(folder: Path) -> Lazy:
    """Describe the array of a tensor's folder by its meta; UserError that names the folder where that is broken."""
    with parsing(folder):
        return _described(folder)


def _described(folder: Path) -> Lazy:
    """The same; Damaged where `out` has another size than the meta says."""
    source = Source(folder / META)
    found = META_TEXT.fullmatch(" ".join(source.bytes(0, source.size, 4096).decode("utf-8", "replace").split()))
    if not found or found[2] not in TYPES:
        raise Damaged(f"its {META} does not say shape and dtype as OneFlow does")
    dtype = TYPES[found[2]]
    sizes = checked_shape(tuple(int(n) for n in re.findall(r"\d+", found[1])), 16)
    lazy = Lazy(
        sizes,
        dtype,
        lambda: ready(_bytes(folder / DATA, lazy.nbytes), DTYPES[dtype]).reshape(sizes),
        where=folder,
        stretch=Stretch(folder / DATA, 0),
    )
    size = (folder / DATA).stat().st_size
    if dtype == "bfloat16" and size == 4 * lazy.size:  # what OneFlow 0.9.0 writes, and cannot read
        wide = Lazy(
            sizes, "float32", lambda: ready(_bytes(folder / DATA, size), DTYPES["float32"]).reshape(sizes), where=folder
        )
        return converted(wide, dtype)
    if size != lazy.nbytes:
        raise Damaged(f"its {DATA} has {size} bytes, its meta says {dtype}{sizes}")
    return lazy


def _bytes(path: Path, size: int) -> Any:
    """Return the bytes of a file that must have `size`."""
    source = Source(path)
    if source.size != size:
        raise Damaged(f"has {source.size} bytes, {size} are announced")
    return source.array(0, size)
