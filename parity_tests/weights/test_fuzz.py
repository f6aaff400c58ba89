"""Small files of every form, changed at random: each is read, or refused with one line, in bounded time and memory.

TRIPORT_FUZZ=20000 tries that many changes of each file instead of some hundreds.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triport.core.errors import UserError
from triport.parity_tests.fixtures.weights_samples import CASES, FORMS, bounded, read_all, same, tensors
from triport.weights.files import oneflow_writer, safetensors_file
from triport.weights.files.files import read, write

COUNT = int(os.environ.get("TRIPORT_FUZZ", "200"))
many = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), database=None)

# What is put into files: every opcode with some arguments, numbers at the edges, names that mean something.
EDGES = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
NUMBERS = [struct.pack("<Q", edge)[:width] for edge in EDGES for width in (1, 2, 4, 8)]
TOKENS = [
    b"(", b".", b"0", b"1", b"2", b"N", b"\x88", b"]", b"}", b")", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"a",
    b"e", b"s", b"u", b"R", b"b", b"\x81", b"\x8f", b"\x90", b"\x91", b"\x92", b"Q", b"\x93", b"\x94", b"K\x01",
    b"K\x00", b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"j\xff\xff\xff\xff", b"M\xe9\x03", b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"G\x7f\xf8\0\0\0\0\0\0", b"X\x01\0\0\0a",
    b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x00" * 8, b"\x8c\x05state", b"C\x01b",
    b"B\x04\0\0\0abcd", b"U\x01a", b"\x95" + b"\xff" * 8, b"\x80\x02", b"ccollections\nOrderedDict\n",
    b"cargparse\nNamespace\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\ntuple\n",
    b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"coneflow\nTensor\n",
    b"ctorch\nSize\n", b"ctorch\ndevice\n", b"cpathlib\nPosixPath\n", b"cos\nsystem\n", b"c__builtin__\nset\n",
    b"ccopy_reg\n_reconstructor\n", b"X\x06\0\0\0latin1", b"X\x02\0\0\0f4", b"X\x02\0\0\0O8", b"X\x07\0\0\0storage",
    b"tensor_0", b"../../x", b"/", b"NaN", b'"', b"{", b"[", b",", b"-", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06",
    b"PK\x06\x06", b"PK\x06\x07", b"\x93NUMPY", b"dim: 9", b"\n", b"99999999999",
]  # fmt: skip


def changed(raw: bytes, chance: random.Random) -> bytes:
    """The bytes after one to five changes of kinds that break formats."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 5)):
        at, width = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 8, 16, 64))
        kind = chance.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 2:
            number = chance.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 3:
            data[at:at] = chance.choice(TOKENS)
        elif kind == 4:
            token = chance.choice(TOKENS)
            data[at : at + len(token)] = token
        elif kind == 5:
            del data[at : at + width]
        elif kind == 6:
            begin = chance.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + width]
        elif chance.random() < 0.2:
            del data[at:]
    return bytes(data)


def outcome(path: Path) -> str:
    """Read everything; "read", or the line of the refusal. Anything else that happens is a failure."""
    try:
        read_all(read(path).tree)
    except UserError as error:
        line = str(error)
        assert line.startswith(str(path)) and "\n" not in line and len(line) < 1000, line
        assert "MemoryError" not in line, line
        return line
    return "read"


@pytest.fixture(scope="module", autouse=True)
def limits() -> Iterator[None]:
    """No test of this file may take more than a further GB."""
    with bounded(seconds=max(600, COUNT)):
        yield


