# SPDX-License-Identifier: Apache-2.0
"""Credit, resets, settings, signs of life: their rules, and that a flood of them ends the connection."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, frame
from mesh.hbone.stream import Role
from tests.support.http2 import GET, POST, RawPeer, Side, data, exchange, heads, pair
from waypoint.http.h2_limits import Http2Limits

LIMITS = Http2Limits()
TIGHT = replace(LIMITS, control_burst=5, control_per_s=1.0, reset_burst=5, reset_per_s=1.0)


def ping(payload: bytes = bytes(8), flags: int = 0, stream_id: int = 0) -> bytes:
    return frame(frames.PING, flags, stream_id, payload)


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        (ping(stream_id=1), ErrorCode.PROTOCOL_ERROR),
        (ping(bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.settings({frames.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.ENABLE_CONNECT_PROTOCOL: 2}), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 16383}), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.PRIORITY, 0, 1, b"\0\0\0\x01\0"), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.rst_stream(1, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
        (frames.rst_stream(0, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_broken_rule_of_the_connection_has_its_error(encoded: bytes, code: ErrorCode) -> None:
    assert RawPeer().fails(encoded) is code


def test_settings_come_first() -> None:
    for first in (ping(), frame(frames.SETTINGS, frames.ACK, 0), heads(1, GET)):
        side = Side(Role.SERVER)
        with pytest.raises(ConnectionFailedError, match="PROTOCOL_ERROR"):
            side.codec.receive(frames.PREFACE + first)


def test_settings_are_acknowledged_and_told_once() -> None:
    peer = RawPeer()
    assert peer.send(frames.settings({0x7FFF: 1})) == [(frames.SETTINGS, frames.ACK, 0, b"")]
    assert peer.side.log == ["settings"]


def test_a_ping_is_answered_in_kind() -> None:
    peer = RawPeer()
    assert peer.send(ping(b"12345678")) == [(frames.PING, frames.ACK, 0, b"12345678")]
    assert peer.send(ping(flags=frames.ACK)) == []
    assert peer.side.log == ["settings", "ping ack"]


def test_unknown_frames_and_priorities_do_nothing() -> None:
    peer = RawPeer()
    assert peer.send(frame(0xFA, 0xFF, 9, b"x" * 9), frame(frames.PRIORITY, 0, 9, bytes(5))) == []


def test_a_malformed_priority_of_a_stream_ends_it() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET))
    assert peer.resets(frame(frames.PRIORITY, 0, 1, bytes(4))) is ErrorCode.FRAME_SIZE_ERROR


def test_a_reset_is_told_once() -> None:
    peer = RawPeer()
    reset = frames.rst_stream(1, ErrorCode.CANCEL)
    assert peer.send(heads(1, GET), reset, reset) == []
    assert peer.side.recorders[1].log == [("CANCEL", "peer")]


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_credit_that_is_none_or_too_much_ends_the_stream(increment: int, code: ErrorCode) -> None:
    peer = RawPeer()
    peer.send(heads(1, GET))
    assert peer.resets(frames.window_update(1, increment)) is code
    assert peer.send(frames.window_update(1, 5)) == []


def test_a_larger_initial_window_overflows_what_credit_made_of_it() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET), frames.window_update(1, 2**31 - 1 - 65535))
    assert peer.fails(frames.settings({frames.INITIAL_WINDOW_SIZE: 65536})) is ErrorCode.FLOW_CONTROL_ERROR


def test_goaway_ends_what_the_server_did_not_act_on() -> None:
    client, _ = pair()
    first, second = client.open(), client.open()
    client.codec.take()
    client.codec.receive(frames.goaway(1, ErrorCode.NO_ERROR, b"restart"))
    assert first.log == []
    assert second.log == [("REFUSED_STREAM", "peer")]
    assert client.log == ["settings", ("goaway", "NO_ERROR")]
    assert client.codec.room == 0
    assert list(client.codec.streams) == [1]


def test_a_client_that_goes_away_is_still_answered() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET, end=True), frames.goaway(0, ErrorCode.NO_ERROR))
    assert peer.side.log == ["settings", ("goaway", "NO_ERROR")]
    peer.side.respond()
    assert peer.side.codec.take()


def test_the_servers_limit_of_streams_is_kept() -> None:
    client, server = pair(server=replace(LIMITS, max_streams=2))
    assert client.codec.room == 2
    client.open(end=True)
    client.open()
    assert client.codec.room == 0
    exchange(client, server)
    server.respond(1)
    server.codec.send_end(server.stream(1))
    exchange(client, server)
    assert client.codec.room == 1
    client.codec.receive(frames.settings({frames.MAX_CONCURRENT_STREAMS: 10}))
    assert client.codec.room == 9
    assert client.rooms == 2


# --- Floods


def requests(count: int) -> bytes:
    return b"".join(heads(2 * n + 1, POST) for n in range(count))


FLOODS = {
    "ping": (b"", [ping()] * 5),
    "ping acknowledgement": (b"", [ping(flags=frames.ACK)] * 5),
    "settings": (b"", [frames.settings({})] * 5),
    "settings acknowledgement": (b"", [frame(frames.SETTINGS, frames.ACK, 0)] * 5),
    "unknown": (b"", [frame(0xFA, 0, 0)] * 5),
    "priority": (b"", [frame(frames.PRIORITY, 0, 1, bytes(5))] * 5),
    "goaway": (b"", [frames.goaway(0, ErrorCode.NO_ERROR)] * 5),
    "crumbs of credit": (requests(1), [frames.window_update(1, 1)] * 5),
    "credit for nothing": (
        requests(1) + frames.rst_stream(1, ErrorCode.CANCEL),
        [frames.window_update(1, 70_000)] * 5,
    ),
    "empty data": (requests(1), [data(1, b"")] * 5),
    "padding only": (requests(1), [data(1, b"\x02\0\0", flags=frames.PADDED)] * 5),
    "data on a closed stream": (
        requests(1) + frames.rst_stream(1, ErrorCode.CANCEL),
        [data(1, b"x")] * 5,
    ),
    "rapid reset": (
        b"",
        [heads(2 * n + 1, POST) + frames.rst_stream(2 * n + 1, ErrorCode.CANCEL) for n in range(6)],
    ),
    "made you reset": (
        b"",
        [heads(2 * n + 1, POST) + frames.window_update(2 * n + 1, 0) for n in range(6)],
    ),
    "too many streams": (requests(256), [heads(2 * n + 1, POST) for n in range(256, 262)]),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_bounded(name: str) -> None:
    before, (*allowed, last) = FLOODS[name]
    # Of control frames the first was SETTINGS, so that four more pass; of resets five.
    limits = replace(TIGHT, **{"reset_burst" if len(allowed) == 4 else "control_burst": 1000})
    peer = RawPeer(limits=limits)
    peer.send(before, *allowed)
    assert peer.fails(last) is ErrorCode.ENHANCE_YOUR_CALM


def test_what_is_within_the_rate_goes_on_forever() -> None:
    peer = RawPeer(limits=TIGHT)
    for _ in range(20):
        peer.side.now_s += 1.0
        assert peer.send(ping()) == [(frames.PING, frames.ACK, 0, bytes(8))]


def test_changes_of_the_window_cost_by_the_streams_that_they_touch() -> None:
    peer = RawPeer(limits=replace(LIMITS, control_burst=100, control_per_s=0.001))
    peer.send(requests(200))
    change = frames.settings({frames.INITIAL_WINDOW_SIZE: 70_000})
    peer.send(change * 4)
    assert peer.fails(change) is ErrorCode.ENHANCE_YOUR_CALM
