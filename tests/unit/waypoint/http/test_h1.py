# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 framing: what is read, what is refused, and that chunking never matters."""

from __future__ import annotations

import http.client
import io
import itertools
import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.http.h1 import (
    Limits,
    MessageReader,
    format_chunk,
    format_last_chunk,
    format_request,
    format_response,
)
from waypoint.http.message import BadMessageError, Event, Framing, MessageEnd, RequestHead, ResponseHead


def read(
    data: bytes, *, requests: bool = True, method: str = "GET", limits: Limits | None = None
) -> list[Event]:
    reader = MessageReader(requests=requests, limits=limits)
    reader.next_message(method)
    reader.feed(data)
    return list(reader.events())


def head(data: bytes) -> RequestHead:
    first = read(data)[0]
    assert isinstance(first, RequestHead)
    return first


def test_request_without_body() -> None:
    events = read(b"GET /a?b=c HTTP/1.1\r\nHost: x.test\r\nX-Y:  z \r\n\r\n")
    assert isinstance(events[0], RequestHead)
    assert (events[0].method, events[0].target, events[0].authority) == ("GET", "/a?b=c", "x.test")
    assert events[0].headers == [("x-y", "z")]
    assert events[1] == MessageEnd()


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a@b/c\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcdXX0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n 4\r\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 4\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_smuggling_matrix_is_refused(message: bytes) -> None:
    with pytest.raises(BadMessageError):
        read(message)


def test_absolute_form_of_the_same_host_becomes_origin_form() -> None:
    assert head(b"GET http://X.test/a HTTP/1.1\r\nHost: x.test\r\n\r\n").target == "/a"
    assert head(b"GET http://x.test?q HTTP/1.1\r\nHost: x.test\r\n\r\n").target == "/?q"


def test_limits_at_the_limit() -> None:
    line, host = b"GET / HTTP/1.1\r\n", b"Host: x"
    size = len(line) + len(host)
    assert read(line + host + b"\r\n\r\n", limits=Limits(head_bytes=size))
    with pytest.raises(BadMessageError) as over:
        read(line + host + b"\r\n\r\n", limits=Limits(head_bytes=size - 1))
    assert over.value.status == 431
    two = line + host + b"\r\nA: b\r\n\r\n"
    assert read(two, limits=Limits(fields=2))
    with pytest.raises(BadMessageError) as many:
        read(two, limits=Limits(fields=1))
    assert many.value.status == 431
    with pytest.raises(BadMessageError) as long:
        read(b"GET /abc HTTP/1.1\r\nHost: x\r\n\r\n", limits=Limits(target_bytes=3))
    assert long.value.status == 414


def test_a_head_that_never_ends_is_refused() -> None:
    with pytest.raises(BadMessageError):
        read(b"GET / HTTP/1.1\r\nA: " + b"b" * 100, limits=Limits(head_bytes=64))


