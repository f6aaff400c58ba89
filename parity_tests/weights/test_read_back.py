"""What is written is read ahead and held against what reads back: nothing read too often, every wrong byte noticed."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.source import Source
from triport.weights import writing
from triport.weights.arrays import Lazy
from triport.weights.commands import read_back
from triport.weights.commands.read_back import Ahead
from triport.weights.files import files
from triport.weights.files.torch_tensors import Storage, tensor
from triport.weights.model import provenance

TARGETS = ("a.pth", "a.pd", "a.pdparams", "a.safetensors", "a.npz", "a", "a.oneflow.pkl")


def counted(count: dict[str, int], sizes: tuple[int, ...] = (5, 70_000, 3, 40_000, 90_000, 2)) -> dict[str, Lazy]:
    """Arrays of many sizes that count how often they are read."""

    def one(name: str, size: int) -> Lazy:
        values = np.random.default_rng(size).standard_normal(size, dtype=np.float32)

        def load() -> np.ndarray:
            count[name] = count.get(name, 0) + 1
            return values

        return Lazy((size,), "float32", load)

    return {f"n{index}": one(f"n{index}", size) for index, size in enumerate(sizes)}


@pytest.mark.parametrize("name", TARGETS)
def test_every_array_is_read_once_and_compared(name: str, tmp_path: Path) -> None:
    count: dict[str, int] = {}
    tree = counted(count)
    with Ahead(tree) as ahead:
        files.write(tmp_path / name, ahead.tree)
    found = files.read(tmp_path / name).tree
    ahead.compare(found, tmp_path / name)
    assert count == dict.fromkeys(tree, 1)
    assert all(np.array_equal(found[key].read(), array.read()) for key, array in tree.items())


@pytest.mark.parametrize("name", ["n0", "n1", "n4", "n5"])
@pytest.mark.parametrize("where", [0, -1])
def test_one_flipped_bit_is_noticed(name: str, where: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with Ahead(counted({})) as ahead:
        files.write(path, ahead.tree)
    values = files.read(path).tree[name].read().tobytes()
    whole = bytearray(path.read_bytes())
    begin = whole.index(values)
    whole[begin + (len(values) - 1 if where else 0)] ^= 16
    path.write_bytes(whole)
    with pytest.raises(UserError, match=f"'/{name}' reads back with other bits"):
        ahead.compare(files.read(path).tree, path)


def test_arrays_that_were_not_meant_or_not_written_are_noticed(tmp_path: Path) -> None:
    path, tree = tmp_path / "a.safetensors", counted({})
    with Ahead(tree) as ahead:
        files.write(path, ahead.tree)
    found = files.read(path).tree
    with pytest.raises(UserError, match="which was not meant"):
        ahead.compare({**found, "more": found["n0"]}, path)
    with pytest.raises(UserError, match="without '/n2'"):
        ahead.compare({key: array for key, array in found.items() if key != "n2"}, path)


def test_large_arrays_are_not_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "SMALL", 1)
    monkeypatch.setattr(read_back, "LARGE", 1000)
    count: dict[str, int] = {}
    with Ahead(counted(count, (500, 10, 20, 500))) as ahead:
        ahead.tree["n0"].read()
        assert count == {"n0": 1}
        ahead.tree["n1"].read()
        ahead.tree["n2"].read()  # read already, or on its way
        assert count == {"n0": 1, "n1": 1, "n2": 1}


@pytest.mark.parametrize("name", ["a.pd", "a.pdparams", "a.oneflow.pkl"])
def test_the_digest_of_a_streamed_file_is_that_of_its_bytes(name: str, tmp_path: Path) -> None:
    digest, tree = hashlib.sha256(), counted({})
    more = {"state": tree, "epoch": 3} if name == "a.pd" else tree
    files.write(tmp_path / name, more, digest=digest)
    assert digest.hexdigest() == provenance.digest(tmp_path / name)
    assert digest.hexdigest() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_the_checksum_of_a_zip_is_that_of_whole_arrays_only(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    files.write(tmp_path / "a.pth", {"whole": values})
    assert files.read(tmp_path / "a.pth").tree["whole"].crc == zlib.crc32(values.tobytes())
    (tmp_path / "raw").write_bytes(values.tobytes())
    storage = Storage(Source(tmp_path / "raw"), "0", "float32", 24, "<")
    storage.place(0, 96, zlib.crc32(values.tobytes()))
    tree = {
        "whole": tensor(storage, 0, (4, 6), (6, 1)),
        "flat": tensor(storage, 0, (24,), (1,)),
        "part": tensor(storage, 6, (3, 6), (6, 1)),
        "turned": tensor(storage, 0, (6, 4), (1, 6)),
    }
    assert [name for name, array in tree.items() if array.crc] == ["whole", "flat"]
    for target in ("b.pth", "b.pd", "b"):
        with Ahead(tree) as ahead:
            files.write(tmp_path / target, ahead.tree)
        ahead.compare(files.read(tmp_path / target).tree, tmp_path / target)


def test_a_disk_that_fails_while_a_file_is_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triport.weights import writing

    def refuse(number: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(writing, "OFTEN", 0.0)
    monkeypatch.setattr(writing.os, "fdatasync", refuse)
    with pytest.raises(UserError, match="Input/output error"), writing.whole_file(tmp_path / "a") as file:
        file.write(b"x")
        for _ in range(100):
            if not (thread := next((t for t in writing.threading.enumerate() if "settle" in t.name), None)):
                break
            thread.join(0.1)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- mapped arrays and known checksums
INDEX = "a.safetensors.index.json"


def written(folder: Path, name: str = "source.safetensors") -> Path:
    draw = np.random.default_rng(0)
    tree = {f"n{k}": draw.standard_normal(size, dtype=np.float32) for k, size in enumerate((70_000, 3, 90_000, 33_333))}
    files.write(folder / name, tree)
    return folder / name


@pytest.mark.parametrize("source", ["source.safetensors", "source.pth"])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("array", ["n0", "n1", "n3"])
def test_a_wrong_byte_of_a_mapped_array_is_noticed(source: str, name: str, array: str, tmp_path: Path) -> None:
    """Mapped values are compared with the source, byte by byte."""
    tree = files.read(written(tmp_path, source)).tree
    with Ahead(tree) as ahead:
        files.write(tmp_path / name, ahead.tree)
        ahead.compare(files.read(tmp_path / name).tree, tmp_path / name)
        found = files.read(tmp_path / name).tree
        wrong = np.array(found[array].read())
        wrong.view(np.uint8)[-1] ^= 1
        found[array] = Lazy(wrong.shape, "float32", lambda: wrong)
        with pytest.raises(UserError, match=f"'/{array}' reads back with other bits"):
            ahead.compare(found, tmp_path / name)


def test_bytes_are_compared_to_the_last() -> None:
    for length in (0, 1, 7, 8, 9, 8 * read_back.PIECE, 8 * read_back.PIECE + 8, 3 * read_back.PIECE + 1):
        one = bytearray(np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes())
        assert read_back.same_bytes(memoryview(one), memoryview(bytes(one)))
        for place in {0, length // 2, length - 1} if length else ():
            other = bytearray(one)
            other[place] ^= 128
            assert not read_back.same_bytes(memoryview(one), memoryview(other)), (length, place)
        assert not read_back.same_bytes(memoryview(one), memoryview(one + b"x"))


@pytest.mark.parametrize("lengths", [(0, 0), (1, 0), (0, 5), (3, 7), (70_000, 65_536), (1, 1 << 20)])
def test_the_checksum_of_two_stretches_follows_from_that_of_each(lengths: tuple[int, int]) -> None:
    one, other = (np.random.default_rng(n).integers(0, 256, n, np.uint8).tobytes() for n in lengths)
    assert provenance.joined(zlib.crc32(one), zlib.crc32(other), len(other)) == zlib.crc32(one + other)


@pytest.mark.parametrize("name", ["a.pd", "a.pdparams", "a.oneflow.pkl"])
def test_known_checksums_make_the_one_of_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ahead(counted({}), checksums=True) as ahead:
        own = provenance.Checksum(ahead.checksum_at)
        files.write(tmp_path / name, {"s": ahead.tree} if name == "a.pd" else ahead.tree, digest=own)
    assert own.hexdigest() == f"{zlib.crc32((tmp_path / name).read_bytes()):08x}"
    large = [length for _, length in ahead._places if length >= provenance.SMALL]
    assert len(large) == 3  # that were not computed twice


@pytest.mark.parametrize("name", ["a", "model_a"])
def test_a_folder_is_not_read_again_for_its_checksum(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = files.read(written(tmp_path)).tree
    with Ahead(tree, checksums=True) as ahead:
        files.write(tmp_path / name, ahead.tree, "libai" if name == "model_a" else None)
        found = files.read(tmp_path / name).tree
        found = found["model"] if name == "model_a" else found
        ahead.compare(found, tmp_path / name)
    known = ahead.checksums_of(found)
    assert len(known) == len(tree)
    wanted = provenance.checksum(tmp_path / name)
    fed = provenance._fed
    read: list[str] = []

    def noted(path: Path, whole: Any) -> str:
        read.append(path.name)
        return fed(path, whole)

    monkeypatch.setattr(provenance, "_fed", noted)
    assert provenance.checksum(tmp_path / name, known) == wanted
    assert "out" not in read and "meta" in read


# ---------------------------------------------------------------- the whole conversion
CONVERTED = ["a.safetensors", "a.pd", "a.pdparams", "a.oneflow.pkl", "a.pth", "a.npz", "run", INDEX]


@pytest.mark.parametrize("target", CONVERTED)
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "blocks.0.norm1.bias", "cls_token"])
def test_convert_notices_a_byte_that_changed_after_it_was_written(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte of an array is flipped in the target between writing and reading back: an error; what was there stays."""
    from triport.weights.commands import deliver
    from triport.weights.commands.convert import convert

    arrays = vit()
    source = tmp_path / "source.safetensors"
    files.write(source, arrays)
    values = arrays[name].T if arrays[name].ndim == 2 and target.startswith("a.pd") else arrays[name]
    written = files.write

    def harmed(place: Path, *rest: Any, **more: Any) -> None:
        written(place, *rest, **more)
        shards = place.name == INDEX
        inside = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else [place]
        inside = [p for p in place.parent.iterdir() if p.suffix == ".safetensors"] if shards else inside
        for path in inside:
            whole = bytearray(path.read_bytes())
            at = whole.find(np.ascontiguousarray(values).tobytes())
            if at >= 0:
                whole[at + values.nbytes // 2] ^= 1
                path.write_bytes(whole)
                return
        raise AssertionError("the array is not in the target")

    wrong = pytest.raises(UserError, match=r"reads back with other bits|does not match its checksum")
    with monkeypatch.context() as patch, wrong:
        patch.setattr(deliver.files, "write", harmed)
        convert(source, tmp_path / target, heads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
    convert(source, tmp_path / target, heads=2)
    before = contents(tmp_path)
    with monkeypatch.context() as patch, wrong:
        patch.setattr(deliver.files, "write", harmed)
        convert(source, tmp_path / target, heads=2, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["last_checkpoint", "model", "model_0000000"])
def test_a_folder_may_have_the_name_of_one_of_its_parts(name: str, tmp_path: Path) -> None:
    from triport.weights.commands.convert import convert

    files.write(tmp_path / "source.safetensors", vit())
    convert(tmp_path / "source.safetensors", tmp_path / name, heads=2)
    convert(tmp_path / name, tmp_path / "back.safetensors", to="triport")
    back = files.read(tmp_path / "back.safetensors").tree
    assert all(np.array_equal(back[key].read(), array) for key, array in vit().items())


def test_where_shards_are_replaced_in_part_no_older_index_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index and shards of two different conversions would read as one file."""
    index, replace = tmp_path / INDEX, Path.replace
    files.write(index, {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)})

    def cut(self: Path, target: Path) -> Path:
        if Path(target) == index:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt), writing.whole_files(index, True) as place:
        place.write_text("{}")
        place.with_name("a-00001-of-00001.safetensors").write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a-00001-of-00001.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    """All files beneath a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def vit() -> dict[str, np.ndarray]:
    """A ViT of one block, its larger matrices of more bytes than one write."""
    draw = np.random.default_rng(1)
    width, hidden = 192, 3072
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width), "patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes |= {"blocks.0.attn.qkv.weight": (3 * width, width), "blocks.0.attn.proj.weight": (width, width)}
    shapes |= {"blocks.0.mlp.fc1.weight": (hidden, width), "blocks.0.mlp.fc2.weight": (width, hidden)}
    norms = ("blocks.0.norm1", "blocks.0.norm2", "norm")
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    shapes |= {"blocks.0.attn.qkv.bias": (3 * width,), "blocks.0.attn.proj.bias": (width,)}
    shapes |= {"blocks.0.mlp.fc1.bias": (hidden,), "blocks.0.mlp.fc2.bias": (width,), "patch_embed.proj.bias": (width,)}
    return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def test_shards_that_cannot_all_be_put_in_place_leave_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triport.weights.commands.convert import convert

    source, target = tmp_path / "source.safetensors", tmp_path / INDEX
    files.write(source, vit())
    convert(source, target, heads=2)
    replace = Path.replace

    def full(self: Path, other: Path) -> Path:
        if Path(other) == target:
            raise OSError(28, "No space left on device")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"cannot be put in place: No space left on device; .*: write it again"):
        convert(source, target, heads=2, force=True)
    assert not target.exists()


@pytest.mark.parametrize("target", ["a.pd", "a.pth", "run"])
def test_without_room_for_the_note_beside_it_nothing_changes(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triport.weights.commands.convert import convert

    source = tmp_path / "source.safetensors"
    files.write(source, vit())
    write = provenance.write_note

    def full(path: Path, *rest: Any) -> None:
        write(path, *rest)
        raise OSError(28, "No space left on device")

    for force in (False, True):
        before = contents(tmp_path)
        with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device; what was there"):
            patch.setattr(provenance, "write_note", full)
            convert(source, tmp_path / target, heads=2, force=force)
        assert contents(tmp_path) == before
        convert(source, tmp_path / target, heads=2, force=force)
