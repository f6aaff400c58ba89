"""OneFlow checkpoints written without OneFlow: the folder of flow.save, LiBai's folders, and the single file."""

from __future__ import annotations

from pathlib import Path

from triport.core.errors import UserError
from triport.weights.arrays import Lazy, Tree, leaves, raw
from triport.weights.direct import Blocks, block
from triport.weights.files.oneflow_file import DATA, DONE, FOLDER, LAST, META, PICKLE
from triport.weights.pickle.writer import PickleWriter, ndarray, scalar, whole
from triport.weights.writing import SMALL, Digest, hashed, whole_folder, whole_stream

# dtype -> OneFlow's name and number for it, numpy's code; bfloat16 is missing because 0.9 writes it but cannot read it
WRITTEN = {
    "float32": ("kFloat", 2, "f4"), "float64": ("kDouble", 3, "f8"), "int8": ("kInt8", 4, "i1"),
    "int32": ("kInt32", 5, "i4"), "int64": ("kInt64", 6, "i8"), "uint8": ("kUInt8", 7, "u1"),
    "float16": ("kFloat16", 9, "f2"), "bool": ("kBool", 12, "b1"),
}  # fmt: skip

FILES = (PICKLE, META, DATA, DONE, LAST)


def write(path: Path, tree: Tree, force: bool = False) -> None:
    """Write a folder that flow.load of OneFlow 0.9 and later reads; one tensor is in memory at a time."""
    _check(path, tree)
    with whole_folder(path, force, FILES) as folder:
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
    with whole_folder(path, force, FILES) as folder:
        inner = folder if path.name.startswith("model_") else folder / "model_0000000"
        for name, part in parts.items():
            (inner / name).mkdir(parents=True)
            _write(inner / name, part)
        if inner != folder:
            (folder / LAST).write_text(inner.name)


def write_single(path: Path, tree: Tree, force: bool = False, digest: Digest | None = None) -> None:
    """Write the single file of OneFlow after 0.9, for its flow.load; 0.9 itself opens it only as a plain pickle.

    digest: fed with what is written.
    """
    _check(path, tree)

    def tensor(array: Lazy) -> None:
        writer.name("oneflow", "Tensor")
        put(b")\x81}(" + scalar("data"))
        ndarray(put, array.read(), WRITTEN[array.dtype][2])
        put(scalar("dtype"))
        writer.name("oneflow._oneflow_internal", "dtype")
        put(b")\x81" + whole(WRITTEN[array.dtype][1]) + b"b" + scalar("device") + scalar("cpu") + b"ub")

    with whole_stream(path, force) as file, hashed(file.write, digest) as put:
        writer = PickleWriter(put, tensor, protocol=4)
        writer.value({"protocol_version": 1, "oneflow": None, "data": tree})
        writer.stop()


def _check(path: Path, tree: Tree) -> None:
    """UserError for arrays that OneFlow cannot load."""
    for array in leaves(tree):
        if array.dtype not in WRITTEN:
            raise UserError(f"{path}: OneFlow 0.9 cannot load arrays of {array.dtype}; convert them with --dtype first")


def _write(folder: Path, tree: Tree) -> None:
    """Fill a folder."""
    numbers: dict[Lazy, int] = {}
    memory = block()
    with open(folder / PICKLE, "wb") as file:
        writer = PickleWriter(file.write, lambda array: tensor(array), protocol=4)

        def tensor(array: Lazy) -> None:
            new = array not in numbers
            name = f"tensor_{numbers.setdefault(array, len(numbers))}"
            writer.name("oneflow", "Tensor")
            file.write(b")\x81}" + scalar("path") + scalar(name) + b"sb")
            if new:
                _tensor(folder / name, array, memory)

        writer.value({"protocol_version": 1, "data": tree})
        writer.stop()


def _tensor(folder: Path, array: Lazy, memory: memoryview) -> None:
    """Write one tensor's folder; memory: of `direct.block`."""
    folder.mkdir()
    dims = "".join(f"  dim: {size}\n" for size in array.shape)
    (folder / META).write_text(f"shape {{\n{dims}}}\ndata_type: {WRITTEN[array.dtype][0]}\n")
    if array.nbytes < SMALL:
        (folder / DATA).write_bytes(raw(array.read()))
        return
    with Blocks(folder / DATA, memory) as file:
        file.write(raw(array.read()))
