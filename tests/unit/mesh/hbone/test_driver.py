# SPDX-License-Identifier: Apache-2.0
"""Connections: limits, ends, drains, time and TLS, over transports in memory and in virtual time."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace

import pytest

from mesh.hbone import frames
from mesh.hbone.driver import HboneConnection, Role
from mesh.hbone.frames import TunnelError, TunnelLimitError
from mesh.hbone.tunnel import Tunnel
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import data, split
from tests.support.joined import LIMITS, Joined, virtual
from tests.support.transports import FakeTransport, turns
from tests.support.virtual import LoopClock, run_virtual

# --- The connection


@virtual
async def test_limits_of_tunnels_and_their_words(joined: Joined) -> None:
    small = Joined(replace(LIMITS, max_tunnels=1))
    await small.pump()
    small.client.open_tunnel("a:1")
    assert not small.client.usable
    with pytest.raises(TunnelLimitError, match="1 tunnels open, own limit 1"):
        small.client.open_tunnel("a:1")
    assert not joined.server.usable
    assert joined.client.usable


@virtual
async def test_peers_protocol_error_closes_and_tells_it_why(joined: Joined) -> None:
    client, near, *_ = await joined.tunnel()
    joined.client.data_received(data(0, b"x"))
    await turns()
    assert joined.closed == [(Role.CLIENT, Reason.H2_PROTOCOL_ERROR)]
    assert near.log[-1] == ("closed", Reason.H2_PROTOCOL_ERROR)
    last = split(joined.a.take())[-1]
    assert last[0] == frames.GOAWAY
    assert b"DATA on idle stream 0" in last[3]
    assert client.closed
    with pytest.raises(TunnelLimitError):
        joined.client.open_tunnel("a:1")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, Reason.PEER_CLOSED),
        (ConnectionResetError(), Reason.PEER_CLOSED),
        (OSError(), Reason.IO_ERROR),
        (ssl.SSLError(), Reason.TLS_FAILURE),
    ],
)
def test_a_lost_connection_ends_every_tunnel_with_its_cause(error: Exception | None, reason: Reason) -> None:
    async def test() -> None:
        joined = Joined()
        await joined.pump()
        _, near, *_ = await joined.tunnel()
        waiting = joined.client.open_tunnel("a:2")
        joined.a.lose(error)
        assert near.log == [("abort", reason), ("closed", reason)]
        with pytest.raises(TunnelError) as caught:
            await waiting.opened
        assert caught.value.reason is reason
        assert joined.closed == [(Role.CLIENT, reason)]
        assert joined.client.tunnels == 0

    run_virtual(test)


@virtual
async def test_an_abandoned_request_is_no_error_of_the_loop(joined: Joined) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    joined.client.open_tunnel("a:1")
    joined.a.lose(None)
    await turns()
    assert errors == []


@virtual
async def test_close_says_goaway_once_and_ends_everything(joined: Joined) -> None:
    _, near, _, far = await joined.tunnel()
    joined.server.close(Reason.FORCED_CLOSE)
    joined.server.close(Reason.DRAINED)
    await joined.pump()
    assert far.log[-1] == ("closed", Reason.FORCED_CLOSE)
    assert near.log[-1] == ("closed", Reason.GOAWAY)
    assert sorted(joined.closed, key=lambda c: c[0].value) == [
        (Role.CLIENT, Reason.GOAWAY),
        (Role.SERVER, Reason.FORCED_CLOSE),
    ]


@virtual
async def test_a_peer_that_does_not_close_is_aborted(joined: Joined) -> None:
    joined.a.close = lambda: None  # type: ignore[method-assign]
    joined.client.close(Reason.FORCED_CLOSE)
    await asyncio.sleep(1.9)
    assert not joined.a.aborted
    await asyncio.sleep(0.2)
    assert joined.a.aborted


@virtual
async def test_draining_server_serves_what_is_on_its_way(joined: Joined) -> None:
    client, near, server, far = await joined.tunnel()
    joined.server.drain()
    joined.server.drain()
    late = joined.client.open_tunnel("a:2")
    await joined.pump()
    assert len(joined.requests) == 2, "opened before the GOAWAY arrived"
    assert not joined.client.usable
    joined.requests[1].refuse(503, Reason.DRAINED)
    server.write(b"goes on")
    await joined.pump()
    assert near.data == b"goes on"
    assert not joined.b.closing
    client.write_eof()
    server.write_eof()
    await joined.pump()
    assert far.log[-1] == ("closed", Reason.COMPLETE)
    assert {role for role, _ in joined.closed} == {Role.CLIENT, Role.SERVER}
    assert {reason for _, reason in joined.closed} <= {Reason.DRAINED, Reason.GOAWAY}
    assert (await late.opened).status == 503


@virtual
async def test_tunnels_after_the_last_goaway_are_refused_and_safe_to_retry(joined: Joined) -> None:
    _, _, server, _ = await joined.tunnel()
    joined.server.drain()
    await joined.pump()
    joined.client.codec.closing = False
    late = joined.client.open_tunnel("a:2")
    await joined.pump()
    with pytest.raises(TunnelError) as caught:
        await late.opened
    assert caught.value.retryable
    assert caught.value.reason is Reason.TUNNEL_REFUSED
    assert not server.closed


@virtual
async def test_draining_client_ends_with_its_last_tunnel(joined: Joined) -> None:
    client, _, server, _ = await joined.tunnel()
    joined.client.drain()
    await joined.pump()
    assert not joined.client.usable
    assert joined.closed == []
    client.write_eof()
    server.write_eof()
    await joined.pump()
    assert (Role.CLIENT, Reason.DRAINED) in joined.closed


@virtual
async def test_draining_an_idle_connection_closes_it(joined: Joined) -> None:
    joined.client.drain(Reason.IDLE_TIMEOUT)
    await joined.pump()
    assert (Role.CLIENT, Reason.IDLE_TIMEOUT) in joined.closed


@virtual
async def test_a_draining_idle_server_closes_after_the_peers_answer(joined: Joined) -> None:
    joined.server.drain()
    await turns()
    assert not joined.b.closing, "tunnels may be on their way"
    for transport, other in ((joined.b, joined.client), (joined.a, joined.server)):
        other.data_received(transport.take())
        await turns()
    assert joined.b.closing


# --- Time


@virtual
async def test_a_silent_peer_is_asked_and_then_dropped(joined: Joined) -> None:
    _, near, *_ = await joined.tunnel()
    await asyncio.sleep(LIMITS.keepalive_interval_s + 0.1)
    assert joined.a.take() == b"", "it was heard in the first interval"
    await asyncio.sleep(LIMITS.keepalive_interval_s)
    assert split(joined.a.take())[-1][0] == frames.PING
    await asyncio.sleep(LIMITS.keepalive_timeout_s - 0.2)
    assert joined.closed == []
    await asyncio.sleep(0.3)
    assert joined.closed[0] == (Role.CLIENT, Reason.KEEPALIVE_TIMEOUT)
    assert near.log[-1] == ("closed", Reason.KEEPALIVE_TIMEOUT)


@virtual
async def test_an_answering_peer_is_kept_for_ever(joined: Joined) -> None:
    for _ in range(100):
        await asyncio.sleep(LIMITS.keepalive_interval_s)
        await joined.pump()
    assert joined.closed == []


@virtual
async def test_pings_are_answered_while_every_consumer_is_stuck(joined: Joined) -> None:
    client, near, server, _ = await joined.tunnel()
    server.pause_reading()
    client.write(bytes(500_000))
    await joined.pump()
    joined.server.data_received(frames.frame(frames.PING, 0, 0, b"12345678"))
    await turns()
    assert (frames.PING, frames.ACK, 0, b"12345678") in split(joined.b.take())
    assert near.log == ["pause"]


def test_a_peer_that_never_speaks_is_dropped_in_time() -> None:
    async def test() -> None:
        joined = Joined()
        await asyncio.sleep(LIMITS.handshake_timeout_s - 0.1)
        assert joined.closed == []
        await asyncio.sleep(0.2)
        assert sorted(r.value for _, r in joined.closed) == [Reason.H2_HANDSHAKE_FAILED.value] * 2

    run_virtual(test)


def test_a_peer_that_asks_but_does_not_read_is_dropped_at_the_limit() -> None:
    async def test() -> None:
        joined = Joined(LIMITS, replace(LIMITS, max_unread_answers_bytes=10 * 17))
        await joined.pump()
        ping = frames.frame(frames.PING, 0, 0, bytes(8))
        for _ in range(20):
            joined.server.data_received(ping)
            await turns()
        joined.server.pause_writing()
        for _ in range(10):
            joined.server.data_received(ping)
            await turns()
        joined.server.resume_writing()
        joined.server.pause_writing()
        for _ in range(10):
            joined.server.data_received(ping)
            await turns()
        assert not joined.b.aborted
        joined.server.data_received(ping)
        await turns()
        assert joined.b.aborted
        assert joined.closed == [(Role.SERVER, Reason.H2_FLOOD)]

    run_virtual(test)


def test_bulk_of_many_tunnels_is_no_flood_however_much_waits() -> None:
    async def test() -> None:
        joined = Joined(LIMITS, replace(LIMITS, max_unread_answers_bytes=1000))
        await joined.pump()
        tunnels = [await joined.tunnel() for _ in range(20)]
        joined.server.pause_writing()
        joined.b.buffered = 1 << 30
        for _, _, server, _ in tunnels:
            server.write(bytes(60_000))
        await turns()
        assert not joined.b.aborted
        assert all(far.log == ["pause"] for *_, far in tunnels)

    run_virtual(test)


# --- TLS


@dataclass
class FakeTls:
    alpn: str | None
    der: bytes = b"leaf"

    def getpeercert(self, binary_form: bool) -> bytes:
        return self.der

    def selected_alpn_protocol(self) -> str | None:
        return self.alpn


@pytest.mark.parametrize(("alpn", "accepted"), [("h2", True), (None, True), ("http/1.1", False)])
def test_alpn_and_the_peers_certificate(alpn: str | None, accepted: bool) -> None:
    async def test() -> None:
        closed: list[Reason] = []
        connection = HboneConnection(
            role=Role.SERVER,
            limits=LIMITS,
            on_request=None,
            on_close=lambda _, reason: closed.append(reason),
            clock=LoopClock(),
        )
        FakeTransport(connection, ssl_object=FakeTls(alpn))
        assert connection.peer_der == b"leaf"
        await turns()
        assert closed == ([] if accepted else [Reason.H2_HANDSHAKE_FAILED])
        connection.close(Reason.FORCED_CLOSE)
        await turns()

    run_virtual(test)


@pytest.mark.parametrize(
    ("role", "reason"), [(Role.CLIENT, Reason.TLS_FAILURE), (Role.SERVER, Reason.H2_HANDSHAKE_FAILED)]
)
def test_silence_and_an_end_after_the_handshake(role: Role, reason: Reason) -> None:
    """TLS 1.3: a server that refuses the client's certificate does it after the client's handshake."""

    async def test() -> None:
        closed: list[Reason] = []
        connection = HboneConnection(
            role=role,
            limits=LIMITS,
            on_request=None,
            on_close=lambda _, r: closed.append(r),
            clock=LoopClock(),
        )
        FakeTransport(connection, ssl_object=FakeTls("h2")).lose(None)
        assert closed == [reason]

    run_virtual(test)


def test_a_connection_without_a_handler_refuses() -> None:
    async def test() -> None:
        joined = Joined()
        joined.server._on_request = None
        client = joined.client.open_tunnel("a:1")
        await joined.pump()
        assert (await client.opened).status == 503

    run_virtual(test)


def test_a_tunnel_knows_its_connection() -> None:
    async def test() -> None:
        joined = Joined()
        await joined.pump()
        client, *_ = await joined.tunnel()
        assert isinstance(client, Tunnel)
        assert client.connection is joined.client

    run_virtual(test)
