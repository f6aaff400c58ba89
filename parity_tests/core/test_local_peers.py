"""core.backend.local_peers: messages among the processes of one machine, in rank order; none where it is not one."""

from __future__ import annotations

import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from triport.core.backend import local_peers


class Group:
    """Threads that gather as a framework's processes do."""

    def __init__(self, world):
        self.parts, self.barrier = [b""] * world, threading.Barrier(world)

    def gather(self, rank, own):
        self.parts[rank] = own
        self.barrier.wait(20)
        every = list(self.parts)
        self.barrier.wait(20)
        return every


def everywhere(world, function):
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(function, range(world)))


def connected(world):
    group = Group(world)
    return everywhere(world, lambda rank: local_peers.connect(rank, world, lambda own: group.gather(rank, own)))


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # a socket's path has 107 bytes at most
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield short
        assert list(Path(short).glob("triport-*")) == []  # nothing is left behind


@pytest.mark.parametrize("world", [2, 3, 5])
def test_every_process_gets_all_parts_in_rank_order(world):
    peers = connected(world)
    draw = np.random.default_rng(0)
    for size in (1, 4, 1000, local_peers.LARGEST // world):
        parts = [draw.integers(0, 256, size, np.uint8).tobytes() for _ in range(world)]
        for _ in range(3):
            found = everywhere(world, lambda rank, parts=parts: peers[rank].gather(parts[rank]))
            assert all(bytes(every) == b"".join(parts) for every in found)
    for one in peers:
        one.close()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_that_ended_ends_the_others_with_a_line(gone):
    peers = connected(2)
    peers[gone].close()
    with pytest.raises(RuntimeError, match="another process of this run has ended") as raised:
        for _ in range(2):  # what is sent may still find a buffer
            peers[1 - gone].gather(b"1234")
    assert "\n" not in str(raised.value)
    peers[1 - gone].close()


def test_messages_of_different_sizes_end_all_processes():
    peers = connected(2)

    def sent(rank):
        try:
            peers[rank].gather(b"12345"[: 4 + rank])
        except RuntimeError as error:
            peers[rank].close()
            return str(error)

    first, second = everywhere(2, sent)
    assert "different sizes" in first and "has ended" in second


def test_a_process_that_sends_nothing_is_named_as_that(monkeypatch):
    monkeypatch.setattr(local_peers, "PATIENCE", 0.2)
    peers = connected(2)
    with pytest.raises(RuntimeError, match="has sent nothing for"):
        peers[0].gather(b"1234")
    for one in peers:
        one.close()


def test_processes_on_several_machines_do_without(monkeypatch):
    """A path that does not lead to the first process, as on another machine."""
    call = local_peers._call
    monkeypatch.setattr(local_peers, "_call", lambda where, *rest: call(where + b"-elsewhere", *rest))
    assert connected(3) == [None] * 3


def test_a_machine_without_such_sockets_does_without(monkeypatch):
    def refused(self, path):
        raise OSError("not here")

    kind = type("Socket", (socket.socket,), {"bind": refused})
    monkeypatch.setattr(local_peers.socket, "socket", kind)
    assert connected(2) == [None] * 2


def test_a_machine_without_a_temporary_folder_does_without(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    assert connected(2) == [None] * 2


def test_a_temporary_folder_with_a_long_name_does_without(folders, monkeypatch):
    deep = Path(folders) / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert connected(2) == [None] * 2


def test_a_stranger_without_the_word_is_sent_away(monkeypatch):
    call, strangers = local_peers._call, []

    def after_a_stranger(where, word, rank):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(where)
        stranger.sendall(bytes(len(word)) + (1).to_bytes(local_peers.HEAD, "big"))
        strangers.append(stranger)
        return call(where, word, rank)

    monkeypatch.setattr(local_peers, "_call", after_a_stranger)
    peers = connected(2)
    assert strangers[0].recv(1) == b""  # closed
    strangers[0].close()
    assert [bytes(every) for every in everywhere(2, lambda rank: peers[rank].gather(b"ab"[rank : rank + 1]))] == [
        b"ab"
    ] * 2
    for one in peers:
        one.close()
