# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 client side, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mesh.telemetry.reasons import Reason
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.client1 import Http1Client
from waypoint.proxy.streams import Failure


@dataclass
class Wire:
    """The server's connection: what was written to it and done with it."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    aborted: bool = False
    paused: bool = False

    def start(self, peer: object, owner: object) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        self.data += data

    def write_eof(self) -> None:
        self.ended = True

    def abort(self, reason: Reason) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


@dataclass
class Log:
    """What a try reports."""

    said: list[object] = field(default_factory=list)

    def on_response(self, head: ResponseHead) -> None:
        self.said.append(head.status)

    def on_data(self, data: bytes) -> None:
        self.said.append(data)

    def on_end(self, trailers: Headers) -> None:
        self.said.append(("end", trailers))

    def on_failure(self, failure: Failure, detail: str) -> None:
        self.said.append(failure)

    def on_request_blocked(self, blocked: bool) -> None:
        self.said.append(blocked)


class Bench:
    """One connection and its pool's view of it."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.free = 0
        self.closed = 0
        self.client = Http1Client(on_free=self._on_free, on_closed=self._on_closed)
        self.client.start(self.wire, self.client)

    def _on_free(self, client: Http1Client) -> None:
        self.free += 1

    def _on_closed(self, client: Http1Client) -> None:
        self.closed += 1

    def send(self, method: str = "GET", framing: Framing = Framing.NONE, upgrade: str = "") -> Log:
        log = Log()
        self.client.begin(log)
        headers = [("x-a", "1"), ("connection", "x-hop"), ("x-hop", "2"), ("te", "gzip")]
        self.client.send_head(
            RequestHead(
                method=method, target="/p", authority="web", headers=headers, framing=framing, upgrade=upgrade
            )
        )
        return log


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_hop_by_hop_fields_stay_behind() -> None:
    bench = Bench()
    bench.send()
    assert bytes(bench.wire.data) == b"GET /p HTTP/1.1\r\nhost: web\r\nx-a: 1\r\n\r\n"


def test_a_connection_is_free_after_a_whole_exchange_and_serves_the_next() -> None:
    bench = Bench()
    for _ in range(2):
        log = bench.send()
        bench.client.send_end([])
        bench.client.write(OK)
        assert log.said == [200, b"ok", ("end", [])]
    assert (bench.free, bench.closed, bench.client.requests) == (2, 0, 2)


def test_a_body_without_a_length_is_chunked_with_trailers() -> None:
    bench = Bench()
    bench.send("POST", Framing.CHUNKED)
    bench.wire.data.clear()
    bench.client.send_data(b"abc")
    bench.client.send_end([("x-sum", "1")])
    assert bytes(bench.wire.data) == b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"


def test_a_response_before_the_end_of_the_request_closes_the_connection() -> None:
    bench = Bench()
    log = bench.send("POST", Framing.CHUNKED)
    bench.client.write(OK)
    assert log.said[-1] == ("end", [])
    assert (bench.free, bench.closed) == (0, 1)
    assert bench.wire.aborted


def test_an_early_response_to_a_later_request_closes_the_connection_too() -> None:
    bench = Bench()
    bench.send()
    bench.client.send_end([])
    bench.client.write(OK)
    log = bench.send("POST", Framing.CHUNKED)
    bench.client.send_data(b"half of the bo")
    bench.client.write(OK)
    assert log.said[-1] == ("end", [])
    assert (bench.free, bench.closed) == (1, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        OK + b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_a_connection_that_must_not_be_used_again_is_closed(data: bytes) -> None:
    bench = Bench()
    log = bench.send()
    bench.client.send_end([])
    bench.client.write(data)
    assert log.said[-1] == ("end", [])
    assert (bench.free, bench.closed) == (0, 1)


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    bench = Bench()
    bench.client.write(OK)
    assert bench.closed == 1


def test_a_body_until_close_ends_with_the_connection() -> None:
    bench = Bench()
    log = bench.send()
    bench.client.send_end([])
    bench.client.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
    bench.client.write_eof()
    assert log.said == [200, b"abc", ("end", [])]
    assert bench.closed == 1


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"", Failure.RESET),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", Failure.RESET),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", Failure.PROTOCOL),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Failure.PROTOCOL),
    ],
)
def test_failures_are_told_once_and_by_kind(data: bytes, failure: Failure) -> None:
    bench = Bench()
    log = bench.send()
    bench.client.send_end([])
    bench.client.write(data)
    bench.client.write_eof()
    bench.client.abort(Reason.PEER_RESET)
    assert [said for said in log.said if isinstance(said, Failure)] == [failure]
    assert bench.closed == 1


def test_a_lost_connection_is_a_reset() -> None:
    bench = Bench()
    log = bench.send()
    bench.client.abort(Reason.PEER_RESET)
    assert log.said == [Failure.RESET]


def test_an_interim_response_does_not_end_the_exchange() -> None:
    bench = Bench()
    log = bench.send()
    bench.client.send_end([])
    bench.client.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    assert log.said == [103, 200, b"ok", ("end", [])]
    assert bench.free == 1


def test_an_upgrade_passes_bytes_until_either_side_ends() -> None:
    bench = Bench()
    log = bench.send(upgrade="websocket")
    assert bytes(bench.wire.data).endswith(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
    bench.client.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n\x81")
    bench.client.write(b"\x82")
    bench.wire.data.clear()
    bench.client.send_data(b"\x83")
    assert bytes(bench.wire.data) == b"\x83"
    bench.client.write_eof()
    assert log.said == [101, b"\x81", b"\x82", ("end", [])]
    assert (bench.free, bench.closed, bench.wire.ended) == (0, 1, True)


def test_cancelling_breaks_the_connection_off_without_an_event() -> None:
    bench = Bench()
    log = bench.send()
    bench.client.cancel()
    assert bench.wire.aborted
    assert log.said == []
    bench.client.write(OK)
    assert log.said == []


def test_back_pressure_of_the_server_is_reported() -> None:
    bench = Bench()
    log = bench.send()
    bench.client.pause_reading()
    bench.client.resume_reading()
    assert log.said == [True, False]
