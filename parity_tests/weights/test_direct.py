"""Blocks written and read past the system's cache: every length, every place, and file systems that cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.source import Damaged, Stretch
from triport.weights import direct
from triport.weights.direct import ALIGNED, BLOCK, Blocks, block, pieces
from triport.weights.writing import whole_stream

LENGTHS = (0, 1, ALIGNED - 1, ALIGNED, ALIGNED + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 4 * ALIGNED + 77)


def data(length: int) -> bytes:
    return np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()


@pytest.fixture(params=["direct", "refused", "none"])
def access(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system as it is, one that has no direct access, and a system without the word for it."""
    if request.param == "refused":
        monkeypatch.setattr(direct, "DIRECT", 1 << 30)  # a flag that nobody knows is not taken
        monkeypatch.setattr(direct, "_set_direct", lambda number, wanted: not wanted)
    elif request.param == "none":
        monkeypatch.setattr(direct, "DIRECT", 0)


@pytest.mark.usefixtures("access")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("parts", [1, 7])
def test_what_is_written_in_blocks_is_in_the_file(length: int, parts: int, tmp_path: Path) -> None:
    whole, step = data(length), max(1, length // parts)
    with Blocks(tmp_path / "a") as file:
        for begin in range(0, length, step):
            assert file.write(whole[begin : begin + step]) == len(whole[begin : begin + step])
    assert (tmp_path / "a").read_bytes() == whole


@pytest.mark.usefixtures("access")
@pytest.mark.parametrize("offset", [0, 1, ALIGNED - 1, ALIGNED, BLOCK + 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_pieces_are_the_bytes_of_the_stretch(offset: int, length: int, tmp_path: Path) -> None:
    whole = data(offset + length + 100)
    (tmp_path / "a").write_bytes(whole)
    found = b"".join(bytes(piece) for piece in pieces(Stretch(tmp_path / "a", offset), length, block()))
    assert found == whole[offset : offset + length]


def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data(ALIGNED + 9))
    with pytest.raises(Damaged, match="ends too early"):
        list(pieces(Stretch(tmp_path / "a", 5), 2 * ALIGNED, block()))


def test_a_disk_with_larger_sectors_is_written_and_read_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write or read that the disk refuses as not aligned is done once more in the common way."""

    class Refusing:
        def __init__(self, file: object) -> None:
            self.file, self.refused = file, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, values: memoryview) -> int:
            self.refused += 1
            if self.refused == 1:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return int(self.file.write(values))  # type: ignore[attr-defined]

    with Blocks(tmp_path / "a") as file:
        file.direct = True
        refusing = Refusing(file._file)
        monkeypatch.setattr(file, "_file", refusing)
        file.write(data(BLOCK + 5))
        assert refusing.refused == 2 and not file.direct
        monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == data(BLOCK + 5)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Blocks) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Blocks, "_flush", full)
    with pytest.raises(UserError, match="a: cannot be written: No space left"), whole_stream(tmp_path / "a") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_where_the_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_stream(tmp_path / "a", True) as file:
        file.write(data(BLOCK + 1))
        1 / 0  # noqa: B018
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
