# SPDX-License-Identifier: Apache-2.0
"""Bytes into frames, whatever their chunking; DATA, its windows and its padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.hpack import encode
from mesh.hbone.stream import Role
from tests.support.h2peer import split
from tests.support.http2 import GET, OK, POST, RawPeer, Side, data, exchange, heads, pair
from waypoint.http.h2_limits import Http2Limits

LIMITS = Http2Limits()
PREFACE = frames.PREFACE + frames.settings({})


def test_a_preface_that_is_none_is_refused_at_its_first_wrong_byte() -> None:
    for sent in (b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSX"):
        side = Side(Role.SERVER)
        with pytest.raises(ConnectionFailedError, match="preface"):
            side.codec.receive(sent)


# --- Any chunking

pieces = st.sampled_from(
    [
        heads(1, POST),
        heads(3, [*POST, (b"content-length", b"4")]),
        heads(5, GET, end=True),
        data(1, b"some bytes"),
        data(1, b"\x03padded\0\0\0", flags=frames.PADDED),
        data(1, b"", end=True),
        data(3, b"1234", end=True),
        data(3, b"12345", end=True),
        data(9, b"never opened"),
        heads(1, [(b"grpc-status", b"0")], end=True),
        heads(7, [*GET, (b"connection", b"close")], end=True),
        frames.frame(frames.HEADERS, 0, 7, encode(POST)[:4]),
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 7, encode(POST)[4:]),
        frames.frame(frames.HEADERS, frames.END_HEADERS, 9, b"\x40\x01a\x011" + encode(GET) + b"\xbe"),
        frames.rst_stream(1, ErrorCode.CANCEL),
        frames.window_update(0, 70_000),
        frames.frame(frames.PING, 0, 0, b"12345678"),
        frames.frame(0xEE, 0, 0, b"unknown"),
        b"\0\0",
    ]
)


def told(stream: bytes, cuts: list[int]) -> tuple[object, ...]:
    """All that a server learns of `stream` cut at `cuts`, and what it answers."""
    side = Side(Role.SERVER)
    error = None
    try:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            side.codec.receive(stream[begin:end])
    except ConnectionFailedError as failed:
        error = (failed.code, failed.detail)
    logs = {stream_id: recorder.log for stream_id, recorder in side.recorders.items()}
    return side.requests, logs, side.refused, error, split(side.codec.take())


@settings(deadline=None, max_examples=300)
@given(st.data(), st.lists(pieces, max_size=10))
def test_chunks_make_no_difference(draw: st.DataObject, parts: list[bytes]) -> None:
    stream = PREFACE + b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    assert told(stream, cuts) == told(stream, [])


@settings(deadline=None, max_examples=100)
@given(st.lists(pieces, max_size=6))
def test_nor_does_one_byte_at_a_time(parts: list[bytes]) -> None:
    stream = PREFACE + b"".join(parts)
    assert told(stream, list(range(1, len(stream)))) == told(stream, [])


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(Role)), st.binary(max_size=200))
def test_no_bytes_break_the_codec(role: Role, garbage: bytes) -> None:
    side = Side(role)
    if role is Role.CLIENT:
        side.open()
    code = None
    try:
        side.codec.receive((PREFACE if role is Role.SERVER else frames.settings({})) + garbage)
    except ConnectionFailedError as error:
        code = error.code
    answers = split(side.codec.take().removeprefix(frames.PREFACE))
    ends = [ErrorCode(payload[7]) for kind, _, _, payload in answers if kind == frames.GOAWAY]
    assert ends == ([] if code is None else [code])


def test_a_half_frame_is_known_as_such() -> None:
    peer = RawPeer()
    codec = peer.side.codec
    assert not codec.mid_frame
    codec.receive(heads(1, POST)[:5])
    assert codec.mid_frame
    codec.receive(heads(1, POST)[5:])
    assert not codec.mid_frame
    codec.receive(frames.frame(frames.HEADERS, 0, 3, encode(GET)))
    assert codec.mid_frame


# --- Sizes


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (frames.DATA, LIMITS.max_frame_bytes),
        (frames.HEADERS, LIMITS.max_frame_bytes),
        (frames.PING, LIMITS.max_control_frame_bytes),
        (0xEE, LIMITS.max_control_frame_bytes),
    ],
)
def test_a_frame_over_its_limit_is_refused_by_its_header(kind: int, limit: int) -> None:
    peer = RawPeer()
    peer.send(heads(1, POST))
    header = (limit << 8 | kind).to_bytes(4, "big") + b"\0" + (0 if kind > 1 else 1).to_bytes(4, "big")
    peer.side.codec.receive(header)
    peer = RawPeer()
    peer.send(heads(1, POST))
    header = (limit + 1 << 8 | kind).to_bytes(4, "big") + header[4:]
    assert peer.fails(header) is ErrorCode.FRAME_SIZE_ERROR


# --- Windows


def test_a_stream_takes_its_window_and_no_byte_more() -> None:
    limits = replace(LIMITS, initial_window_bytes=70_000)
    for extra in (0, 1):
        peer = RawPeer(limits=limits)
        peer.send(heads(1, POST))
        peer.side.codec.pause(peer.side.stream())
        peer.send(data(1, bytes(60_000)), heads(3, POST))
        if extra:
            assert peer.resets(data(1, bytes(10_001))) is ErrorCode.FLOW_CONTROL_ERROR
        else:
            assert peer.send(data(1, bytes(10_000))) == []
            assert len(peer.side.recorders[1].data) == 70_000
        peer.send(data(3, b"x"))
        assert peer.side.recorders[3].data == b"x"


def test_the_connection_takes_its_window_and_no_byte_more() -> None:
    peer = RawPeer(limits=replace(LIMITS, connection_window_bytes=65535, initial_window_bytes=70_000))
    peer.send(heads(1, POST), heads(3, POST))
    peer.side.codec._receive_left = 10
    peer.side.codec._receive_owed = 0
    assert peer.send(data(1, b"12345"), data(3, b"12345")) == []
    assert peer.fails(data(1, b"x")) is ErrorCode.FLOW_CONTROL_ERROR


def test_credit_comes_back_while_the_consumer_takes_and_grows_the_window() -> None:
    client, server = pair()
    mine = client.open()
    body = bytes(3_000_000)
    client.codec.send_data(mine.stream, body)
    client.codec.send_end(mine.stream)
    exchange(client, server)
    assert server.recorders[1].log == [body, []]
    assert server.stream().receive.size > LIMITS.initial_window_bytes  # type: ignore[union-attr]


def test_a_paused_consumer_gets_its_window_and_no_other_stream_waits() -> None:
    client, server = pair()
    first, second = client.open(), client.open()
    exchange(client, server)
    server.codec.pause(server.stream(1))
    for recorder in (first, second):
        client.codec.send_data(recorder.stream, bytes(200_000))
        client.codec.send_end(recorder.stream)
    exchange(client, server)
    assert len(server.recorders[1].data) == LIMITS.initial_window_bytes
    assert server.recorders[3].log == [bytes(200_000), []]
    server.codec.resume(server.stream(1))
    exchange(client, server)
    assert server.recorders[1].log == [bytes(200_000), []]


def test_padding_counts_and_is_credited() -> None:
    peer = RawPeer()
    peer.send(heads(1, POST))
    padded = data(1, b"\xff" + b"x" + bytes(255), flags=frames.PADDED)
    answers = peer.send(padded * 400)
    assert peer.side.recorders[1].data == b"x" * 400
    assert any(kind == frames.WINDOW_UPDATE and stream == 1 for kind, _, stream, _ in answers)


def test_padding_longer_than_its_frame_is_refused() -> None:
    for payload in (b"", b"\x01", b"\x05abcd"):
        peer = RawPeer()
        peer.send(heads(1, POST))
        assert peer.fails(data(1, payload, flags=frames.PADDED)) is ErrorCode.PROTOCOL_ERROR


def test_data_on_closed_streams_is_dropped_and_counts() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET, end=True), heads(3, POST))
    assert peer.resets(data(1, b"more")) is ErrorCode.STREAM_CLOSED
    peer.side.codec.reset(peer.side.stream(3), ErrorCode.CANCEL)
    peer.side.codec.take()
    left = peer.side.codec._receive_left
    assert peer.send(data(3, b"on its way")) == []
    assert peer.side.codec._receive_left == left - 10
    peer.send(heads(5, POST), frames.rst_stream(5, ErrorCode.CANCEL))
    assert peer.resets(data(5, b"x")) is ErrorCode.STREAM_CLOSED


def test_a_consumer_may_reset_its_stream_in_the_middle_of_its_data() -> None:
    peer = RawPeer(Role.CLIENT)
    recorder = peer.side.open()
    recorder.hook = lambda what: peer.side.codec.reset(recorder.stream, ErrorCode.CANCEL)  # type: ignore[arg-type]
    peer.send(heads(1, OK))
    assert recorder.log == [(200, [], recorder.log[0][2])]  # type: ignore[index]
    recorder = peer.side.open()
    peer.send(heads(3, OK))
    recorder.hook = lambda what: peer.side.codec.reset(recorder.stream, ErrorCode.CANCEL)  # type: ignore[arg-type]
    assert peer.resets(data(3, b"12"), data(3, b"34", end=True)) is ErrorCode.CANCEL
    assert recorder.data == b"12"
