# SPDX-License-Identifier: Apache-2.0
"""The writing half: frames within the peer's windows, ends in last frames, turns, hyper-h2 as the peer."""

from __future__ import annotations

from dataclasses import replace

import h2.config
import h2.connection
import h2.events
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from tests.support.h2peer import split
from tests.support.http2 import GET, OK, POST, RawPeer, Side, data, exchange, heads, pair, request
from waypoint.http.h2_fields import encode_fields
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import Framing

LIMITS = Http2Limits()
DATA, HEADERS, RST = frames.DATA, frames.HEADERS, frames.RST_STREAM


def kinds(encoded: bytes) -> list[tuple[int, int]]:
    """Split frames into (type, flags)."""
    return [(kind, flags) for kind, flags, _, _ in split(encoded)]


def asked(*, end: bool = True) -> Side:
    """A server that was asked by stream 1."""
    peer = RawPeer()
    peer.send(heads(1, GET if end else POST, end=end))
    return peer.side


def test_the_first_bytes_are_settings() -> None:
    made = Side(Role.CLIENT, replace(LIMITS, header_table_bytes=100)).codec.take()
    assert made.startswith(frames.PREFACE)
    (_, _, _, values), (_, _, _, credit) = split(made.removeprefix(frames.PREFACE))
    announced = dict(frames.parse_settings(values))
    assert announced == {
        frames.INITIAL_WINDOW_SIZE: 65536,
        frames.MAX_FRAME_SIZE: 65536,
        frames.MAX_HEADER_LIST_SIZE: 65536,
        frames.ENABLE_PUSH: 0,
        frames.HEADER_TABLE_SIZE: 100,
    }
    assert int.from_bytes(credit, "big") == LIMITS.connection_window_bytes - 65535
    served = dict(frames.parse_settings(split(Side(Role.SERVER).codec.take())[0][3]))
    assert served[frames.MAX_CONCURRENT_STREAMS] == LIMITS.max_streams
    assert frames.ENABLE_PUSH not in served


def test_the_end_is_in_the_last_frame_of_a_turn() -> None:
    side = asked()
    side.respond()
    side.codec.send_data(side.stream(), b"x")
    side.codec.send_end(side.stream())
    assert kinds(side.codec.take()) == [(HEADERS, 4), (DATA, 1)]
    side = asked()
    side.respond()
    side.codec.send_end(side.stream())
    assert kinds(side.codec.take()) == [(HEADERS, 5)]
    side = asked()
    side.respond()
    side.codec.send_data(side.stream(), bytes(10_000))
    side.codec.send_end(side.stream())
    assert kinds(side.codec.take()) == [(HEADERS, 4), (DATA, 1)]


def test_an_end_on_its_own_comes_in_a_frame_of_its_own() -> None:
    side = asked()
    side.respond()
    side.codec.take()
    side.codec.send_end(side.stream())
    assert split(side.codec.take()) == [(DATA, 1, 1, b"")]
    assert not side.codec.streams


def test_another_streams_frames_do_not_get_the_end() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET, end=True), heads(3, GET, end=True))
    side = peer.side
    side.respond(1)
    side.respond(3)
    side.codec.send_data(side.stream(3), b"3")
    side.codec.send_end(side.stream(1))
    assert [(kind, flags, stream) for kind, flags, stream, _ in split(side.codec.take())] == [
        (HEADERS, 5, 1),
        (HEADERS, 4, 3),
        (DATA, 0, 3),
    ]


def test_trailers_are_the_end() -> None:
    side = asked()
    side.respond()
    side.codec.send_data(side.stream(), b"x")
    side.codec.send_end(side.stream(), encode_fields([("a", "1")]))
    assert kinds(side.codec.take()) == [(HEADERS, 4), (DATA, 0), (HEADERS, 5)]


