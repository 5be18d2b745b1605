# SPDX-License-Identifier: Apache-2.0
"""Every rule that a peer can break, every limit at the limit, every flood."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.hpack import encode, list_bytes
from mesh.hbone.limits import Limits
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import CONNECT, RawPeer, Side, data, request

RST, SETTINGS, GOAWAY, WINDOW = frames.RST_STREAM, frames.SETTINGS, frames.GOAWAY, frames.WINDOW_UPDATE
TINY = replace(Limits(), control_burst=10, control_per_s=1.0, reset_burst=5, reset_per_s=1.0, max_tunnels=3)


def reset(stream_id: int, code: ErrorCode) -> tuple[int, int, int, bytes]:
    return (RST, 0, stream_id, code.to_bytes(4, "big"))


# --- The connection's beginning


@pytest.mark.parametrize(
    "first", [frames.frame(frames.PING, 0, 0, bytes(8)), frames.frame(SETTINGS, 1, 0), request()]
)
def test_settings_come_first(first: bytes) -> None:
    with pytest.raises(ConnectionFailedError) as caught:
        Side(Role.SERVER).codec.receive(frames.PREFACE + first)
    assert caught.value.reason is Reason.H2_HANDSHAKE_FAILED


# --- Errors of the connection

CONNECTION_ERRORS = {
    "push": (frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on idle stream": (data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "even stream": (request(2), ErrorCode.PROTOCOL_ERROR),
    "headers on stream 0": (request(0), ErrorCode.PROTOCOL_ERROR),
    "reset on idle stream": (frames.rst_stream(7, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "reset on stream 0": (frames.rst_stream(0, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "reset of wrong size": (frames.frame(RST, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "window update on idle stream": (frames.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
    "window update of wrong size": (frames.frame(WINDOW, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
    "window update of 0": (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "window overflow": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "ping on a stream": (frames.frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "ping of wrong size": (frames.frame(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "settings on a stream": (frames.frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings of wrong size": (frames.frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "settings ack with payload": (frames.frame(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "window setting too large": (frames.settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    "frame setting too small": (frames.settings({5: 16383}), ErrorCode.PROTOCOL_ERROR),
    "frame setting too large": (frames.settings({5: 2**24}), ErrorCode.PROTOCOL_ERROR),
    "push setting": (frames.settings({2: 2}), ErrorCode.PROTOCOL_ERROR),
    "goaway on a stream": (frames.frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "goaway of wrong size": (frames.frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "continuation alone": (frames.frame(frames.CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "frame inside a header block": (
        frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.PING, 0, 0, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "data inside a header block": (
        frames.frame(frames.HEADERS, 0, 1, b"\x82") + data(1, b"x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "continuation of another stream": (
        frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.CONTINUATION, 4, 3, b""),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "headers all padding": (frames.frame(frames.HEADERS, 4 | 8, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "headers without their padding length": (
        frames.frame(frames.HEADERS, 4 | 8, 1),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "headers shorter than priority": (
        frames.frame(frames.HEADERS, 4 | 32, 1, b"abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "broken header compression": (frames.frame(frames.HEADERS, 4, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "priority of wrong size": (frames.frame(frames.PRIORITY, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_errors_of_the_connection(name: str) -> None:
    encoded, code = CONNECTION_ERRORS[name]
    peer = RawPeer(Role.SERVER)
    if name in ("reset of wrong size", "window update of wrong size"):
        peer.connect()
    assert peer.fails(encoded).code is code


def test_data_of_an_open_tunnel_inside_a_header_block() -> None:
    peer = RawPeer(Role.SERVER)
    peer.connect(1)
    error = peer.fails(frames.frame(frames.HEADERS, 0, 3, b"\x82"), data(1, b"x"))
    assert "inside a header block" in error.detail
    assert peer.side.recorders[1].data == b""


def test_a_client_accepts_no_stream_of_its_server() -> None:
    peer = RawPeer(Role.CLIENT)
    peer.side.open()
    assert peer.fails(request(2)).code is ErrorCode.PROTOCOL_ERROR
    peer = RawPeer(Role.CLIENT)
    assert peer.fails(request(1)).code is ErrorCode.PROTOCOL_ERROR
    assert RawPeer(Role.CLIENT).fails(frames.settings({2: 1})).code is ErrorCode.PROTOCOL_ERROR


# --- Errors of one stream


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        (frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (request(1, [(b"x", b"y")]), ErrorCode.PROTOCOL_ERROR),
        (request(1, [(b":status", b"200")], end=True), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_errors_of_one_tunnel_leave_the_others(encoded: bytes, code: ErrorCode) -> None:
    peer = RawPeer(Role.SERVER)
    peer.connect(1)
    peer.connect(3)
    assert reset(1, code) in peer.send(encoded)
    assert ("reset", code.name, "own") in peer.side.recorders[1].log
    peer.send(data(3, b"still here"))
    assert peer.side.recorders[3].data == b"still here"


def test_data_and_headers_after_the_end() -> None:
    for encoded in (data(1, b"late"), request(1, [(b"x", b"y")], end=True)):
        peer = RawPeer(Role.SERVER)
        peer.connect(1, end=True)
        assert reset(1, ErrorCode.STREAM_CLOSED) in peer.send(encoded)


def test_malformed_requests_are_reset_and_others_than_connect_get_400() -> None:
    peer = RawPeer(Role.SERVER)
    assert peer.send(request(1, [*CONNECT, (b":path", b"/")])) == [reset(1, ErrorCode.PROTOCOL_ERROR)]
    get = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")]
    answer = peer.send(request(3, get, end=True))
    assert answer[0][:3] == (frames.HEADERS, frames.END_STREAM | frames.END_HEADERS, 3)
    assert answer[1] == reset(3, ErrorCode.NO_ERROR)
    assert peer.side.requests == []


def test_interim_responses_pass_and_101_does_not() -> None:
    peer = RawPeer(Role.CLIENT)
    first, second = peer.side.open(), peer.side.open()
    peer.send(request(1, [(b":status", b"103")]), request(1, [(b":status", b"200")]))
    peer.send(request(3, [(b":status", b"101")]))
    assert first.log == [("response", 200, [])]
    assert second.log == [("reset", "PROTOCOL_ERROR", "own")]


# --- What must be tolerated


def test_unknown_frames_settings_priority_and_padding_are_ignored() -> None:
    peer = RawPeer(Role.SERVER)
    peer.send(frames.frame(0xBE, 0xFF, 0, b"grease"), frames.settings({0x1A1A: 7}))
    block = b"\x03" + bytes(5) + encode(CONNECT) + bytes(3)
    flags = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY
    peer.send(frames.frame(frames.HEADERS, flags, 1, block), frames.frame(frames.PRIORITY, 0, 1, bytes(5)))
    peer.send(
        data(1, b"\x04abc" + bytes(4), frames.PADDED), data(1, b"\x00d", frames.PADDED | frames.END_STREAM)
    )
    assert peer.side.recorders[1].data == b"abcd"
    assert peer.side.recorders[1].log == ["end"]


def test_trailers_end_a_tunnel() -> None:
    peer = RawPeer(Role.SERVER)
    peer.connect()
    peer.send(request(1, [(b"grpc-status", b"0")], end=True))
    assert peer.side.recorders[1].log == ["end"]


def test_ping_is_answered_and_settings_acknowledged() -> None:
    peer = RawPeer(Role.SERVER)
    answers = peer.send(frames.frame(frames.PING, 0, 0, b"abcdefgh"), frames.settings({4: 70000}))
    assert answers == [(frames.PING, 1, 0, b"abcdefgh"), (SETTINGS, 1, 0, b"")]
    peer.send(frames.frame(frames.PING, 1, 0, b"abcdefgh"))
    assert peer.side.log == ["settings", "ping ack"]


# --- Limits, at the limit


def test_tunnel_limit() -> None:
    peer = RawPeer(Role.SERVER, TINY)
    for stream_id in (1, 3, 5):
        peer.connect(stream_id)
    assert peer.connect(7) == [reset(7, ErrorCode.REFUSED_STREAM)]
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.connect(9)[0][0] == frames.HEADERS


def test_header_list_limit() -> None:
    size = list_bytes([*CONNECT, (b"x", b"")])
    limits = replace(Limits(), max_header_list_bytes=size + 100)
    peer = RawPeer(Role.SERVER, limits)
    assert peer.send(request(1, [*CONNECT, (b"x", b"v" * 100)]))[0][3] == b"\x88"
    answer = peer.send(request(3, [*CONNECT, (b"x", b"v" * 101)]))
    assert b"431" in answer[0][3]
    assert answer[1] == reset(3, ErrorCode.NO_ERROR)


def test_header_block_limits() -> None:
    limits = replace(Limits(), max_header_block_bytes=1000, max_continuations=3)
    block = encode([*CONNECT, (b"x", b"v" * 900)])
    block += b"\x00\x01y" + bytes([1000 - len(block) - 4]) + b"w" * (1000 - len(block) - 4)
    assert len(block) == 1000
    peer = RawPeer(Role.SERVER, limits)
    peer.send(frames.headers(1, block, end_stream=False, max_frame_bytes=250))
    assert peer.side.requests, "1,000 bytes in three CONTINUATION frames"
    assert (
        RawPeer(Role.SERVER, limits)
        .fails(frames.headers(1, block, end_stream=False, max_frame_bytes=249))
        .reason
        is Reason.H2_FLOOD
    )
    first = frames.frame(frames.HEADERS, 0, 1, block[:500])
    over = first + frames.frame(frames.CONTINUATION, 4, 1, block[500:] + b"z")
    assert RawPeer(Role.SERVER, limits).fails(over).code is ErrorCode.ENHANCE_YOUR_CALM


# --- Floods


FLOODS = {
    "ping": lambda n: frames.frame(frames.PING, 0, 0, bytes(8)),
    "settings": lambda n: frames.settings({}),
    "empty data": lambda n: data(1, b""),
    "empty padded data": lambda n: data(1, b"\x02\x00\x00", frames.PADDED),
    "priority": lambda n: frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "unknown frames": lambda n: frames.frame(0xFA, 0, 0),
    "small window updates": lambda n: frames.window_update(0, 1),
    "resets of closed streams": lambda n: frames.rst_stream(3, ErrorCode.CANCEL),
    "window updates on closed streams": lambda n: frames.window_update(3, 100_000),
    "data on closed streams": lambda n: data(3, b"x"),
    "goaway": lambda n: frames.goaway(0, ErrorCode.NO_ERROR),
}


@pytest.mark.parametrize("name", FLOODS)
def test_control_floods_end_the_connection_at_the_limit(name: str) -> None:
    peer = RawPeer(Role.SERVER, TINY)
    peer.connect(1)
    peer.connect(3)
    peer.send(frames.rst_stream(3, ErrorCode.CANCEL))
    # The handshake's SETTINGS and that reset count too.
    for n in range(TINY.control_burst - 2):
        peer.send(FLOODS[name](n))
    assert peer.fails(FLOODS[name](99)).reason is Reason.H2_FLOOD


def test_window_changes_in_one_frame_cost_as_much_as_they_touch() -> None:
    changes = frames.frame(SETTINGS, 0, 0, b"".join(b"\x00\x04" + n.to_bytes(4, "big") for n in range(8)))
    RawPeer(Role.SERVER, TINY).send(changes)
    loaded = RawPeer(Role.SERVER, TINY)
    for stream_id in (1, 3):
        loaded.connect(stream_id)
    assert loaded.fails(changes).reason is Reason.H2_FLOOD


def test_a_header_bomb_ends_the_connection() -> None:
    peer = RawPeer(Role.SERVER, replace(Limits(), max_header_list_bytes=2000))
    bomb = encode(CONNECT) + b"\x82" * 1000
    assert peer.fails(frames.frame(frames.HEADERS, 4, 1, bomb)).reason is Reason.H2_FLOOD


def test_the_same_frames_pass_at_the_allowed_rate() -> None:
    peer = RawPeer(Role.SERVER, TINY)
    for n in range(100):
        peer.side.now_s += 1.0
        peer.send(FLOODS["ping"](n))


def test_rapid_reset() -> None:
    """CVE-2023-44487: tunnels opened and reset before they are answered cost us a dial each."""
    peer = RawPeer(Role.SERVER, TINY)
    peer.side.accept = False
    for n in range(TINY.reset_burst):
        peer.send(request(2 * n + 1), frames.rst_stream(2 * n + 1, ErrorCode.CANCEL))
    assert peer.fails(request(99), frames.rst_stream(99, ErrorCode.CANCEL)).reason is Reason.H2_FLOOD


def test_resets_of_answered_tunnels_are_what_applications_do() -> None:
    peer = RawPeer(Role.SERVER, replace(TINY, control_burst=1000))
    for n in range(50):
        peer.send(request(2 * n + 1), frames.rst_stream(2 * n + 1, ErrorCode.CONNECT_ERROR))
    assert len(peer.side.requests) == 50


MADE_YOU_RESET = {
    "zero window update": lambda s: request(s) + frames.window_update(s, 0),
    "window overflow": lambda s: request(s) + frames.window_update(s, 2**31 - 1),
    "data after end": lambda s: request(s, end=True) + data(s, b"x"),
    "malformed request": lambda s: request(s, [(b":method", b"CONNECT")]),
    "not connect": lambda s: request(
        s, [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")]
    ),
    "long header list": lambda s: request(s, [*CONNECT, (b"x", b"v" * 3000)]),
}


@pytest.mark.parametrize("name", MADE_YOU_RESET)
def test_made_you_reset(name: str) -> None:
    """CVE-2025-8671: the peer provokes our resets, so that its own never count."""
    peer = RawPeer(Role.SERVER, replace(TINY, max_header_list_bytes=2000))
    for n in range(TINY.reset_burst):
        peer.send(MADE_YOU_RESET[name](2 * n + 1))
    assert peer.fails(MADE_YOU_RESET[name](99)).reason is Reason.H2_FLOOD


def test_tunnels_beyond_the_limit_are_a_flood_too() -> None:
    peer = RawPeer(Role.SERVER, TINY)
    for n in range(TINY.max_tunnels + TINY.reset_burst):
        peer.connect(2 * n + 1)
    assert peer.fails(request(99)).reason is Reason.H2_FLOOD


def test_interim_response_flood() -> None:
    peer = RawPeer(Role.CLIENT, TINY)
    peer.side.open()
    hint = request(1, [(b":status", b"103")])
    for _ in range(TINY.control_burst - 1):
        peer.send(hint)
    assert peer.fails(hint).reason is Reason.H2_FLOOD


# --- GOAWAY


def test_goaway_resets_only_what_the_server_did_not_act_on() -> None:
    peer = RawPeer(Role.CLIENT)
    first, second = peer.side.open(), peer.side.open()
    peer.send(frames.goaway(1, ErrorCode.NO_ERROR, b"bye"))
    assert second.log == [("reset", "REFUSED_STREAM", "peer")]
    assert first.log == []
    assert peer.side.codec.room == 0
    peer.send(request(1, [(b":status", b"200")]), data(1, b"goes on"))
    assert first.data == b"goes on"
