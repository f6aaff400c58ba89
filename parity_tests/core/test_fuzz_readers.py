"""Readers of data under mutated files: each is read, or refused in one line, and none fills the memory.

One target a reader. A target starts from a sound file, changes bytes, cuts, doubles and inserts, and reads all of it.
FOUND keeps the inputs that once did something else. TRIPORT_FUZZ=N runs N inputs a target (60).
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import simplejpeg
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from triport.core.data.datasets import BrokenImage, Split, open_dataset
from triport.core.data.sample.decode import Decoding, decode
from triport.core.errors import UserError
from triport.core.spec import DataSpec
from triport.parity_tests.fixtures.damage import INPUTS, limit, mutated
from triport.parity_tests.fixtures.sources import encoded, parquet, put, samples, shard

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def saved(kind: str, array: np.ndarray = PICTURE, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **more)
    return file.getvalue()


def tiff(array: np.ndarray, **more: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **more)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=np.stack([PICTURE] * 3), labels=np.arange(3), classes=np.array(["a", "b", "c"]))
    return file.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def cifar() -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2)


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as whole:
        for name in ("data_batch_1", "test_batch"):
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(cifar())
            whole.addfile(info, io.BytesIO(cifar()))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
        whole.writestr("cifar-10-batches-py/test_batch", cifar())
    return file.getvalue()


def mat(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=True)
    return file.getvalue()


def made(write: Callable[[Path], Any]) -> Callable[[], bytes]:
    """What a writer of files writes, as bytes."""

    def content() -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "x")
            return (Path(folder) / "x").read_bytes()

    return content


# target -> (name of the file under the folder, sound content)
LONG = [("d/" * 70 + "1.png", encoded(PICTURE))]
FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "npy": ("x.npy", lambda: npy(np.stack([PICTURE] * 3))),
    "npz": ("x.npz", npz),
    "idx": ("train-images-idx3-ubyte", lambda: idx(PICTURE.transpose(2, 0, 1))),
    "idx, labels": ("train-labels-idx1-ubyte", lambda: idx(np.arange(3, dtype=np.uint8))),
    "idx, gzip": ("train-images-idx3-ubyte.gz", lambda: gzip.compress(idx(PICTURE.transpose(2, 0, 1)), mtime=0)),
    "cifar, pickled": ("test_batch", cifar),
    "cifar, binary": ("test_batch.bin", lambda: bytes(2 * 3073)),
    "archive": ("cifar-10-python.tar.gz", archive),
    "zip": ("cifar.zip", zipped),
    "list": ("x.txt", lambda: "\ufeffa.png 0\n# c\nb.png 1\n".encode()),
    "flowers, labels": ("imagelabels.mat", lambda: mat(labels=np.array([[1, 2]], np.uint8))),
    "flowers, sets": ("setid.mat", lambda: mat(trnid=np.array([[1]]), valid=np.array([[2]]), tstid=np.array([[2]]))),
    "pets": ("annotations/test.txt", lambda: b"# x\nAbyssinian_1 1 1 1\nBirman_2 2 1 2\n"),
    "pages": ("x.tif", lambda: tiff(PICTURE.transpose(2, 0, 1), photometric="minisblack")),
    "shards": ("x.tar", made(lambda path: shard(path, samples(0, 3)))),
    "shards, GNU": (
        "x.tar",
        made(lambda path: shard(path, LONG, format=tarfile.GNU_FORMAT)),
    ),
    "parquet": ("x.parquet", made(lambda path: parquet(path, [1, 2, 3], ["a", "b", "c"]))),
}
PICTURES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG"),
    "jpeg, grey": lambda: simplejpeg.encode_jpeg(np.ascontiguousarray(PICTURE[..., :1]), colorspace="GRAY"),
    "jpeg, exif": lambda: saved("JPEG", exif=_exif()),
    "png": lambda: saved("PNG"),
    "png, 16 bits": lambda: saved("PNG", PICTURE[..., 0].astype(np.uint16) * 257),
    "gif": lambda: saved("GIF"),
    "bmp": lambda: saved("BMP"),
    "webp": lambda: saved("WEBP"),
    "ppm": lambda: saved("PPM"),
    "tiff": lambda: saved("TIFF"),
    "tiff, bands": lambda: tiff(np.stack([PICTURE[..., 0]] * 5)),
    "tiff, floats": lambda: tiff(PICTURE[..., 0].astype(np.float32)),
    "npy": lambda: npy(PICTURE.astype(np.float32)),
}


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def read_all(where: str) -> None:
    """Open every split and read every image; only the two errors that people are shown may be raised."""
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        try:
            data = open_dataset(where, split, DataSpec(name="x"), 3)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert len(data.classes) <= 1 << 20
        for index in range(min(len(data), 50)):
            assert -1 <= data.label(index) < max(len(data.classes), 1)
            try:
                image = np.asarray(data.image(index))
            except BrokenImage as error:
                assert "\n" not in str(error)
                continue
            assert image.dtype == np.uint8 and image.shape[2:] == (3,)


def prepare(folder: Path, target: str) -> Path:
    """Write a sound source around the file that is mutated; return that file's path."""
    name = FILES[target][0]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    for other, (file, content) in FILES.items():
        if other.partition(",")[0] == target.partition(",")[0] and other != target and "gzip" not in other + target:
            (folder / file).write_bytes(content())
    names = ("a.png", "b.png", "jpg/image_00001.jpg", "jpg/image_00002.jpg")
    for number, file in enumerate((*names, "images/Abyssinian_1.jpg", "images/Birman_2.jpg")):
        put(folder / file, number)
    return path


