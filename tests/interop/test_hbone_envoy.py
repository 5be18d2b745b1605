# SPDX-License-Identifier: Apache-2.0
"""HBONE with a real Envoy on the other side, both ways, with mutual TLS 1.3."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh.hbone.driver import HboneConnection
from mesh.telemetry.reasons import Reason
from tests.support.envoy import connect_client, connect_terminator, envoy
from tests.support.eventually import eventually_async
from tests.support.hbone import LOOPBACK, closed, echo, node, tcp_server
from tests.support.pki import Authority, Leaf, spiffe

Test = Callable[[], Coroutine[Any, Any, None]]


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(test)


@pytest.fixture
def authority() -> Authority:
    return Authority()


async def round_trip(port: int, payload: bytes) -> bytes:
    """Send everything, half-close, read to the end."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def send() -> None:
        writer.write(payload)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read(-1))
    await closed(writer)
    return received


async def digest_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only after the client's half-close: the digest of what it sent."""
    writer.write(hashlib.sha256(await reader.read(-1)).hexdigest().encode())
    writer.write_eof()
    await closed(writer)


SIZES = [0, 1, 16384, 65536, 300_000, 5_000_000]


def test_envoy_as_client_of_our_server(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, authority) as ours, tcp_server(echo) as app:
            port = await ours.serve()
            listener, cluster = connect_client(
                authority.workload("client"), tmp_path, authority=f"{LOOPBACK}:{app}", port=port
            )
            with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
                payloads = [os.urandom(size) for size in SIZES]
                answers = await asyncio.gather(*(round_trip(theirs.port("out"), p) for p in payloads))
                assert answers == payloads
                assert {t.authority for t in ours.requests} == {f"{LOOPBACK}:{app}"}
                assert ours.requests[0].get(b"baggage") == b"k8s.pod.name=envoy"
                assert b"spiffe://cluster.local/ns/client/sa/default" in ours.accepted[0].peer_der
                await eventually_async(lambda: len(ours.results) == len(SIZES), "relays done")
                assert {r.reason for r in ours.results} == {Reason.COMPLETE}
                assert sum(r.sent for r in ours.results) == sum(SIZES)

    run(test())


def test_our_client_with_envoy_as_connect_terminator(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, authority) as ours, tcp_server(echo) as app:
            listener, cluster = connect_terminator(authority.workload("server"), tmp_path, port=app)
            with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
                connection = await ours.dial(theirs.port("in"))
                port = await ours.listen_out(lambda: connection, "10.0.0.1:80")
                payloads = [os.urandom(size) for size in SIZES]
                answers = await asyncio.gather(*(round_trip(port, p) for p in payloads))
                assert answers == payloads
                assert b"spiffe://cluster.local/ns/server/sa/default" in connection.peer_der
                assert theirs.stat("http.in.downstream_cx_http2_total") == 1, "all tunnels on one connection"
                await eventually_async(lambda: len(ours.results) == len(SIZES), "relays done")

    run(test())


@pytest.mark.parametrize("side", ["client", "server"])
def test_half_close_reaches_the_far_application_before_it_answers(
    side: str, authority: Authority, tmp_path: Path
) -> None:
    payload = os.urandom(700_000)

    async def ask(port: int) -> None:
        assert await round_trip(port, payload) == hashlib.sha256(payload).hexdigest().encode()

    run(_through(side, authority, tmp_path, digest_server, ask))


async def _through(
    side: str,
    authority: Authority,
    tmp_path: Path,
    app: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
    use: Callable[[int], Coroutine[Any, Any, None]],
) -> None:
    """Run `use(port)` towards `app` with Envoy as `side`, us as the other."""
    async with node(tmp_path, authority) as ours, tcp_server(app) as app_port:
        target = f"{LOOPBACK}:{app_port}"
        if side == "client":
            listener, cluster = connect_client(
                authority.workload("c"), tmp_path, authority=target, port=await ours.serve()
            )
            with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
                await use(theirs.port("out"))
            return
        listener, cluster = connect_terminator(authority.workload("s"), tmp_path, port=app_port)
        with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
            connection: HboneConnection = await ours.dial(theirs.port("in"))
            await use(await ours.listen_out(lambda: connection, target))