def test_an_interim_head_never_ends_a_stream() -> None:
    side = asked()
    side.codec.send_interim(side.stream(), b"\x08\x03103")
    side.codec.send_end(side.stream())
    assert kinds(side.codec.take()) == [(HEADERS, 4), (DATA, 1)]


def test_a_response_before_the_end_of_its_request_stops_it() -> None:
    side = asked(end=False)
    side.respond()
    side.codec.send_end(side.stream())
    *_, last = split(side.codec.take())
    assert last == (RST, 0, 1, bytes(4))
    assert not side.codec.streams


def test_nothing_is_sent_after_the_end() -> None:
    side = asked()
    stream = side.stream()
    side.respond()
    side.codec.send_end(stream)
    side.codec.take()
    side.respond()
    side.codec.send_data(stream, b"x")
    side.codec.send_end(stream, b"\x88")
    side.codec.reset(stream, ErrorCode.CANCEL)
    assert side.codec.take() == b""


def test_a_long_block_is_continued() -> None:
    client, server = pair()
    client.open(request(headers=[("x", "y" * 40_000)]), end=True)
    exchange(client, server)
    assert server.requests[0].headers == [("x", "y" * 40_000)]
    assert server.recorders[1].log == [[]]


def test_a_window_is_kept_to_the_byte() -> None:
    peer = RawPeer(settings={frames.INITIAL_WINDOW_SIZE: 10})
    peer.send(heads(1, GET, end=True))
    side = peer.side
    drained: list[str] = []
    side.recorders[1].hook = drained.append
    side.respond()
    side.codec.send_data(side.stream(), b"0123456789")
    side.codec.send_data(side.stream(), b"abc")
    side.codec.send_end(side.stream(), encode_fields([("a", "1")]))
    assert [payload for kind, _, _, payload in split(side.codec.take()) if kind == DATA] == [b"0123456789"]
    assert side.stream().queued_bytes == 3
    assert peer.send(frames.window_update(1, 2)) == [(DATA, 0, 1, b"ab")]
    *_, trailers = peer.send(frames.window_update(1, 1))
    assert trailers[:3] == (HEADERS, 5, 1)
    assert not side.codec.streams


def test_a_smaller_initial_window_may_leave_less_than_nothing() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET, end=True))
    side = peer.side
    side.respond()
    side.codec.send_data(side.stream(), bytes(100))
    side.codec.take()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 50}))
    assert side.stream().send_window == -50
    side.codec.send_data(side.stream(), b"x")
    assert peer.send(frames.window_update(1, 50)) == []
    assert peer.send(frames.window_update(1, 1)) == [(DATA, 0, 1, b"x")]


def test_drained_is_told_when_nothing_waits() -> None:
    peer = RawPeer(settings={frames.INITIAL_WINDOW_SIZE: 0})
    peer.send(heads(1, GET, end=True))
    side = peer.side
    told: list[str] = []
    side.recorders[1].hook = told.append
    side.respond()
    side.codec.send_data(side.stream(), b"abc")
    peer.send(frames.window_update(1, 2))
    assert told == []
    peer.send(frames.window_update(1, 1))
    assert told == ["drained"]


def test_streams_take_turns_when_the_connections_window_is_short() -> None:
    peer = RawPeer(settings={frames.INITIAL_WINDOW_SIZE: 1_000_000})
    peer.send(*(heads(stream, GET, end=True) for stream in (1, 3, 5)))
    side = peer.side
    for stream_id in (1, 3, 5):
        side.respond(stream_id)
        side.codec.send_data(side.stream(stream_id), bytes(200_000))
    side.codec.take()
    sent = [stream for kind, _, stream, _ in peer.send(frames.window_update(0, 98_304)) if kind == DATA]
    assert sent == [1, 3, 5, 1, 3, 5]


