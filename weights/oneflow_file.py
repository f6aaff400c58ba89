"""OneFlow checkpoints read and written without OneFlow: the folder of flow.save, LiBai's folders, and single files.

`PATH/pickled_data` is a pickle in which each tensor is only the name of a folder beside it; `PATH/tensor_<n>/meta`
is its shape and dtype in protobuf's text form, `out` its bytes. LiBai keeps several such folders (model, optimizer
or graph, lr_scheduler) in `RUN/model_<iteration>` and the newest one's name in `RUN/last_checkpoint`.
OneFlow after 0.9 writes a single pickle that holds the arrays; that is read, not written, for 0.9 cannot read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from weights.arrays import DTYPES, File, Lazy, Tree, checked_shape, converted, leaves, raw
from weights.constructors import Array, Pending, common, ready
from weights.pickle_writer import PickleWriter, scalar
from weights.pickles import load
from weights.plain import plain
from weights.source import Damaged, Source
from weights.writing import whole_folder

PICKLE, META, DATA, DONE, LAST = "pickled_data", "meta", "out", "snapshot_done", "last_checkpoint"
TYPES = {
    "kFloat": "float32", "kDouble": "float64", "kFloat16": "float16", "kInt8": "int8", "kInt32": "int32",
    "kInt64": "int64", "kUInt8": "uint8", "kBool": "bool", "kBFloat16": "bfloat16", "kChar": "int8", "kInt16": "int16",
}  # fmt: skip
WRITTEN = {"float32", "float64", "float16", "int8", "int32", "int64", "uint8", "bool"}
BFLOAT16 = 11  # OneFlow's number for the dtype
META_TEXT = re.compile(r"\s*shape\s*\{((?:\s*dim\s*:\s*\d{1,19})*)\s*\}\s*data_type\s*:\s*(\w{1,40})\s*", re.ASCII)
FOLDER = re.compile(r"[\w.\-]{1,255}", re.ASCII)
MAX_FOLDERS = 200_000


class Tensor(Pending):
    """A tensor in the pickle: a folder's name (flow.save), or its values (single file)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.lazy = folder, None  # type: tuple[Path | None, Lazy | None]

    def build(self, state: object) -> None:
        """Take {"path": folder} or {"data": array, "dtype": ...}."""
        if not isinstance(state, dict) or self.lazy is not None:
            raise Damaged("describes a tensor in an unknown form")
        where, data, dtype = state.get("path"), state.get("data"), state.get("dtype")
        if self.folder is not None and isinstance(where, str):
            if not FOLDER.fullmatch(where) or where in (".", ".."):
                raise Damaged(f"a tensor lies in {where[:80]!r}, which is no folder beside the pickle")
            self.lazy = _from_folder(self.folder / where)
        elif isinstance(data, Array):
            self.lazy = data.finish()
            if isinstance(dtype, Number) and dtype.value == BFLOAT16 and self.lazy.dtype == "float32":
                self.lazy = converted(self.lazy, "bfloat16")
        else:
            raise Damaged("describes a tensor in an unknown form")

    def finish(self) -> Lazy:
        """The array, once described."""
        if self.lazy is None:
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
        return File("oneflow", path, _pickle(Source(path), None), note="OneFlow single file (after 0.9)")
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
            raise Damaged(f"its {LAST} names {name[:80]!r}, which is no folder of it")
        folder = path / name
    parts = {part.name: _saved(part) for part in _folders(folder) if (part / PICKLE).exists()}
    if not parts:
        raise Damaged(f"holds neither {PICKLE} nor {LAST} nor folders that do: it is no OneFlow or LiBai checkpoint")
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
    held = sum(part.lazy.nbytes for part in made if part.lazy) if folder else 0
    tree = plain(value, source, source.size + held)
    if isinstance(tree, dict) and "protocol_version" in tree:
        if tree["protocol_version"] != 1 or "data" not in tree:
            raise Damaged("is a OneFlow checkpoint of an unknown version")
        return tree["data"]
    if folder:
        raise Damaged(f"has a {PICKLE} that does not say which version it is")
    return tree


