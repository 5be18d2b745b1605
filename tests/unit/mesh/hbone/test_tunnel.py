# SPDX-License-Identifier: Apache-2.0
"""Tunnels as ends of a relay, both sides."""

from __future__ import annotations

import pytest

from mesh.hbone import frames
from mesh.hbone.driver import Limits
from mesh.hbone.frames import ErrorCode, TunnelError
from mesh.hbone.tunnel import REASON_HEADER
from mesh.telemetry.reasons import Reason
from tests.support.joined import LIMITS, Joined, Recorder, virtual
from tests.support.transports import turns
from tests.support.virtual import run_virtual


@virtual
async def test_a_tunnel_from_begin_to_end(joined: Joined) -> None:
    client, near, server, far = await joined.tunnel()
    response = await client.opened
    assert (response.status, response.headers, response.reason) == (200, ((b"baggage", b"z"),), None)
    assert (server.authority, server.get(b"x"), server.get(b"none")) == ("10.0.0.1:80", b"y", b"")
    client.write(b"request")
    client.write_eof()
    await joined.pump()
    assert (far.data, far.log) == (b"request", ["eof"])
    server.write(b"response")
    server.write_eof()
    await joined.pump()
    assert (near.data, near.log) == (b"response", ["eof", ("closed", Reason.COMPLETE)])
    assert far.log == ["eof", ("closed", Reason.COMPLETE)]
    assert (client.delivered, server.delivered) == (8, 7)
    assert (joined.client.tunnels, joined.server.tunnels) == (0, 0)


@virtual
async def test_bytes_before_the_start_are_held_in_order(joined: Joined) -> None:
    client = joined.client.open_tunnel("a:1")
    await joined.pump()
    server = joined.requests[0]
    server.accept()
    await joined.pump()
    near = Recorder()
    client.start(near, near)
    client.write(b"early ")
    client.write(b"bird")
    client.write_eof()
    await joined.pump()
    far = Recorder()
    server.start(far, far)
    assert (far.data, far.log) == (b"early bird", ["eof"])


@virtual
async def test_a_tunnel_nobody_started_holds_no_more_than_its_window(joined: Joined) -> None:
    client = joined.client.open_tunnel("a:1")
    await joined.pump()
    joined.requests[0].accept()
    await joined.pump()
    near = Recorder()
    client.start(near, near)
    client.write(bytes(500_000))
    await joined.pump()
    assert sum(map(len, joined.requests[0]._held)) == 65535
    far = Recorder()
    joined.requests[0].start(far, far)
    await joined.pump()
    assert len(far.data) == 500_000


@virtual
async def test_a_full_consumer_stops_the_source_and_its_room_starts_it_again(joined: Joined) -> None:
    client, near, server, far = await joined.tunnel()
    server.pause_reading()
    client.write(bytes(65535))
    await joined.pump()
    assert near.log == []
    client.write(bytes(LIMITS.send_queue_bytes))
    await joined.pump()
    assert near.log == [], "the queue is full to its limit"
    client.write(b"x")
    assert near.log == ["pause"]
    client.write(b"y")
    assert near.log == ["pause"], "once"
    server.resume_reading()
    await joined.pump()
    assert near.log == ["pause", "resume"]
    assert len(far.data) == 65535 + LIMITS.send_queue_bytes + 2


@virtual
async def test_a_full_transport_holds_each_source_that_writes(joined: Joined) -> None:
    client, near, _, far = await joined.tunnel()
    idle, idle_near, _, _ = await joined.tunnel()
    joined.client.pause_writing()
    client.write(b"x")
    assert near.log == ["pause"]
    assert idle_near.log == []
    joined.client.resume_writing()
    assert near.log == ["pause", "resume"]
    await joined.pump()
    assert far.data == b"x"
    assert not idle.closed


@virtual
async def test_a_free_transport_does_not_wake_a_source_whose_tunnel_is_full(joined: Joined) -> None:
    client, near, server, _ = await joined.tunnel()
    server.pause_reading()
    joined.client.pause_writing()
    client.write(bytes(65535 + LIMITS.send_queue_bytes))
    assert near.log == ["pause"]
    joined.client.resume_writing()
    assert near.log == ["pause"], "its queue is still full"
    server.resume_reading()
    await joined.pump()
    assert near.log == ["pause", "resume"]


@virtual
async def test_writes_of_one_turn_leave_in_one_write(joined: Joined) -> None:
    tunnels = [await joined.tunnel() for _ in range(5)]
    before = joined.a.writes
    for client, *_ in tunnels:
        client.write(b"a")
        client.write(b"b")
    await turns()
    assert joined.a.writes == before + 1