def where_of(path: Path, target: str) -> str:
    kinds = {
        "cifar, pickled": "cifar10",
        "cifar, binary": "cifar10",
        "pets": "pets",
        "archive": "archive",
        "zip": "archive",
    }
    kind = kinds.get(target, target.partition(",")[0])
    parent = path.parents[1] if target == "pets" else path.parent
    return f"{kind}:{parent if kind in ('cifar10', 'idx', 'flowers', 'pets') else path}"


@pytest.mark.parametrize("target", FILES)
def test_the_sound_file_is_read(target, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = prepare(tmp_path, target)
    path.write_bytes(FILES[target][1]())
    held_out = target in ("pets", "cifar, pickled", "cifar, binary", "archive", "zip")
    data = open_dataset(where_of(path, target), "val" if held_out else "train", DataSpec(name="x"), 3)
    assert np.asarray(data.image(0)).shape[2:] == (3,)


@pytest.mark.parametrize("target", FILES)
@settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_sources(target, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    path = prepare(folder, target)
    path.write_bytes(data.draw(mutated(FILES[target][1]())))
    with pytest.MonkeyPatch.context() as patch, limit():
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        read_all(where_of(path, target))


def decoded(data: bytes) -> None:
    for decoding in (Decoding(3), Decoding(1, exif=True), Decoding(5, value_range=(0.0, 9.0))):
        try:
            image = np.asarray(decode(data, "x", decoding))
        except BrokenImage as error:
            assert "\n" not in str(error) and str(error).startswith("x")
            continue
        assert image.dtype == np.uint8 and image.size


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_pictures(kind, data):
    content = data.draw(mutated(PICTURES[kind]()))
    with limit():
        decoded(content)


# ---------------------------------------------------------------- found
def header(text: str) -> bytes:
    """A .npy file with this for its header."""
    body = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(body)) + body


FOUND = {
    "a header of .npy that ends within brackets": header("{'descr': '|u1', 'fortran_order': False, 'shape': (6, }"),
    "a header of .npy with a shape beyond all memory": header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000, 9000000000), }"
    ),
    "a negative shape": header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4), }"),
    "values of no size": header("{'descr': '|V0', 'fortran_order': False, 'shape': (4, 4), }"),
    "a header of brackets": header("(" * 100),
    "an empty shape": header("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3), }"),
    "a web page": b"<!doctype html><html>404</html>",
    "a JPEG of a head alone": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "a TIFF of a head alone": b"II*\0\xff\xff\xff\xff",
    "a TIFF whose directory points at itself": b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0",
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_is_refused(name):
    with limit(), pytest.raises(BrokenImage):
        decode(FOUND[name], "x", Decoding(3))
    with limit():
        decoded(FOUND[name])


FOUND_FILES = [
    ("list", b"a" * 5000 + b".png 0\n"),  # longer than a name may be
    ("list", b"a.png\0 0\n"),
    ("list", b"a.png 0\nb.png 3000000000\n"),
    ("list", b"a.png " + b"9" * 5000 + b"\n"),
    ("list", b'"a.png,0\n'),
    ("idx", bytes((0, 0, 8, 3)) + b"\xff" * 12),  # claims 2^96 bytes
    ("idx, gzip", gzip.compress(bytes((0, 0, 8, 3)) + b"\0\xff\xff\xff" * 3, mtime=0)),
    ("cifar, pickled", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 2**70]}, 2)),
    ("cifar, pickled", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3 * 10**9]}, 2)),
    ("pets", b"x_1 999999999999 1 1\n"),
    ("pets", "Abyssinian_1 \u00b2 1 1\n".encode()),  # a digit that int() refuses
    ("pets", b"\xff\xfe"),
    ("flowers, labels", mat(labels=np.array([[1e300, np.nan]]))),
    ("flowers, labels", mat(labels=np.array([[1, 2**31]], np.int64))),
    ("npz", b"PK\x05\x06" + bytes(18)),
    ("shards", b"x" * 600),
    ("shards", b"\0" * 1023),
    ("pages", b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"),
    ("parquet", b"PAR1" + bytes(8) + b"\xff\xff\xff\x7f" + b"PAR1"),
    ("zip", b"PK\x03\x04" + bytes(30)),
]


@pytest.mark.parametrize(
    ("target", "content"), FOUND_FILES, ids=[f"{target}-{i}" for i, (target, _) in enumerate(FOUND_FILES)]
)
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_in_files_is_refused_or_read(target, content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = prepare(tmp_path, target)
    path.write_bytes(content)
    with limit():
        read_all(where_of(path, target))
