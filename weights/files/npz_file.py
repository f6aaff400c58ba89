"""numpy's .npz: a zip archive of .npy arrays, stored or deflated; never pickles."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.core.pickle.numpy_arrays import NUMBERS, checked_shape, ready
from triport.core.source import Damaged, Source
from triport.weights.arrays import File, Lazy, Tree, arrays_only, dtype_name, raw, viewed
from triport.weights.files import zips
from triport.weights.writing import whole_file

# numpy itself evaluates the header as Python; it has but one form.
HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(([\dL, ]*)\),? ?\} *\n?", re.ASCII
)
MAX_HEADER = 1 << 12
MAX_GROWTH, SLACK = 200, 1 << 26  # all arrays together may unpack to so many times the file, and this much more


def read(path: Path) -> File:
    """Read an archive; Damaged where a member is not an array of numbers, or unpacks to more than is believable."""
    source = Source(path)
    table = zips.members(source)
    if (whole := sum(member.size for member in table.values())) > MAX_GROWTH * source.size + SLACK:
        raise Damaged(
            f"has {source.size} bytes and would unpack to {whole}, more than {MAX_GROWTH} times as many and "
            f"{SLACK >> 20} MB (a zip bomb, or arrays of zeros: save those with numpy.savez, not compressed)"
        )
    tree: dict[str, Lazy] = {}
    for member in table.values():
        if not member.name.endswith(".npy"):
            raise Damaged(f"holds {member.name!r}, which is not a .npy array")
        tree[member.name[: -len(".npy")]] = _array(source, member)
    return File("npz", path, tree, note="numpy archive")


def _array(source: Source, member: zips.Member) -> Lazy:
    """Describe one array by the head of its member."""
    head = _head(source, member)
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6] not in (1, 2, 3):
        raise Damaged(f"holds {member.name!r}, which is not a .npy array")
    begin = 10 if head[6] == 1 else 12
    length = struct.unpack_from("<H" if head[6] == 1 else "<I", head, 8)[0]
    found = HEADER.fullmatch(head[begin : begin + length].decode("latin-1"))
    if not found or length > MAX_HEADER:
        raise Damaged(f"the header of {member.name!r} does not describe an array of numbers")
    code, fortran, sizes_text = found.groups()
    if code.lstrip("<>|=") not in NUMBERS | {"V2"}:
        raise Damaged(f"the array {member.name!r} is of dtype {code!r}, not of numbers")
    dtype = np.dtype("<u2") if code.endswith("V2") else np.dtype(code)
    sizes = checked_shape(tuple(int(n) for n in re.findall(r"\d+", sizes_text)), dtype.itemsize)
    lazy = Lazy(sizes, dtype_name(dtype), lambda: load(), where=source.path)
    if begin + length + lazy.nbytes != member.size:
        raise Damaged(f"the array {member.name!r} has {member.size} bytes, its header says {dtype.name}{sizes}")

    def load() -> np.ndarray:
        flat = ready(_bytes(source, member)[begin + length :], dtype)
        return np.asarray(flat.reshape(sizes, order="F" if fortran == "True" else "C"), order="C")

    return viewed(lazy, "bfloat16") if code.endswith("V2") else lazy


def _head(source: Source, member: zips.Member) -> bytes:
    """Return the first bytes of a member."""
    if member.method == zips.STORED:
        return source.bytes(member.offset, min(member.size, MAX_HEADER + 12))
    packed = source.bytes(member.offset, min(member.packed, 1 << 16))
    return zlib.decompressobj(-15).decompress(packed, MAX_HEADER + 12)


def _bytes(source: Source, member: zips.Member) -> np.ndarray:
    """Return all bytes of a member, unpacked."""
    if member.method == zips.STORED:
        return zips.stored(source, member)
    whole, begin = np.empty(member.size, np.uint8), 0
    for piece in zips.inflate(source, member):
        whole[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
        begin += len(piece)
    return whole


def write(path: Path, tree: Tree, force: bool = False) -> None:
    """Write named arrays, not compressed; bfloat16 as two bytes without a name (V2), as numpy.save does."""
    arrays = arrays_only(tree, "npz")
    for name, array in arrays.items():
        if array.dtype.startswith("float8"):
            raise UserError(f"{path}: npz holds no arrays of {array.dtype}; convert {name!r} with --dtype first")
        zips.checked_name(f"{name}.npy".encode())
    with whole_file(path, force) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            head, values = io.BytesIO(), array.read()
            code = "<V2" if array.dtype == "bfloat16" else np.lib.format.dtype_to_descr(values.dtype)
            np.lib.format.write_array_header_1_0(head, {"descr": code, "fortran_order": False, "shape": array.shape})
            zips.add(archive, f"{name}.npy", head.getbuffer(), raw(values))
