# SPDX-License-Identifier: Apache-2.0
"""Our two ends on loopback with mutual TLS: a thousand random connections, resets, stuck readers, nghttp2."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh.hbone.driver import Limits
from mesh.net.relay import TcpEnd
from mesh.telemetry.reasons import Reason
from tests.support.eventually import eventually_async
from tests.support.hbone import LOOPBACK, Node, closed, echo, node, port_of, tcp_server
from tests.support.pki import Authority

CONNECTIONS = 1000


def run(loop: str, test: Coroutine[Any, Any, None]) -> None:
    (uvloop.run if loop == "uvloop" else asyncio.run)(test)


both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo in blocks of changing sizes, now and then slowly; ends as the first byte asks.

    E: echo to the end, then half-close. H: half-close at once, then read to the end and count.
    R: reset. D: answer the digest after the client's half-close.
    """
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        how = await reader.readexactly(1)
        if how == b"E":
            while data := await reader.read(random.choice([1000, 70_000])):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        elif how == b"H":
            writer.write(b"first")
            writer.write_eof()
            await reader.read(-1)
        elif how == b"D":
            writer.write(hashlib.sha256(await reader.read(-1)).digest())
            writer.write_eof()
        else:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
    await closed(writer)


async def one(port: int, seeded: random.Random, seen: Counter[str]) -> None:
    """Run one random connection and check its bytes."""
    how = seeded.choice("EEEEHDDRA")
    size = seeded.choice([0, 1, 10, 1000, 16384, 65536, 150_000, 400_000])
    payload = seeded.randbytes(min(size, 1000)) * max(1, size // 1000) if size else b""
    seen[how] += 1
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def send() -> None:
        writer.write(b"E" if how == "A" else how.encode())
        at = 0
        while at < len(payload):
            step = seeded.choice([1, 500, 20_000, 100_000])
            writer.write(payload[at : at + step])
            at += step
            if seeded.random() < 0.3:
                await writer.drain()
        if how not in "RA":
            await writer.drain()
            writer.write_eof()

    if how == "A":
        await send()
        writer.transport.abort()
    elif how == "R":
        with contextlib.suppress(ConnectionError):
            await send()
            assert await reader.read(-1) == b""
        seen["reset seen"] += reader.exception() is not None
    else:
        received, _ = await asyncio.gather(reader.read(-1), send())
        expected = {"E": payload, "H": b"first", "D": hashlib.sha256(payload).digest()}[how]
        assert received == expected, (how, size, len(received))
    await closed(writer)


@both_loops
def test_a_thousand_random_connections(loop: str, tmp_path: Path) -> None:
    """Bytes in equal bytes out, in order; halves, digests after half-close, resets and aborts among them."""

    async def test() -> None:
        seeded, seen = random.Random(2026), Counter[str]()
        async with node(tmp_path, Authority()) as ours, tcp_server(mirror) as app:
            hbone = await ours.serve()
            connections = [await ours.dial(hbone) for _ in range(3)]
            port = await ours.listen_out(lambda: seeded.choice(connections), f"{LOOPBACK}:{app}")
            gate = asyncio.Semaphore(60)

            async def gated() -> None:
                async with gate:
                    await one(port, seeded, seen)

            await asyncio.gather(*(gated() for _ in range(CONNECTIONS)))
            await eventually_async(
                lambda: len(ours.results) >= 2 * (CONNECTIONS - seen["A"]), "every relay reports once"
            )
            await eventually_async(
                lambda: all(c.tunnels == 0 for c in (*connections, *ours.accepted)), "no tunnel is left"
            )
            assert not any(c.closed for c in connections), "no connection was lost to it"
            assert not ours.failures
            assert seen["reset seen"] == seen["R"], "a reset of the application arrives as a reset"
            assert {r.reason for r in ours.results} <= {
                Reason.COMPLETE,
                Reason.PEER_RESET,
                Reason.PEER_CLOSED,
                Reason.TUNNEL_RESET,
            }

    run(loop, test())


@both_loops
def test_a_stuck_reader_holds_nobody_else(loop: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, Authority()) as ours, tcp_server(echo) as app:
            connection = await ours.dial(await ours.serve())
            port = await ours.listen_out(lambda: connection, f"{LOOPBACK}:{app}")
            stuck = [await asyncio.open_connection(LOOPBACK, port) for _ in range(10)]
            for _, writer in stuck:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(bytes(3_000_000))
            payload = os.urandom(20_000_000)
            reader, writer = await asyncio.open_connection(LOOPBACK, port)

            async def send() -> None:
                writer.write(payload)
                await writer.drain()
                writer.write_eof()

            received, _ = await asyncio.gather(reader.read(-1), send())
            assert received == payload
            await closed(writer)
            for _, writer in stuck:
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                writer.write_eof()
            for reader, writer in stuck:
                assert len(await reader.read(-1)) == 3_000_000
                await closed(writer)

    run(loop, test())


@both_loops
def test_memory_of_stuck_tunnels_is_bounded(loop: str, tmp_path: Path) -> None:
    """The far applications read nothing: each tunnel holds its window, its queue and socket buffers."""

    silenced: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        silenced.append(writer)

    async def test() -> None:
        limits = Limits()
        async with node(tmp_path, Authority(), limits) as ours, tcp_server(silent) as app:
            connection = await ours.dial(await ours.serve())
            port = await ours.listen_out(lambda: connection, f"{LOOPBACK}:{app}")
            writers = []
            for _ in range(20):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                writer.transport.set_write_buffer_limits(0)
                writers.append(writer)

            async def push(writer: asyncio.StreamWriter) -> None:
                for _ in range(200):
                    writer.write(bytes(100_000))
                    await writer.drain()

            pushing = [asyncio.ensure_future(push(w)) for w in writers]  # noqa: TID251
            await eventually_async(Quiet(ours), "nothing moves any more")
            for stream in connection.codec.streams.values():
                assert stream.queued_bytes <= limits.send_queue_bytes + 300_000
            for accepted in ours.accepted:
                assert sum(s.receive.size for s in accepted.codec.streams.values()) <= (
                    20 * limits.initial_window_bytes + limits.growth_budget_bytes
                )
            assert sum(not p.done() for p in pushing) == 20, "every source is stopped"
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)
            for writer in silenced:
                writer.transport.abort()
                await closed(writer)
            await eventually_async(lambda: connection.tunnels == 0, "the far applications' ends free them")
            for writer in writers:
                await closed(writer)

    run(loop, test())