@pytest.mark.parametrize(
    ("message", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_keep_alive(message: bytes, keep_alive: bool) -> None:
    assert head(message).keep_alive is keep_alive


def test_upgrade_keeps_later_bytes_apart() -> None:
    reader = MessageReader(requests=True)
    reader.feed(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n\x81\x00")
    events = list(reader.events())
    assert isinstance(events[0], RequestHead)
    assert events[0].upgrade == "websocket"
    assert reader.take_rest() == b"\x81\x00"


def test_pipelined_requests_come_one_at_a_time() -> None:
    reader = MessageReader(requests=True)
    reader.feed(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
    first = list(reader.events())
    assert [e.target for e in first if isinstance(e, RequestHead)] == ["/1"]
    reader.next_message()
    assert [e.target for e in reader.events() if isinstance(e, RequestHead)] == ["/2"]


@pytest.mark.parametrize(
    ("method", "response", "framing"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Framing.LENGTH),
        ("GET", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", Framing.LENGTH),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Framing.NONE),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", Framing.NONE),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Framing.NONE),
        ("GET", b"HTTP/1.1 200 OK\r\n\r\nuntil close", Framing.CLOSE),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Framing.CHUNKED),
        ("CONNECT", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Framing.NONE),
    ],
)
def test_response_framing(method: str, response: bytes, framing: Framing) -> None:
    first = read(response, requests=False, method=method)[0]
    assert isinstance(first, ResponseHead)
    assert first.framing is framing


def test_interim_response_precedes_the_real_one() -> None:
    events = read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", requests=False)
    assert [e.status for e in events if isinstance(e, ResponseHead)] == [100, 204]


def test_body_until_close_ends_with_the_connection() -> None:
    reader = MessageReader(requests=False)
    reader.next_message("GET")
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert list(reader.events())[1] == b"abc"
    assert reader.eof() == MessageEnd()


def test_a_cut_message_is_an_error_and_an_idle_close_is_not() -> None:
    reader = MessageReader(requests=True)
    assert reader.eof() is None
    reader.feed(b"GET / HT")
    assert list(reader.events()) == []
    with pytest.raises(BadMessageError, match="closed inside"):
        reader.eof()


BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


def chunked_by(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


@given(bodies=BODIES, cuts=st.lists(st.integers(0, 10_000), max_size=20), chunked=st.booleans())
def test_any_chunking_gives_the_same_message(bodies: list[bytes], cuts: list[int], chunked: bool) -> None:
    body = b"".join(bodies)
    headers = [("x-a", "1")] + ([] if chunked else [("content-length", str(len(body)))])
    wire = format_request("POST", "/p", "h.test", headers, chunked=chunked)
    wire += b"".join(map(format_chunk, bodies)) + format_last_chunk([("x-t", "2")]) if chunked else body
    reader = MessageReader(requests=True)
    got: list[Event] = []
    for piece in chunked_by(wire, cuts):
        reader.feed(piece)
        got.extend(reader.events())
    assert b"".join(e for e in got if isinstance(e, bytes)) == body
    assert got[-1] == MessageEnd(trailers=[("x-t", "2")] if chunked else [])
    assert not reader.pending


class _Wire:
    """As much of a socket as http.client reads a response from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)


@given(bodies=BODIES)
def test_another_implementation_reads_what_we_write(bodies: list[bytes]) -> None:
    wire = format_response(200, "OK", [("x-a", "1")], chunked=True, close=True)
    wire += b"".join(map(format_chunk, bodies)) + format_last_chunk([])
    response = http.client.HTTPResponse(cast(socket.socket, _Wire(wire)), method="GET")
    response.begin()
    assert (response.status, response.getheader("x-a")) == (200, "1")
    assert response.read() == b"".join(bodies)
    response.close()


def test_a_parsed_request_is_written_with_one_host_and_its_fields() -> None:
    """nginx answers 400 to two."""
    (head, *_) = read(b"GET /a HTTP/1.1\r\nX-A: 1\r\nHost: x.test\r\nAccept: */*\r\n\r\n")
    assert isinstance(head, RequestHead)
    written = format_request(head.method, head.target, head.authority, head.headers, chunked=False)
    assert written == b"GET /a HTTP/1.1\r\nhost: x.test\r\nx-a: 1\r\naccept: */*\r\n\r\n"


def test_more_different_fields_than_are_remembered_parse_alike() -> None:
    for number in range(5000):
        (head, *_) = read(b"GET / HTTP/1.1\r\nHost: x\r\nX-N: %d\r\n\r\n" % number)
        assert isinstance(head, RequestHead)
        assert head.headers == [("x-n", str(number))]


@pytest.mark.parametrize(
    ("field", "hops"), [("Accept: */*", False), ("Connection: keep-alive", True), ("TE: trailers", True)]
)
def test_a_head_says_whether_it_has_hop_by_hop_fields(field: str, hops: bool) -> None:
    (head, *_) = read(f"GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n".encode())
    assert isinstance(head, RequestHead)
    assert head.hop_by_hop is hops