def test_the_peers_frame_size_is_used_up_to_our_own() -> None:
    peer = RawPeer(settings={frames.MAX_FRAME_SIZE: 2**24 - 1, frames.INITIAL_WINDOW_SIZE: 1_000_000})
    peer.send(heads(1, GET, end=True), frames.window_update(0, 1_000_000))
    peer.side.respond()
    peer.side.codec.send_data(peer.side.stream(), bytes(150_000))
    sizes = [len(payload) for kind, _, _, payload in split(peer.side.codec.take()) if kind == DATA]
    assert sizes == [65536, 65536, 18928]


def test_abandoning_ends_every_stream() -> None:
    client, _ = pair()
    recorders = [client.open(), client.open()]
    client.codec.abandon(ErrorCode.CANCEL, "gone", by_peer=True)
    assert [recorder.log for recorder in recorders] == [[("CANCEL", "peer")]] * 2
    assert client.codec.room == 0


# --- Against hyper-h2, which we did not write

bodies = st.lists(st.binary(min_size=1, max_size=40_000), max_size=4)


def reference(*, client: bool) -> h2.connection.H2Connection:
    peer = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=client, header_encoding="latin-1")
    )
    peer.initiate_connection()
    return peer


def talk(side: Side, peer: h2.connection.H2Connection) -> list[h2.events.Event]:
    """Move bytes until nobody has any; hyper-h2 returns credit at once."""
    events: list[h2.events.Event] = []
    while True:
        ours, theirs = side.codec.take(), peer.data_to_send()
        if not ours and not theirs:
            return events
        side.codec.receive(theirs)
        for event in peer.receive_data(ours):
            events.append(event)
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)


@settings(deadline=None, max_examples=40)
@given(bodies, st.booleans())
def test_hyper_h2_reads_our_responses(pieces: list[bytes], trailers: bool) -> None:
    side, peer = Side(Role.SERVER), reference(client=True)
    peer.send_headers(
        1, [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")], end_stream=True
    )
    talk(side, peer)
    assert side.recorders[1].log == [[]]
    side.respond(headers=[("x", "\xe4")])
    for piece in pieces:
        side.codec.send_data(side.stream(), piece)
    side.codec.send_end(side.stream(), encode_fields([("sum", "1")]) if trailers else b"")
    events = talk(side, peer)
    (got,) = [event for event in events if isinstance(event, h2.events.ResponseReceived)]
    assert list(got.headers) == [(":status", "200"), ("x", "\xe4")]
    received = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    assert received == b"".join(pieces)
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    ends = [list(event.headers) for event in events if isinstance(event, h2.events.TrailersReceived)]
    assert ends == ([[("sum", "1")]] if trailers else [])


@settings(deadline=None, max_examples=40)
@given(bodies, bodies)
def test_hyper_h2_answers_our_requests(up: list[bytes], down: list[bytes]) -> None:
    side, peer = Side(Role.CLIENT), reference(client=False)
    recorder = side.open(request("PUT", headers=[("x", "1")]))
    assert recorder.stream is not None
    for piece in up:
        side.codec.send_data(recorder.stream, piece)
    side.codec.send_end(recorder.stream)
    events = talk(side, peer)
    received = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    assert received == b"".join(up)
    peer.send_headers(1, [(":status", "200"), ("y", "2")])
    rest = b"".join(down)
    while rest:
        size = min(len(rest), peer.local_flow_control_window(1), peer.max_outbound_frame_size)
        peer.send_data(1, rest[:size])
        rest = rest[size:]
        talk(side, peer)
    peer.send_headers(1, [("sum", "3")], end_stream=True)
    talk(side, peer)
    expected: list[object] = [(200, [("y", "2")], Framing.CHUNKED)]
    assert recorder.log == [*expected, *([b"".join(down)] if down else []), [("sum", "3")]]
    assert not side.codec.streams


def test_a_response_in_one_write_is_read_in_one() -> None:
    peer = RawPeer(Role.CLIENT)
    recorder = peer.side.open(request("GET", framing=Framing.NONE), end=True)
    peer.send(heads(1, OK), data(1, b"hello", end=True))
    assert recorder.log == [(200, [], Framing.CHUNKED), b"hello", []]
