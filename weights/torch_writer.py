"""PyTorch's zip form, written without PyTorch; `torch.load(weights_only=True)` takes it."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from weights.arrays import Lazy, Tree, raw
from weights.pickle_writer import PickleWriter, scalar, shape, whole
from weights.torch_tensors import STORAGES
from weights.writing import whole_file

ALIGNMENT = 64  # torch.load(mmap=True) wants storages on such boundaries
ROOT = "archive"
KINDS = {dtype: kind for kind, dtype in STORAGES.items()}


def write(path: Path, tree: Tree, force: bool = False) -> None:
    """Write a nested structure; a Lazy that occurs twice is stored once. One tensor is in memory at a time."""
    keys: dict[Lazy, int] = {}
    pickle = bytearray()
    writer = PickleWriter(pickle.extend, lambda tensor: _tensor(writer, tensor, keys.setdefault(tensor, len(keys))))
    writer.value(tree)
    writer.stop()
    with whole_file(path, force) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, "data.pkl", memoryview(pickle))
        _member(archive, ".format_version", memoryview(b"1"))
        _member(archive, ".storage_alignment", memoryview(str(ALIGNMENT).encode()))
        _member(archive, "byteorder", memoryview(b"little"))
        for tensor, key in keys.items():
            _member(archive, f"data/{key}", raw(tensor.read()))
        _member(archive, "version", memoryview(b"3\n"))


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
    strides = [1] * len(tensor.shape)
    for axis in range(len(strides) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(tensor.shape[axis + 1], 1)
    writer.write(whole(0) + shape(tensor.shape) + shape(tuple(strides)) + scalar(False))
    writer.name("collections", "OrderedDict")
    writer.write(b")R")
    if not kind:
        writer.name("torch", tensor.dtype)
    writer.write(b"tR")


def _member(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """Add a member whose bytes begin on a boundary, the header's free field filled up to it."""
    member = zipfile.ZipInfo(f"{ROOT}/{name}")
    wide = len(data) >= 1 << 31
    assert archive.fp is not None
    begin = archive.fp.tell() + 30 + len(member.filename) + 4 + (20 if wide else 0)
    padding = -begin % ALIGNMENT
    member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    member.file_size = len(data)
    with archive.open(member, "w", force_zip64=wide) as file:
        for start in range(0, len(data), 1 << 26):
            file.write(data[start : start + (1 << 26)])
