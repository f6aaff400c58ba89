"""Small messages among the processes of one machine: over Unix sockets, with no thread of a framework in between.

A collective of gloo hands each message from thread to thread, five times; that is 0.8 ms here where both cores compute,
and a ResNet-50's batch norms send 170 in a step. Every process but the first has a socket to the first, which puts the
parts together in rank order.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

LARGEST = 1 << 17  # bytes of a message; larger ones are a framework's
PATIENCE = 2 * 3600.0  # seconds: a process may evaluate, save or read data for long while the others wait
ARRIVAL = 60.0  # seconds in which all have to connect
NAME = 256  # bytes in which the first one tells where it waits, and a word by which it knows the others

Gather = Callable[[bytes], list[bytes]]  # bytes of this process -> those of all, in rank order; all bring as many


class LocalPeers:
    """This process's sockets to its peers."""

    def __init__(self, rank: int, world: int, links: list[socket.socket]) -> None:
        self.rank, self.world, self.links = rank, world, links

    def gather(self, own: bytes | memoryview) -> bytearray:
        """The bytes of all processes in rank order; each brings as many."""
        size = len(own)
        every = bytearray(size * self.world)
        place = memoryview(every)
        try:
            if self.rank == 0:
                place[:size] = own
                for i, link in enumerate(self.links, 1):
                    _fill(link, place[i * size : (i + 1) * size])
                for link in self.links:
                    link.sendall(every)
            else:
                self.links[0].sendall(own)
                _fill(self.links[0], place)
        except OSError as error:
            raise RuntimeError(f"another process of this run has ended ({error})") from error
        return every

    def close(self) -> None:
        """End all connections."""
        for link in self.links:
            link.close()


def connect(rank: int, world: int, gather: Gather) -> LocalPeers | None:
    """Connect the processes of a group that is on one machine; None, on all of them, where it is not.

    gather: a framework's own, by which they find each other.
    """
    folder = tempfile.mkdtemp(prefix="triport-") if rank == 0 else ""  # of this user alone
    try:
        with contextlib.ExitStack() as stack:
            server, told = None, b""
            if rank == 0:
                server = stack.enter_context(socket.socket(socket.AF_UNIX))
                told = _listen(server, Path(folder) / "peers")
            where, _, word = gather(told.ljust(NAME, b"\0"))[0].rstrip(b"\0").partition(b"\n")
            links = _arrive(server, world, word) if server and word else _call(where, word, rank) if word else []
            well = len(links) == (world - 1 if rank == 0 else 1)
            if all(answer == b"\1" for answer in gather(b"\1" if well else b"\0")):
                return LocalPeers(rank, world, links)
            for link in links:
                link.close()
            return None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _listen(server: socket.socket, path: Path) -> bytes:
    """Where the others find this process, and the word; nothing where there are no such sockets."""
    try:
        server.bind(str(path))
        server.listen(128)
    except OSError:
        return b""
    told = os.fsencode(path) + b"\n" + secrets.token_hex(16).encode()
    return told if len(told) <= NAME else b""


def _arrive(server: socket.socket, world: int, word: bytes) -> list[socket.socket]:
    """The connections of the ranks 1, 2, ...; fewer where some did not come."""
    found: dict[int, socket.socket] = {}
    server.settimeout(ARRIVAL)
    with contextlib.suppress(OSError):
        while len(found) < world - 1:
            link, _ = server.accept()
            link.settimeout(ARRIVAL)
            said = bytearray(len(word) + 4)
            _fill(link, memoryview(said))
            if said[:-4] == word:
                link.settimeout(PATIENCE)
                found[int.from_bytes(said[-4:], "big")] = link
            else:
                link.close()
    return [found[i] for i in sorted(found)]


def _call(where: bytes, word: bytes, rank: int) -> list[socket.socket]:
    """The connection to the first process; none where it is on another machine."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(ARRIVAL)
        link.connect(where)
        link.sendall(word + rank.to_bytes(4, "big"))
    except OSError:
        link.close()
        return []
    link.settimeout(PATIENCE)
    return [link]


def _fill(link: socket.socket, place: memoryview) -> None:
    """Read as many bytes as there is place for."""
    while len(place):
        count = link.recv_into(place)
        if not count:
            raise OSError("its connection is closed")
        place = place[count:]
