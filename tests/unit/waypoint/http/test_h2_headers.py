# SPDX-License-Identifier: Apache-2.0
"""Header blocks on streams: requests, responses, trailers, and every way to send them wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.hpack import encode
from mesh.hbone.stream import Role
from tests.support.h2peer import split
from tests.support.http2 import GET, OK, POST, RawPeer, data, exchange, heads, pair, request
from waypoint.http.h2_fields import encode_fields, encode_response
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import Framing, ResponseHead

LIMITS = Http2Limits()


def test_a_call_with_trailers_both_ways() -> None:
    client, server = pair()
    mine = client.open(request(headers=[("content-type", "application/grpc")]))
    client.codec.send_data(mine.stream, b"question")
    client.codec.send_end(mine.stream, encode_fields([("x-sum", "1")]))
    exchange(client, server)
    assert server.requests[0].headers == [("content-type", "application/grpc")]
    assert server.recorders[1].log == [b"question", [("x-sum", "1")]]
    server.respond(headers=[("x", "1")])
    server.codec.send_data(server.stream(), b"answer")
    server.codec.send_end(server.stream(), encode_fields([("grpc-status", "0")]))
    exchange(client, server)
    assert mine.log == [(200, [("x", "1")], Framing.CHUNKED), b"answer", [("grpc-status", "0")]]
    assert not client.codec.streams
    assert not server.codec.streams


def test_a_request_without_a_body_ends_with_its_head() -> None:
    client, server = pair()
    client.open(request("GET", framing=Framing.NONE), end=True)
    exchange(client, server)
    assert server.requests[0].framing is Framing.NONE
    assert server.recorders[1].log == [[]]


def test_interim_heads_come_before_the_one() -> None:
    client, server = pair()
    mine = client.open()
    exchange(client, server)
    interim = ResponseHead(status=103, reason="", headers=[("link", "a")], framing=Framing.NONE)
    server.codec.send_interim(server.stream(), encode_response(interim))
    server.respond()
    server.codec.send_interim(server.stream(), encode_response(interim))
    exchange(client, server)
    assert [entry[0] for entry in mine.log] == [103, 200]  # type: ignore[index]


@pytest.mark.parametrize("stream_id", [2, 4])
def test_a_client_opens_odd_streams(stream_id: int) -> None:
    assert RawPeer().fails(heads(stream_id, GET)) is ErrorCode.PROTOCOL_ERROR


def test_a_skipped_stream_never_was_and_a_closed_one_stays_so() -> None:
    peer = RawPeer()
    peer.send(heads(5, GET, end=True))
    assert peer.fails(heads(3, GET, end=True)) is ErrorCode.PROTOCOL_ERROR
    peer = RawPeer()
    peer.send(heads(1, GET, end=True), heads(3, GET), frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.fails(heads(1, GET, end=True)) is ErrorCode.STREAM_CLOSED


def test_a_block_on_its_way_to_a_stream_that_we_reset_is_no_fault() -> None:
    peer = RawPeer()
    peer.send(heads(1, POST))
    peer.side.codec.reset(peer.side.stream(), ErrorCode.CANCEL)
    peer.side.codec.take()
    # It changes the table all the same.
    trailers = b"\x40\x01a\x011"
    assert peer.send(frames.headers(1, trailers, end_stream=True, max_frame_bytes=16384)) == []
    peer.send(frames.headers(3, encode(GET) + b"\xbe", end_stream=True, max_frame_bytes=16384))
    assert peer.side.requests[-1].headers == [("a", "1")]


def test_a_malformed_request_is_reset_and_told() -> None:
    peer = RawPeer()
    assert peer.resets(heads(1, [*GET, (b"connection", b"close")])) is ErrorCode.PROTOCOL_ERROR
    assert peer.side.refused == [
        "PROTOCOL_ERROR, malformed header list: connection-specific field connection"
    ]
    assert not peer.side.requests
    assert peer.send(heads(3, GET, end=True)) == []
    assert len(peer.side.requests) == 1


def test_a_head_over_a_limit_is_answered() -> None:
    peer = RawPeer(limits=replace(LIMITS, max_header_list_bytes=4096))
    answer = peer.send(heads(1, [*GET, (b"x", b"y" * 4096)], end=True))
    assert [(kind, payload) for kind, _, _, payload in answer] == [
        (frames.HEADERS, encode([(b":status", b"431")]))
    ]
    assert peer.side.refused == ["header list over 4096 bytes"]


def test_a_head_of_twice_the_limit_is_an_attack() -> None:
    peer = RawPeer(limits=replace(LIMITS, max_header_list_bytes=4096))
    assert peer.fails(heads(1, [*GET, *[(b"x", b"y" * 1000)] * 9])) is ErrorCode.ENHANCE_YOUR_CALM


def test_streams_beyond_the_limit_are_refused() -> None:
    peer = RawPeer(limits=replace(LIMITS, max_streams=2))
    assert peer.send(heads(1, GET), heads(3, GET)) == []
    assert peer.resets(heads(5, GET)) is ErrorCode.REFUSED_STREAM
    assert len(peer.side.requests) == 2
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL), heads(7, GET))
    assert len(peer.side.requests) == 3


def test_streams_after_goaway_are_refused() -> None:
    peer = RawPeer()
    peer.side.codec.stop_opening()
    assert peer.resets(heads(1, GET)) is ErrorCode.REFUSED_STREAM
    assert not peer.side.requests


def test_trailers_end_the_stream_and_hold_fields_only() -> None:
    for trailers, end in (([(b"a", b"1")], False), ([(b":path", b"/")], True)):
        peer = RawPeer()
        peer.send(heads(1, POST))
        assert peer.resets(heads(1, trailers, end=end)) is ErrorCode.PROTOCOL_ERROR
        assert peer.side.recorders[1].log == [("PROTOCOL_ERROR", "own")]


def test_nothing_follows_the_end() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET, end=True))
    assert peer.resets(heads(1, [(b"a", b"1")], end=True)) is ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize(
    ("sent", "total", "how"),
    [(b"1234", 5, "short"), (b"123456", 5, "over")],
)
@pytest.mark.parametrize("with_trailers", [False, True])
def test_a_body_is_as_long_as_its_head_says(sent: bytes, total: int, how: str, with_trailers: bool) -> None:
    peer = RawPeer()
    peer.send(heads(1, [*POST, (b"content-length", b"%d" % total)]))
    rest = heads(1, [(b"a", b"1")], end=True) if with_trailers else data(1, b"", end=True)
    kind, _, _, payload = peer.send(data(1, sent), rest if how == "short" else b"")[-1]
    assert (kind, int.from_bytes(payload, "big")) == (frames.RST_STREAM, ErrorCode.PROTOCOL_ERROR)
    assert [] not in peer.side.recorders[1].log


def test_a_body_of_its_length_is_whole() -> None:
    peer = RawPeer()
    peer.send(heads(1, [*POST, (b"content-length", b"5")]), data(1, b"12"), data(1, b"345", end=True))
    assert peer.side.recorders[1].log == [b"12345", []]


def split_block(count: int, *, last: bool = True) -> bytes:
    """A request in HEADERS and `count` CONTINUATION frames."""
    block = encode(GET)
    parts = [frames.frame(frames.HEADERS, frames.END_STREAM, 1, block[:3])]
    parts += [frames.frame(frames.CONTINUATION, 0, 1, b"") for _ in range(count - 1)]
    parts.append(frames.frame(frames.CONTINUATION, frames.END_HEADERS if last else 0, 1, block[3:]))
    return b"".join(parts)


def test_continuations_up_to_their_limit() -> None:
    peer = RawPeer()
    assert peer.send(split_block(LIMITS.max_continuations)) == []
    assert len(peer.side.requests) == 1
    assert RawPeer().fails(split_block(LIMITS.max_continuations + 1)) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_up_to_its_limit() -> None:
    limits = replace(LIMITS, max_header_block_bytes=20_000, max_header_list_bytes=30_000)
    size = 20_000 - len(encode([*GET, (b"x", b"y" * 19_000)])) + 19_000
    for extra in (0, 1):
        block = encode([*GET, (b"x", b"y" * (size + extra))])
        assert len(block) == 20_000 + extra
        encoded = frames.headers(1, block, end_stream=True, max_frame_bytes=16384)
        peer = RawPeer(limits=limits)
        if extra:
            assert peer.fails(encoded) is ErrorCode.ENHANCE_YOUR_CALM
        else:
            peer.send(encoded)
            assert len(peer.side.requests) == 1


@pytest.mark.parametrize(
    "between",
    [
        data(1, b"x"),
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.frame(0x21, 0, 0, b""),
        frames.frame(frames.CONTINUATION, 0, 3, b""),
        heads(3, GET),
    ],
)
def test_nothing_comes_between_the_parts_of_a_block(between: bytes) -> None:
    begun = frames.frame(frames.HEADERS, 0, 1, encode(GET))
    assert RawPeer().fails(begun, between) is ErrorCode.PROTOCOL_ERROR


def test_a_continuation_of_nothing() -> None:
    peer = RawPeer()
    peer.send(heads(1, GET))
    assert (
        peer.fails(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, b"")) is ErrorCode.PROTOCOL_ERROR
    )


def test_padding_and_priority_are_taken_off() -> None:
    peer = RawPeer()
    flags = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY
    peer.send(frames.frame(frames.HEADERS, flags, 1, b"\x03" + b"\0\0\0\0\x10" + encode(GET) + bytes(3)))
    assert peer.side.requests[0].target == "/"


@pytest.mark.parametrize("payload", [b"", b"\x05\0\0\0\0\x10", b"\x01\0\0\0\0"])
def test_padding_longer_than_its_frame(payload: bytes) -> None:
    flags = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY
    assert RawPeer().fails(frames.frame(frames.HEADERS, flags, 1, payload)) is ErrorCode.PROTOCOL_ERROR


def test_a_stream_does_not_depend_on_itself() -> None:
    flags = frames.END_HEADERS | frames.HAS_PRIORITY
    payload = b"\0\0\0\x01\x10" + encode(GET)
    assert RawPeer().fails(frames.frame(frames.HEADERS, flags, 1, payload)) is ErrorCode.PROTOCOL_ERROR


def test_a_block_that_cannot_be_decoded_ends_the_connection() -> None:
    broken = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")
    assert RawPeer().fails(broken) is ErrorCode.COMPRESSION_ERROR


def test_a_servers_faults_end_its_stream_only() -> None:
    cases = [
        (heads(1, [(b":status", b"101")]), ErrorCode.PROTOCOL_ERROR),
        (heads(1, [(b"x", b"1")]), ErrorCode.PROTOCOL_ERROR),
        (data(1, b"early"), ErrorCode.PROTOCOL_ERROR),
        (heads(1, [*OK, (b"content-length", b"3")], end=True), ErrorCode.PROTOCOL_ERROR),
        (heads(1, [*OK, *[(b"x", b"1")] * 100]), ErrorCode.ENHANCE_YOUR_CALM),
        (heads(1, [(b":status", b"204")]) + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    ]
    for encoded, code in cases:
        peer = RawPeer(Role.CLIENT)
        recorder = peer.side.open()
        other = peer.side.open()
        assert peer.resets(encoded) is code
        assert recorder.log[-1] == (code.name, "own")
        peer.send(heads(3, OK, end=True))
        assert other.log == [(200, [], Framing.CHUNKED), []]


def test_a_response_to_a_head_request_has_a_length_and_no_body() -> None:
    peer = RawPeer(Role.CLIENT)
    recorder = peer.side.open(request("HEAD"), end=True)
    assert peer.send(heads(1, [*OK, (b"content-length", b"7")], end=True)) != []
    assert recorder.log == [(200, [("content-length", "7")], Framing.NONE), []]


def test_a_late_response_to_a_stream_that_we_reset_is_dropped() -> None:
    peer = RawPeer(Role.CLIENT)
    recorder = peer.side.open()
    peer.side.codec.reset(recorder.stream, ErrorCode.CANCEL)  # type: ignore[arg-type]
    peer.side.codec.take()
    assert peer.send(heads(1, OK), data(1, b"late", end=True)) == []
    assert recorder.log == []
    assert peer.fails(heads(3, OK)) is ErrorCode.PROTOCOL_ERROR


def test_interim_responses_are_bounded() -> None:
    peer = RawPeer(Role.CLIENT, replace(LIMITS, control_burst=11, control_per_s=0.001))
    peer.side.open()
    interim = heads(1, [(b":status", b"103")])
    # SETTINGS were one.
    peer.send(interim * 10)
    assert peer.fails(interim) is ErrorCode.ENHANCE_YOUR_CALM


def test_malformed_requests_are_bounded() -> None:
    peer = RawPeer(limits=replace(LIMITS, reset_burst=3, reset_per_s=0.001))
    bad = [*GET, (b"te", b"gzip")]
    for stream_id in (1, 3, 5):
        assert peer.resets(heads(stream_id, bad)) is ErrorCode.PROTOCOL_ERROR
    assert peer.fails(heads(7, bad)) is ErrorCode.ENHANCE_YOUR_CALM


def test_the_last_frame_of_a_goaway_names_the_last_request() -> None:
    peer = RawPeer()
    peer.send(heads(7, GET, end=True))
    peer.side.codec.goaway(ErrorCode.NO_ERROR)
    ((_, _, _, payload),) = split(peer.side.codec.take())
    assert payload[:4] == (7).to_bytes(4, "big")