@pytest.mark.parametrize("side", ["client", "server"])
def test_slow_and_stuck_readers_hold_nobody_else(side: str, authority: Authority, tmp_path: Path) -> None:
    """One connection is never read; others through the same tunnel connection move megabytes."""

    async def use(port: int) -> None:
        _, stuck = await asyncio.open_connection(LOOPBACK, port)
        stuck.transport.pause_reading()  # type: ignore[attr-defined]
        stuck.write(bytes(20_000_000))
        payload = os.urandom(3_000_000)
        answers = await asyncio.gather(*(round_trip(port, payload) for _ in range(5)))
        assert answers == [payload] * 5
        stuck.transport.abort()

    run(_through(side, authority, tmp_path, echo, use))


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_of_one_connection_leaves_the_others(side: str, authority: Authority, tmp_path: Path) -> None:
    async def use(port: int) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        for _ in range(20):
            _, doomed = await asyncio.open_connection(LOOPBACK, port)
            doomed.write(os.urandom(100_000))
            doomed.transport.abort()
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
        await closed(writer)

    run(_through(side, authority, tmp_path, echo, use))


def test_a_refusal_closes_envoys_client(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, authority) as ours:
            ours.refuse = (401, Reason.POLICY_DENIED)
            listener, cluster = connect_client(
                authority.workload("client"), tmp_path, authority="10.0.0.1:80", port=await ours.serve()
            )
            with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
                reader, writer = await asyncio.open_connection(LOOPBACK, theirs.port("out"))
                assert await reader.read(-1) == b""
                await closed(writer)
                assert ours.accepted[0].usable is False, "a server opens no tunnels"
                assert ours.accepted[0].tunnels == 0

    run(test())


def test_drain_lets_envoys_live_tunnel_finish_and_sends_it_elsewhere(
    authority: Authority, tmp_path: Path
) -> None:
    async def test() -> None:
        async with node(tmp_path, authority) as ours, tcp_server(echo) as app:
            listener, cluster = connect_client(
                authority.workload("client"), tmp_path, authority=f"{LOOPBACK}:{app}", port=await ours.serve()
            )
            with envoy(tmp_path / "envoy", listeners=[listener], clusters=[cluster]) as theirs:
                reader, writer = await asyncio.open_connection(LOOPBACK, theirs.port("out"))
                writer.write(b"before")
                assert await reader.readexactly(6) == b"before"
                ours.accepted[0].drain()
                await eventually_async(lambda: ours.accepted[0].codec.closing, "the second GOAWAY is sent")
                assert await round_trip(theirs.port("out"), b"new") == b"new"
                assert len(ours.accepted) == 2, "the new tunnel took a new connection"
                writer.write(b"after")
                assert await reader.readexactly(5) == b"after"
                writer.write_eof()
                assert await reader.read(-1) == b""
                await closed(writer)
                await eventually_async(
                    lambda: ours.accepted[0].closed, "the drained connection ends with its last tunnel"
                )

    run(test())


WRONG = {
    "another authority": lambda a: Authority(name="other").workload("client"),
    "expired": lambda a: a.expired(spiffe("client")),
}


@pytest.mark.parametrize("name", WRONG)
def test_our_server_accepts_no_wrong_certificate(name: str, authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with node(tmp_path, authority) as ours:
            wrong: Leaf = WRONG[name](authority)
            context = wrong.context(tmp_path / "wrong", server=False)
            context.load_verify_locations(cadata=authority.roots_pem.decode())
            port = await ours.serve()
            connection = await ours.dial(port, context)
            await eventually_async(lambda: connection.closed, "refused")
            assert ours.closed[-1] is Reason.TLS_FAILURE
            assert not any(c.settled for c in ours.accepted)

    run(test())


def test_soak_of_random_connections_through_envoy(authority: Authority, tmp_path: Path) -> None:
    seeded = random.Random(7)
    sizes = [seeded.choice([0, 1, 100, 5_000, 40_000, 200_000]) for _ in range(150)]

    async def use(port: int) -> None:
        gate = asyncio.Semaphore(20)

        async def one(size: int) -> None:
            async with gate:
                payload = os.urandom(size)
                assert await round_trip(port, payload) == payload

        await asyncio.gather(*(one(size) for size in sizes))

    run(_through("client", authority, tmp_path, echo, use))
    run(_through("server", authority, tmp_path / "server", echo, use))
