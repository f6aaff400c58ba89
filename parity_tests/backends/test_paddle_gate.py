"""Paddle's processes find each other: a stray call, silent or not, does not hold rank 0 up."""

from __future__ import annotations

import socket
import threading

import pytest

from triport import environments

WORD = "ab" * 16

pytestmark = pytest.mark.skipif(not environments.is_here("paddle"), reason="runs in Paddle's own environment")


@pytest.mark.inside
def test_stray_calls_hold_nobody_up() -> None:
    from triport.backends.paddle.distributed import _receive

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        silent, wrong, slow = (socket.create_connection(address) for _ in range(3))
        wrong.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        slow.sendall(f"{WORD} ".encode())

        def call() -> None:
            slow.sendall(b"       1")

        thread = threading.Timer(0.3, call)
        thread.start()
        other = socket.create_connection(address)
        other.sendall(f"{WORD} {2:8}".encode())
        peers = _receive(server, WORD, 3)
        thread.join()
        assert sorted(peers) == [1, 2]
        assert peers[1].getpeername() == slow.getsockname() and peers[2].getpeername() == other.getsockname()
        silent.settimeout(5)
        assert silent.recv(1) == b""  # closed in the end
    for call_socket in (silent, wrong, slow, other, *peers.values()):
        call_socket.close()
