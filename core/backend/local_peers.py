"""Small messages among the processes of one machine: over Unix sockets, with no thread of a framework in between.

A collective of gloo hands each message from thread to thread, five times: 0.8 ms on two busy cores, and the batch norms
of a ResNet-50 send 170 in a step (benchmarks/README.md). Every process but the first has a socket to the first, which
puts the parts together in rank order.
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

LARGEST = 1 << 18  # bytes that all processes bring together; what is larger is a framework's
PATIENCE = 2 * 3600.0  # seconds: a process may evaluate, save or read data for long while the others wait
ARRIVAL = 60.0  # seconds for what takes milliseconds
NAME = 256  # bytes in which the first one tells where it waits, and a word by which it knows the others
HEAD = 8  # bytes before a message that say how long it is

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
                    other = bytearray(HEAD)
                    _fill(link, memoryview(other))
                    if int.from_bytes(other, "big") != size:
                        raise RuntimeError("the processes of this run send messages of different sizes")
                    _fill(link, place[i * size : (i + 1) * size])
                for link in self.links:
                    link.sendall(every)
            else:
                self.links[0].sendall(size.to_bytes(HEAD, "big") + own)
                _fill(self.links[0], place)
        except TimeoutError as error:
            raise RuntimeError(
                f"another process of this run has sent nothing for {PATIENCE / 3600:.0f} hours"
            ) from error
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
    with contextlib.ExitStack() as stack:
        server, told = _listening(stack, world) if rank == 0 else (None, b"")
        where, _, word = gather(told.ljust(NAME, b"\0"))[0].rstrip(b"\0").partition(b"\n")
        links = _call(where, word, rank) if rank else []  # it is answered when the first one comes to it
        if not _all(gather, bool(links) if rank else server is not None):
            _end(links)
            return None
        if server is not None:
            links = _arrived(server, world, word)
        if not _all(gather, len(links) == (1 if rank else world - 1)):
            _end(links)
            return None
        return LocalPeers(rank, world, links)


def _all(gather: Gather, well: bool) -> bool:
    """Whether it went well with all processes."""
    return all(answer == b"\1" for answer in gather(b"\1" if well else b"\0"))


def _end(links: list[socket.socket]) -> None:
    for link in links:
        link.close()


def _listening(stack: contextlib.ExitStack, world: int) -> tuple[socket.socket | None, bytes]:
    """The first process's socket, where the others find it, and a word; nothing where there are no such sockets."""
    try:
        folder = tempfile.mkdtemp(prefix="triport-")  # of this user alone
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(Path(folder) / "peers"))
        server.listen(world)
    except (OSError, AttributeError):
        return None, b""
    told = os.fsencode(str(Path(folder) / "peers")) + b"\n" + secrets.token_hex(16).encode()
    return (server, told) if len(told) <= NAME else (None, b"")


def _call(where: bytes, word: bytes, rank: int) -> list[socket.socket]:
    """The connection to the first process; none where it is on another machine."""
    if not word:
        return []
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(ARRIVAL)
        link.connect(where)
        link.sendall(word + rank.to_bytes(HEAD, "big"))
    except OSError:
        link.close()
        return []
    link.settimeout(PATIENCE)
    return [link]


def _arrived(server: socket.socket, world: int, word: bytes) -> list[socket.socket]:
    """The connections of the ranks 1, 2, ..., all of which have called."""
    found: dict[int, socket.socket] = {}
    server.settimeout(ARRIVAL)
    with contextlib.suppress(OSError):
        while len(found) < world - 1:
            link, _ = server.accept()
            link.settimeout(ARRIVAL)
            said = bytearray(len(word) + HEAD)
            _fill(link, memoryview(said))
            if said[: len(word)] == word:
                link.settimeout(PATIENCE)
                found[int.from_bytes(said[len(word) :], "big")] = link
            else:
                link.close()
    return [found[i] for i in sorted(found)]


def _fill(link: socket.socket, place: memoryview) -> None:
    """Read as many bytes as there is place for."""
    while len(place):
        count = link.recv_into(place)
        if not count:
            raise OSError("its connection is closed")
        place = place[count:]
