"""Files appear whole or not at all; the machine's helpers do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import triport
from triport.core import atomic, machine
from triport.core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_takes_its_place_when_it_is_whole(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic.replaced(path, durable=durable) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic.replaced(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with atomic.replaced(path) as first, atomic.replaced(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to end


def test_names_are_not_longer_than_the_system_takes(tmp_path):
    atomic.write_text(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_the_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    done: list[str] = []
    settle, replace = atomic.settle, Path.replace

    def settled(path: Path) -> None:
        done.append("settle")
        settle(path)

    def replaced(self: Path, target: Path) -> Path:
        done.append("replace")
        return replace(self, target)

    monkeypatch.setattr(atomic, "settle", settled)
    monkeypatch.setattr(Path, "replace", replaced)
    atomic.write_text(tmp_path / "a", "text")
    assert done == ["settle", "replace", "settle"]


def test_leftovers_are_swept_by_name(tmp_path):
    for name in (".a.json.0123.part", ".b.json.0123.part", "a.json", "a.json.part"):
        (tmp_path / name).write_text("")
    atomic.sweep(tmp_path, "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.0123.part", "a.json", "a.json.part"]


def test_there_is_one_version():
    assert triport.__version__ == VERSION


def test_amd_with_avx2_is_of_both_words(monkeypatch):
    for words, wanted in (
        ({"AuthenticAMD", "avx2"}, True),
        ({"GenuineIntel", "avx2"}, False),
        ({"AuthenticAMD"}, False),
    ):
        monkeypatch.setattr(machine, "processor_words", lambda words=words: words)
        assert machine.amd_with_avx2() is wanted


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a process to its parent")
def test_a_process_ends_with_its_parent_and_at_once_where_that_has_ended():
    code = "from triport.core.machine import die_with_parent; die_with_parent(15, {}); print('lives')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for parent, wanted in ((os.getpid(), 0), (os.getpid() + 1, -signal.SIGTERM)):
        process = subprocess.run(
            [sys.executable, "-c", code.format(parent)], env=environment, stdout=subprocess.DEVNULL
        )
        assert process.returncode == wanted