class Quiet:
    """Whether no tunnel received anything for some calls in a row."""

    def __init__(self, ours: Node) -> None:
        self.ours = ours
        self.total = -1
        self.calls = 0

    def __call__(self) -> bool:
        total = sum(r.delivered for r in self.ours.requests)
        self.calls = self.calls + 1 if total == self.total else 0
        self.total = total
        return self.calls > 20


@both_loops
def test_a_client_that_resets_resets_the_far_application(loop: str, tmp_path: Path) -> None:
    """ztunnel#1483: there it is turned into an orderly end."""

    async def test() -> None:
        ends: list[TcpEnd] = []
        async with node(tmp_path, Authority()) as ours:
            app = await asyncio.get_running_loop().create_server(lambda: TcpEnd(ends.append), LOOPBACK, 0)
            connection = await ours.dial(await ours.serve())
            port = await ours.listen_out(lambda: connection, f"{LOOPBACK}:{port_of(app)}")
            sock = socket.create_connection((LOOPBACK, port))
            sock.setblocking(False)
            sock.send(b"x")
            await eventually_async(lambda: bool(ends) and bool(ends[0]._held), "the byte arrived")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            await eventually_async(lambda: ends[0].closed, "the far application sees the end")
            assert ends[0].reason is Reason.PEER_RESET
            app.close()
            await app.wait_closed()

    run(loop, test())


@both_loops
def test_an_unreachable_application_is_503(loop: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, Authority()) as ours:
            with socket.create_server((LOOPBACK, 0)) as held:
                free = held.getsockname()[1]
            connection = await ours.dial(await ours.serve())
            tunnel = connection.open_tunnel(f"{LOOPBACK}:{free}")
            response = await tunnel.opened
            assert response.status == 503
            assert response.reason is Reason.TUNNEL_UPSTREAM_FAILED
            assert tunnel.closed

    run(loop, test())


@both_loops
def test_a_killed_connection_resets_what_it_carried(loop: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, Authority()) as ours, tcp_server(echo) as app:
            connection = await ours.dial(await ours.serve())
            port = await ours.listen_out(lambda: connection, f"{LOOPBACK}:{app}")
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            assert connection.transport is not None
            connection.transport.abort()
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            await closed(writer)

    run(loop, test())
