"""What people hold in the place of a file of weights: each is one line that says what it is and what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from triport import weights
from triport.core.errors import UserError
from triport.parity_tests.fixtures.foreign import values_of
from triport.parity_tests.tool import small
from triport.weights.commands.command import main
from triport.weights.commands.inspect import inspect
from triport.weights.files import others
from triport.weights.files.files import read, write

ARRAYS = values_of(small.MODELS["finetune-token"])
ENCODER = {name: array.read() for name, array in ARRAYS.items() if not name.startswith("head.")}

CONTENTS: dict[str, tuple[bytes, str]] = {
    "lower.pth": (b"<!doctype html><html><body>404</body></html>", "is a web page"),
    "late.pth": (b"\n\r\n  \n<HTML lang=en>", "is a web page"),
    "marked.bin": (b"\xef\xbb\xbf<!DOCTYPE HTML>", "is a web page"),
    "head.bin": (b"<head><title>Sign in</title>", "is a web page"),
    "s3.pth": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>',
        r"answer of a server \(AccessDenied: Access Denied\)",
    ),
    "bare.pth": (b"\n<Error><Code>NoSuchKey</Code></Error>", r"answer of a server \(NoSuchKey\)"),
    "json.pth": (b'{"error": "Repository not found"}', r"is JSON \(Repository not found\)"),
    "nested.pth": (b' {"error": {"message": "rate\\nlimit\x1b[2J", "code": 429}}', "is JSON, not"),
    "deep.pth": (b'{"error":' * 400, "is JSON, not"),
    "object.npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }", "numpy.savez"),
    "array.npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "under its name"),
    "x.xz": (b"\xfd7zXZ\x00\x00", "unxz"),
    "x.zst": (b"\x28\xb5\x2f\xfd\x04", "unzstd"),
    "x.7z": (b"7z\xbc\xaf\x27\x1c\x00", "7z x"),
    "x.rar": (b"Rar!\x1a\x07\x01\x00", "unrar x"),
    "x.lz4": (b"\x04\x22\x4d\x18", "unlz4"),
    "model.pdmodel": (b"\x08\x00\x12\x05block", "paddle.jit.load"),
    "model.pdiparams": (bytes(40), "paddle.jit.load"),
}  # fmt: skip


def line(path: Path) -> str:
    """The one line with which a path is refused, by the reader and by the command."""
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and text.isprintable() and len(text) < 400, text
    assert main(["inspect", str(path)]) == 2
    return text


@pytest.mark.parametrize("name", CONTENTS)
def test_each_kind_is_named_with_its_remedy(name: str, tmp_path: Path) -> None:
    data, wanted = CONTENTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=wanted):
        read(tmp_path / name)
    line(tmp_path / name)


def test_a_program_of_torch_export_is_named(tmp_path: Path) -> None:
    for name, member in (("a.pt2", "a/models/model.json"), ("b.pth", "b/archive_format"), ("c.pt2", "version")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "pt2")
        assert "torch.export.load" in line(tmp_path / name)


@pytest.mark.parametrize("where", ["https://x.org/a.pth", "s3://b/c", "hf://a/b", "hf-hub:/a/b", "HTTP://x.org/a.pth"])
def test_nothing_is_downloaded(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert others.address(where) and not others.address("/data/https/a.pth")
    assert main(["inspect", where]) == 2
    error = capsys.readouterr().err
    assert "nothing is downloaded here" in error and error.count("\n") == 1


# ---------------------------------------------------------------- folders
def test_a_folder_with_one_file_of_weights_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "best.pth", {"model": ENCODER})
    (tmp_path / "run" / "log.txt").write_text("x")
    assert weights.load_weights(tmp_path / "run").keys() == ENCODER.keys()
    write(tmp_path / "run" / "last.pth", {"model": ENCODER})
    assert r"holds 2 files of weights (best.pth, last.pth): name the one to read" in line(tmp_path / "run")


def test_folders_of_other_frameworks_are_named(tmp_path: Path) -> None:
    kinds = {
        "dcp": ([".metadata", "__0_0.distcp"], "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"),
        "zero": (["zero_to_fp32.py", "latest"], "zero_to_fp32.py"),
        "inference": (["model.pdmodel", "model.pdiparams"], "paddle.jit.load"),
        "empty": ([], "holds no checkpoint of OneFlow or LiBai and no file of weights"),
    }
    for name, (inside, wanted) in kinds.items():
        (tmp_path / name).mkdir()
        for file in inside:
            (tmp_path / name / file).write_bytes(b"x")
        assert wanted in line(tmp_path / name)


def test_an_unpacked_file_is_packed_again_by_what_the_message_says(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"model": ENCODER})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        archive.extractall(tmp_path / "out")
    root = next((tmp_path / "out").iterdir())
    assert f"cd {tmp_path / 'out'} && zip -0 -r file.pth {root.name}" in line(tmp_path / "out")
    assert "zip -0 -r" in line(root)
    with zipfile.ZipFile(tmp_path / "file.pth", "w") as archive:  # as zip does it, folders as members of their own
        for path in (root, *sorted(root.rglob("*"))):
            archive.write(path, path.relative_to(tmp_path / "out"))
    assert weights.load_weights(tmp_path / "file.pth").keys() == ENCODER.keys()


# ---------------------------------------------------------------- pytorch_model.bin
def hub(folder: Path, shards: int) -> Path:
    """A folder of transformers before safetensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    if shards == 1:
        write(folder / "pytorch_model.bin", ENCODER)
        return folder
    places: dict[str, str] = {}
    for k in range(shards):
        name = f"pytorch_model-{k + 1:05}-of-{shards:05}.bin"
        part = dict(list(ENCODER.items())[k::shards])
        write(folder / name, part)
        places |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_folders_of_transformers_with_bin_files_are_read(shards: int, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", shards)
    write(folder / "training_args.bin", {"lr": 1})
    paths = [folder, folder / ("pytorch_model.bin" if shards == 1 else "pytorch_model.bin.index.json")]
    for path in paths:
        found = weights.load_weights(path)
        assert found.keys() == ENCODER.keys()
        assert all(np.array_equal(found[name], ENCODER[name]) for name in found)
    assert main(["convert", str(folder), str(tmp_path / "y.safetensors")]) == 0
    assert inspect(tmp_path / "y.safetensors").provenance["source_sha256"]


def test_a_shard_alone_or_a_broken_index_is_refused(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", 2)
    shard, index = folder / "pytorch_model-00001-of-00002.bin", folder / "pytorch_model.bin.index.json"
    with pytest.raises(UserError, match="one of 2 shards"):
        weights.load_weights(shard)
    good = json.loads(index.read_text())
    for change, wanted in (
        ({"cls_token": "../x.bin"}, "something else than .bin files beside it"),
        ({"extra": shard.name}, "names 'extra'"),
        ({"cls_token": "pytorch_model-00002-of-00002.bin"}, "does not say that 'cls_token'"),
    ):
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **change}}))
        with pytest.raises(UserError, match=wanted):
            read(folder)
    index.write_text(json.dumps(good))
    shard.unlink()
    assert shard.name in line(folder)


# ---------------------------------------------------------------- memory
def test_an_archive_of_zeros_costs_what_its_size_allows(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 25))  # 256 MB in 0.26 MB
    assert "would unpack to 268435584, more than 200 times as many and 64 MB" in line(tmp_path / "x.npz")


def test_statistics_taken_in_pieces_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000).astype(np.float32)
    values[[3, 400, 999]] = np.nan, np.inf, -np.inf
    write(tmp_path / "x.npz", {**ENCODER, "x": values})
    monkeypatch.setattr("triport.weights.commands.inspect.PIECE", 64)
    row = next(row for row in inspect(tmp_path / "x.npz", tensors=True).rows if row.name == "x")
    finite = values[np.isfinite(values)].astype(np.float64)
    assert row.nonfinite == 3 and (row.least, row.greatest) == (finite.min(), finite.max())
    assert row.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert row.deviation == pytest.approx(finite.std(), rel=1e-12)