def _from_folder(folder: Path) -> Lazy:
    """Describe the array of a tensor's folder by its meta; Damaged where `out` has another size."""
    source = Source(folder / META)
    found = META_TEXT.fullmatch(source.bytes(0, source.size, 4096).decode("utf-8", "replace"))
    if not found or found[2] not in TYPES:
        raise Damaged(f"{folder.name}/{META} does not say shape and dtype as OneFlow does")
    dtype = TYPES[found[2]]
    sizes = checked_shape(tuple(int(n) for n in re.findall(r"\d+", found[1])), 16)
    lazy = Lazy(
        sizes, dtype, lambda: ready(_bytes(folder / DATA, lazy.nbytes), DTYPES[dtype]).reshape(sizes), where=folder
    )
    size = (folder / DATA).stat().st_size
    if dtype == "bfloat16" and size == 4 * lazy.size:  # what OneFlow 0.9.0 writes, and cannot read
        wide = Lazy(
            sizes, "float32", lambda: ready(_bytes(folder / DATA, size), DTYPES["float32"]).reshape(sizes), where=folder
        )
        return converted(wide, dtype)
    if size != lazy.nbytes:
        raise Damaged(f"{folder.name}/{DATA} has {size} bytes, its meta says {dtype}{sizes}")
    return lazy


def _bytes(path: Path, size: int) -> Any:
    """Return the bytes of a file that must have `size`."""
    source = Source(path)
    if source.size != size:
        raise Damaged(f"has {source.size} bytes, {size} are announced")
    return source.array(0, size)


def write(path: Path, tree: Tree, force: bool = False) -> None:
    """Write a folder that flow.load of OneFlow 0.9 and later reads; one tensor is in memory at a time."""
    _check(path, tree)
    with whole_folder(path, force) as folder:
        _write(folder, tree)


def write_libai(path: Path, tree: Tree, force: bool = False) -> None:
    """Write LiBai's form: `path` as a checkpoint if named model_*, else a run with model_0000000 and last_checkpoint.

    tree: {"model": state dict, "optimizer": ..., ...}, or a bare state dict, which becomes the model.
    """
    _check(path, tree)
    bare = not isinstance(tree, dict) or any(not isinstance(part, dict) for part in tree.values())
    parts = {"model": tree} if bare else tree
    if not all(isinstance(name, str) and FOLDER.fullmatch(name) and name not in (".", "..") for name in parts):
        raise UserError(
            f"{path}: LiBai's checkpoints have parts such as model and optimizer, not {', '.join(map(str, parts))[:99]}"
        )
    with whole_folder(path, force) as folder:
        inner = folder if path.name.startswith("model_") else folder / "model_0000000"
        for name, part in parts.items():
            (inner / name).mkdir(parents=True)
            _write(inner / name, part)
        if inner != folder:
            (folder / LAST).write_text(inner.name)


def _check(path: Path, tree: Tree) -> None:
    """UserError for arrays that OneFlow cannot load."""
    for array in leaves(tree):
        if array.dtype not in WRITTEN:
            raise UserError(f"{path}: OneFlow 0.9 cannot load arrays of {array.dtype}; convert them with --dtype first")


def _write(folder: Path, tree: Tree) -> None:
    """Fill a folder."""
    numbers: dict[Lazy, int] = {}
    with open(folder / PICKLE, "wb") as file:
        writer = PickleWriter(file.write, lambda array: tensor(array), protocol=4)

        def tensor(array: Lazy) -> None:
            new = array not in numbers
            name = f"tensor_{numbers.setdefault(array, len(numbers))}"
            writer.name("oneflow", "Tensor")
            file.write(b")\x81}" + scalar("path") + scalar(name) + b"sb")
            if new:
                _tensor(folder / name, array)

        writer.value({"protocol_version": 1, "data": tree})
        writer.stop()


def _tensor(folder: Path, array: Lazy) -> None:
    """Write one tensor's folder."""
    folder.mkdir()
    dims = "".join(f"  dim: {size}\n" for size in array.shape)
    dtype = next(name for name, dtype in TYPES.items() if dtype == array.dtype)
    (folder / META).write_text(f"shape {{\n{dims}}}\ndata_type: {dtype}\n")
    with open(folder / DATA, "wb", buffering=0) as file:
        values = raw(array.read())
        while values:
            values = values[file.write(values) :]
