# SPDX-License-Identifier: Apache-2.0
"""Accepting over loopback: batches, exhaustion, the end."""

from __future__ import annotations

import asyncio
import resource
import socket

import pytest

from mesh.net.listener import ACCEPT_BATCH, Listener
from mesh.net.sockets import Peer


def bound() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    sock.listen(256)
    return sock


async def test_a_burst_is_accepted_whole_and_each_peer_is_named() -> None:
    accepted: list[tuple[socket.socket, Peer]] = []
    listener = Listener(bound(), lambda sock, peer: accepted.append((sock, peer)), "test")
    clients = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3 * ACCEPT_BATCH)]
    async with asyncio.timeout(5):
        while len(accepted) < len(clients):
            await asyncio.sleep(0)
    assert {peer.port for _, peer in accepted} == {client.getsockname()[1] for client in clients}
    assert not any(sock.getblocking() for sock, _ in accepted)
    listener.close()
    for client in clients:
        client.close()
    for sock, _ in accepted:
        sock.close()


async def test_the_queue_is_taken_before_the_end_and_nothing_after_it() -> None:
    accepted: list[socket.socket] = []
    listener = Listener(bound(), lambda sock, _peer: accepted.append(sock), "test")
    port = listener.port
    with socket.create_connection(("127.0.0.1", port)):
        listener.close()
        listener.close()
        assert (len(accepted), listener.port) == (1, 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    accepted[0].close()


async def test_without_descriptors_it_pauses_says_the_remedy_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accepted: list[socket.socket] = []
    listener = Listener(bound(), lambda sock, _peer: accepted.append(sock), "pod:15001")
    client = socket.create_connection(("127.0.0.1", listener.port))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
    try:
        async with asyncio.timeout(5):
            while not caplog.records:
                await asyncio.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "pod:15001 cannot accept" in caplog.text
    assert "raise the limit of open files" in caplog.text
    async with asyncio.timeout(5):
        while not accepted:
            await asyncio.sleep(0.01)
    # It paused instead of spinning: a few lines at most.
    assert len(caplog.records) < 10
    listener.close()
    client.close()
    accepted[0].close()
