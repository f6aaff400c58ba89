"""PyTorch's zip form, written without PyTorch; `torch.load(weights_only=True)` takes it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from triport.weights.arrays import Lazy, Tree, raw
from triport.weights.files import zips
from triport.weights.files.torch_tensors import STORAGES, row_strides
from triport.weights.pickle.writer import PickleWriter, scalar, shape, whole
from triport.weights.writing import whole_file

ROOT = "archive"
# Quantized storages hold whole numbers too, but are only read: plain numbers written as such would be another tensor.
KINDS = {dtype: kind for kind, dtype in STORAGES.items() if not kind.startswith(("QInt", "QUInt"))}


def write(path: Path, tree: Tree, force: bool = False) -> None:
    """Write a nested structure; a Lazy that occurs twice is stored once. One tensor is in memory at a time."""
    keys: dict[Lazy, int] = {}
    pickle = bytearray()
    writer = PickleWriter(pickle.extend, lambda tensor: _tensor(writer, tensor, keys.setdefault(tensor, len(keys))))
    writer.value(tree)
    writer.stop()
    with whole_file(path, force) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        zips.add(archive, f"{ROOT}/data.pkl", memoryview(pickle))
        zips.add(archive, f"{ROOT}/.format_version", memoryview(b"1"))
        zips.add(archive, f"{ROOT}/.storage_alignment", memoryview(str(zips.ALIGNMENT).encode()))
        zips.add(archive, f"{ROOT}/byteorder", memoryview(b"little"))
        for tensor, key in keys.items():
            zips.add(archive, f"{ROOT}/data/{key}", raw(tensor.read()))
        zips.add(archive, f"{ROOT}/version", memoryview(b"3\n"))


def _tensor(writer: PickleWriter, tensor: Lazy, key: int) -> None:
    """Write the call that makes a tensor of its storage."""
    kind = KINDS.get(tensor.dtype)
    writer.name("torch._utils", f"_rebuild_tensor_v{2 if kind else 3}")
    writer.write(b"((" + scalar("storage"))
    if kind:
        writer.name("torch", f"{kind}Storage")
    else:
        writer.name("torch.storage", "UntypedStorage")
    writer.write(scalar(str(key)) + scalar("cpu") + whole(tensor.size if kind else tensor.nbytes) + b"tQ")
    writer.write(whole(0) + shape(tensor.shape) + shape(row_strides(tensor.shape)) + scalar(False))
    writer.name("collections", "OrderedDict")
    writer.write(b")R")
    if not kind:
        writer.name("torch", tensor.dtype)
    writer.write(b"tR")