# ---------------------------------------------------------------- the files
def zipped(pickled: bytes) -> bytes:
    """PyTorch's zip form around a changed pickle, so that the checksum does not hide what comes after it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(CASES / "torch" / "zip.pth.tar") as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return stream.getvalue()


def real(name: str) -> bytes:
    return (CASES / name).read_bytes()


@cache
def written(form: str) -> bytes:
    """A small file that weights writes."""
    stream = Path(os.environ.get("TMPDIR", "/tmp"), f"triport-fuzz-{os.getpid()}-{FORMS[form]}")
    write(stream, tensors("float32", "int8"), form)
    raw = stream.read_bytes()
    stream.unlink()
    return raw


def deflated() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.arange(100.0), b=np.zeros((3, 4), np.int8))
    return stream.getvalue()


def same_bytes(raw: bytes) -> bytes:
    return raw


def header_of_safetensors() -> bytes:
    raw = written("safetensors")
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]


def around_header(text: bytes) -> bytes:
    """A file of safetensors around a changed header, so that its length does not hide what comes after it."""
    raw = written("safetensors")
    return struct.pack("<Q", len(text)) + text + raw[8 + struct.unpack("<Q", raw[:8])[0] :]


def pickle_of_zip() -> bytes:
    with zipfile.ZipFile(CASES / "torch" / "zip.pth.tar") as archive:
        return archive.read("zip.pth/data.pkl" if "zip.pth/data.pkl" in archive.namelist() else archive.namelist()[0])


# name of the file -> what is changed, and how the file is made of it
SAMPLES: dict[str, tuple[Callable[[], bytes], Callable[[bytes], bytes]]] = {
    "whole.pth.tar": (lambda: real("torch/zip.pth.tar"), same_bytes),
    "pickle.pth": (pickle_of_zip, zipped),
    "legacy.pth.tar": (lambda: real("torch/legacy.pth.tar"), same_bytes),
    "shared.pth": (lambda: real("torch/shared.pth"), same_bytes),
    "a2.pdparams": (lambda: real("paddle/a2.pdparams"), same_bytes),
    "a4.pdparams": (lambda: real("paddle/a4.pdparams"), same_bytes),
    "b4.pd": (lambda: real("paddle/b4.pd"), same_bytes),
    "plain.oneflow.pkl": (lambda: real("oneflow/plain.pkl"), same_bytes),
    "whole.safetensors": (lambda: written("safetensors"), same_bytes),
    "header.safetensors": (header_of_safetensors, around_header),
    "stored.npz": (lambda: written("npz"), same_bytes),
    "deflated.npz": (deflated, same_bytes),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_changed_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    get, make = SAMPLES[name]
    raw, path, seen = get(), tmp_path / name, set()
    path.write_bytes(make(raw))
    assert outcome(path) == "read"

    @many
    @given(st.integers(0, 2**63))
    def change(seed: int) -> None:
        path.write_bytes(make(changed(raw, random.Random(seed))))
        seen.add(outcome(path))

    change()
    assert len(seen) > 3  # the changes reach more than one check


@pytest.mark.parametrize("part", ["pickled_data", "tensor_0/meta", "tensor_0/out"])
def test_a_changed_folder_of_oneflow_is_read_or_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    oneflow_writer.write(path, {"model": tensors("float32"), "epoch": 3})
    raw = (path / part).read_bytes()

    @many
    @given(st.integers(0, 2**63))
    def change(seed: int) -> None:
        (path / part).write_bytes(changed(raw, random.Random(seed)))
        try:
            read_all(read(path).tree)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error) and "MemoryError" not in str(error)

    change()


def test_a_changed_index_is_read_or_refused(tmp_path: Path) -> None:
    index = tmp_path / "x.safetensors.index.json"
    safetensors_file.write(index, tensors("float32"), shard=100)
    raw = index.read_bytes()

    @many
    @given(st.integers(0, 2**63))
    def change(seed: int) -> None:
        index.write_bytes(changed(raw, random.Random(seed)))
        try:
            read_all(read(index).tree)
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)

    change()


# ---------------------------------------------------------------- pickles and headers made of parts
@pytest.mark.parametrize("form", ["x.pd", "x.pth", "x.oneflow.pkl"])
def test_any_row_of_opcodes_is_read_or_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / form

    @many
    @given(st.lists(st.sampled_from(TOKENS), max_size=40))
    @example([b"(", b"q\x00", b"0"])
    @example([b"}", b"X\x01\0\0\0a", b"X\x01\0\0\0a", b"s", b"cbuiltins\ntuple\n", b"2", b"\x86", b"R"])
    def row(parts: list[bytes]) -> None:
        pickled = b"\x80\x02" + b"".join(parts) + b"."
        path.write_bytes(zipped(pickled) if form == "x.pth" else pickled)
        outcome(path)

    row()


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 24, 2**20, 2**31, 2**40, 2**62, 2**63, -1]), max_size=4)
VALUES = st.one_of(
    SIZES, st.none(), st.text(max_size=3), st.floats(), st.booleans(), st.sampled_from(["F32", "BOOL", "F64", "X"])
)


@many
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), VALUES),
        max_size=3,
    )
)
def test_any_header_of_safetensors_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    outcome(path)


@many
@given(SIZES, SIZES, st.integers(-1, 30), st.sampled_from([0, 1, 6, 24, 2**40]))
def test_any_view_of_a_storage_stays_inside_it(
    tmp_path_factory: pytest.TempPathFactory, size: list[int], stride: list[int], offset: int, count: int
) -> None:
    from triport.parity_tests.weights.test_hostile import storage, tensor, torch_zip

    path = tmp_path_factory.getbasetemp() / "view.pth"
    torch_zip(
        path,
        tensor(offset, tuple(size), tuple(stride), storage(count=count)),
        {"x/data/0": np.arange(24, dtype="<f4").tobytes()},
    )
    if outcome(path) == "read":
        got = read(path).tree.read()
        size = size if got.size else [0]
        stride = stride if got.size else [0]
        inside = [
            offset + sum(at * step for at, step in zip(index, stride, strict=True)) for index in np.ndindex(*size)
        ]
        assert got.reshape(-1).tolist() == inside


# ---------------------------------------------------------------- and what is not damaged is read as it is
KEYS = st.one_of(st.text(st.characters(categories=["L", "N", "P"]), max_size=9), st.integers(-(2**59), 2**59))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.text(max_size=20)),
    lambda part: st.one_of(st.lists(part), st.lists(part).map(tuple), st.dictionaries(KEYS, part)),
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_pickles_is_read_as_it_was(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pd"

    @many
    @given(PLAIN)
    def trip(value: Any) -> None:
        path.write_bytes(pickle.dumps(value, protocol))
        same(read(path).tree, value)
        write(path, value, force=True)
        same(read(path).tree, value)

    trip()