@virtual
async def test_bulk_leaves_in_slices(joined: Joined) -> None:
    wide = Joined(Limits(), Limits())
    await wide.pump()
    client, _, _, far = await wide.tunnel()
    before = wide.a.writes
    client.write(bytes(200_000))
    await turns()
    assert wide.a.writes == before + 4, "three of 64 KiB and the rest"
    await wide.pump()
    assert len(far.data) == 200_000


@pytest.mark.parametrize(
    ("reason", "seen"),
    [
        (Reason.PEER_RESET, Reason.PEER_RESET),
        (Reason.IO_ERROR, Reason.PEER_RESET),
        (Reason.POLICY_REVOKED, Reason.TUNNEL_RESET),
        (Reason.INTERNAL_ERROR, Reason.TUNNEL_RESET),
    ],
)
def test_an_abort_is_a_reset_on_the_far_side(reason: Reason, seen: Reason) -> None:
    """ztunnel#1483: there a reset of the application arrives as an orderly end."""

    async def test() -> None:
        joined = Joined()
        await joined.pump()
        client, near, server, far = await joined.tunnel()
        client.abort(reason)
        client.abort(Reason.FORCED_CLOSE)
        client.write(b"late")
        client.write_eof()
        await joined.pump()
        assert far.log == [("abort", seen), ("closed", seen)]
        assert near.log == [("abort", reason), ("closed", reason)]
        assert (client.reason, server.reason) == (reason, seen)

    run_virtual(test)


@virtual
async def test_refusals_carry_status_and_reason(joined: Joined) -> None:
    for status, reason, seen in (
        (401, Reason.POLICY_DENIED, Reason.TUNNEL_UNAUTHORIZED),
        (503, Reason.CONNECT_REFUSED, Reason.TUNNEL_UPSTREAM_FAILED),
        (400, Reason.BAD_AUTHORITY, Reason.TUNNEL_REFUSED),
    ):
        client = joined.client.open_tunnel("a:1")
        await joined.pump()
        server = joined.requests[-1]
        server.refuse(status, reason)
        server.refuse(500, Reason.INTERNAL_ERROR)
        server.accept()
        await joined.pump()
        response = await client.opened
        assert response.status == status
        assert response.reason is seen
        assert response.get(REASON_HEADER) == reason.value.encode()
        assert (client.reason, server.reason) == (seen, reason)
    assert (joined.client.tunnels, joined.server.tunnels) == (0, 0)
    assert not joined.a.closing


@virtual
async def test_a_client_that_gives_up_before_the_answer_is_seen(joined: Joined) -> None:
    client = joined.client.open_tunnel("a:1")
    await joined.pump()
    client.abort(Reason.TUNNEL_TIMEOUT)
    with pytest.raises(TunnelError) as caught:
        await client.opened
    assert caught.value.reason is Reason.TUNNEL_TIMEOUT
    await joined.pump()
    server = joined.requests[0]
    assert server.closed
    server.accept()
    far = Recorder()
    server.start(far, far)
    assert far.log == [("abort", Reason.TUNNEL_RESET), ("closed", Reason.TUNNEL_RESET)]


@virtual
async def test_no_error_reset_after_the_end_keeps_what_the_application_has_to_read(joined: Joined) -> None:
    client, near, server, _ = await joined.tunnel()
    server.write(b"last words")
    server.write_eof()
    await joined.pump()
    joined.client.data_received(frames.rst_stream(client.stream_id, ErrorCode.NO_ERROR))
    assert (near.data, near.log) == (b"last words", ["eof"])
    client.write_eof()
    assert near.log == ["eof", ("closed", Reason.COMPLETE)]
    assert server is joined.requests[0]


@virtual
async def test_bytes_after_such_a_reset_are_answered_with_a_reset(joined: Joined) -> None:
    client, near, server, _ = await joined.tunnel()
    server.write_eof()
    await joined.pump()
    joined.client.data_received(frames.rst_stream(client.stream_id, ErrorCode.NO_ERROR))
    client.write(b"nobody reads this")
    assert near.log[-2:] == [("abort", Reason.PEER_CLOSED), ("closed", Reason.PEER_CLOSED)]


@virtual
async def test_a_broken_tunnel_leaves_the_others(joined: Joined) -> None:
    one, near, _, _ = await joined.tunnel()
    other, other_near, _, other_far = await joined.tunnel()
    joined.client.data_received(frames.window_update(one.stream_id, 0))
    assert near.log == [("abort", Reason.H2_PROTOCOL_ERROR), ("closed", Reason.H2_PROTOCOL_ERROR)]
    other.write(b"goes on")
    await joined.pump()
    assert other_far.data == b"goes on"
    assert other_near.log == []
