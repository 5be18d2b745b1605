# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 server side, byte for byte, with a scripted service behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mesh.model.workload import NamespacedHostname
from mesh.telemetry.reasons import Reason
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.server1 import Http1Server, ServerLimits
from waypoint.proxy.streams import Downstream, UpstreamEvents
from waypoint.routing.plan import Forward

SERVICE = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")


@dataclass
class Wire:
    """The client's connection: what was written to it and done with it."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    aborted: bool = False
    paused: bool = False
    owner: Http1Server | None = None

    def start(self, peer: object, owner: object) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.data += data

    def write_eof(self) -> None:
        self.ended = True

    def abort(self, reason: Reason) -> None:
        self.aborted = True
        assert self.owner is not None
        self.owner.end_closed(self, reason)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data


@dataclass
class Server:
    """One upstream try: records the request, answers when told."""

    events: UpstreamEvents
    head: RequestHead | None = None
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    cancelled: bool = False
    endpoint: str = "10.0.0.1:80"
    reused: bool = False
    flow: list[str] = field(default_factory=list)

    def send_head(self, head: RequestHead) -> None:
        self.head = head

    def send_data(self, data: bytes) -> None:
        self.body += data

    def send_end(self, trailers: Headers) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = True

    def pause_response(self) -> None:
        self.flow.append("pause")

    def resume_response(self) -> None:
        self.flow.append("resume")

    def answer(self, body: bytes = b"ok", status: int = 200, framing: Framing = Framing.LENGTH) -> None:
        headers = [("content-length", str(len(body)))] if framing is Framing.LENGTH else []
        self.events.on_response(
            ResponseHead(status=status, reason="", headers=headers, framing=framing, length=len(body))
        )
        if body:
            self.events.on_data(body)
        self.events.on_end([])


@dataclass
class Timer:
    seconds: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """A client connection with a service that forwards everything."""

    def __init__(self, limits: ServerLimits | None = None) -> None:
        self.wire = Wire()
        self.servers: list[Server] = []
        self.timers: list[Timer] = []
        self.records: list[ExchangeRecord] = []
        self.errors: list[BadMessageError] = []
        self.closed = 0
        self.connection = Http1Server(
            service=self,
            call_later=self.call_later,
            on_closed=self._on_closed,
            limits=limits,
        )
        self.wire.owner = self.connection
        self.connection.start(self.wire, self.connection)

    def _on_closed(self) -> None:
        self.closed += 1

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    def fire(self) -> None:
        timer = next(t for t in reversed(self.timers) if not t.cancelled)
        timer.cancel()
        timer.callback()

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        return Exchange(
            request=head,
            plan=Forward(head=head, service=SERVICE, port=80, source=""),
            downstream=downstream,
            connect=self._connect,
            call_later=self.call_later,
            random=lambda: 0.0,
            on_done=self.records.append,
        )

    def _connect(self, plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Server:
        self.servers.append(Server(events))
        return self.servers[-1]

    def refused(self, error: BadMessageError) -> None:
        self.errors.append(error)


GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_two_requests_on_one_connection() -> None:
    bench = Bench()
    for index in range(2):
        bench.connection.write(GET)
        bench.servers[index].answer()
        assert bench.wire.take() == OK
    assert bench.connection.idle
    assert [record.status for record in bench.records] == [200, 200]
    assert not bench.wire.ended


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_body_arrives_whole_in_any_chunking(size: int) -> None:
    bench = Bench()
    data = b"POST /a HTTP/1.1\r\nHost: w\r\nContent-Length: 10\r\n\r\n0123456789" + GET
    for start in range(0, len(data), size):
        bench.connection.write(data[start : start + size])
    first = bench.servers[0]
    assert (bytes(first.body), first.ended) == (b"0123456789", True)
    assert len(bench.servers) == 1
    first.answer()
    assert len(bench.servers) == 2
    bench.servers[1].answer()
    assert bench.wire.take() == OK + OK


def test_pipelined_requests_wait_and_the_client_is_held() -> None:
    bench = Bench()
    bench.connection.write(GET + GET)
    assert len(bench.servers) == 1
    assert bench.wire.paused
    bench.servers[0].answer()
    assert not bench.wire.paused
    assert len(bench.servers) == 2


def test_a_body_of_unknown_length_is_chunked_to_1_1_and_closed_to_1_0() -> None:
    bench = Bench()
    bench.connection.write(GET)
    bench.servers[0].answer(framing=Framing.CLOSE)
    assert bench.wire.take() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    assert not bench.wire.ended
    old = Bench()
    old.connection.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    old.servers[0].answer(framing=Framing.CLOSE)
    assert old.wire.take() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok"
    assert old.wire.ended
    assert old.closed == 0
    old.fire()
    assert old.wire.aborted
    assert old.closed == 1


def test_a_client_that_ends_its_side_too_is_not_reset() -> None:
    bench = Bench()
    bench.connection.write(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n")
    bench.servers[0].answer()
    bench.connection.write_eof()
    assert all(timer.cancelled for timer in bench.timers)
    bench.connection.end_closed(bench.wire, Reason.COMPLETE)
    assert bench.closed == 1


def test_connection_close_is_kept() -> None:
    bench = Bench()
    bench.connection.write(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n")
    bench.servers[0].answer()
    assert b"connection: close\r\n" in bench.wire.take()
    assert bench.wire.ended


def test_an_invalid_request_gets_400_and_never_reaches_the_service() -> None:
    bench = Bench()
    bench.connection.write(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert bench.wire.take().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert bench.wire.ended
    assert not bench.servers
    assert bench.errors[0].reason == "exactly one Host field is needed"


def test_a_body_that_breaks_off_ends_the_try() -> None:
    bench = Bench()
    bench.connection.write(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 10\r\n\r\n0123")
    bench.connection.write_eof()
    assert bench.servers[0].cancelled
    assert bench.records[0].flag == "DC"
    assert bench.wire.aborted
    assert bench.closed == 1


def test_a_client_that_closes_its_half_still_gets_its_response() -> None:
    bench = Bench()
    bench.connection.write(GET)
    bench.connection.write_eof()
    bench.servers[0].answer()
    assert bench.wire.take().endswith(b"ok")
    assert bench.wire.ended


def test_an_early_response_is_sent_and_the_rest_of_the_body_is_dropped_within_limits() -> None:
    bench = Bench(ServerLimits(drain_bytes=8))
    bench.connection.write(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 100\r\n\r\n0123")
    bench.servers[0].answer(status=413)
    assert b"413" in bench.wire.take()
    assert bench.wire.ended
    bench.connection.write(b"x" * 8)
    assert not bench.wire.aborted
    bench.connection.write(b"x")
    assert bench.wire.aborted


def test_a_reset_response_resets_the_client() -> None:
    bench = Bench()
    bench.connection.write(GET)
    bench.servers[0].events.on_response(
        ResponseHead(status=200, reason="", headers=[], framing=Framing.CHUNKED)
    )
    bench.servers[0].events.on_data(b"half")
    bench.connection.reset("lost")
    assert bench.wire.aborted
    assert bench.closed == 1


def test_after_a_101_both_directions_are_bytes() -> None:
    bench = Bench()
    bench.connection.write(
        b"GET /ws HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00"
    )
    server = bench.servers[0]
    assert server.head is not None
    assert server.head.upgrade == "websocket"
    server.events.on_response(ResponseHead(status=101, reason="", headers=[], framing=Framing.NONE))
    assert bytes(server.body) == b"\x81\x00"
    server.events.on_data(b"\x89\x00")
    bench.connection.write(b"\x8a\x00")
    assert bench.wire.take().endswith(b"upgrade: websocket\r\n\r\n\x89\x00")
    assert bytes(server.body) == b"\x81\x00\x8a\x00"
    server.events.on_end([])
    assert bench.wire.ended


def test_back_pressure_of_the_client_reaches_the_server_and_back() -> None:
    bench = Bench()
    bench.connection.write(b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n")
    bench.connection.pause_reading()
    bench.connection.resume_reading()
    assert bench.servers[0].flow == ["pause", "resume"]
    bench.servers[0].events.on_request_blocked(True)
    assert bench.wire.paused
    bench.servers[0].events.on_request_blocked(False)
    assert not bench.wire.paused


def test_a_slow_head_gets_408_and_an_idle_connection_is_closed() -> None:
    bench = Bench()
    bench.connection.write(b"GET / HT")
    bench.fire()
    assert bench.wire.take().startswith(b"HTTP/1.1 408 ")
    idle = Bench()
    idle.fire()
    assert idle.wire.ended
    assert idle.wire.take() == b""


def test_shutting_down_finishes_the_running_request() -> None:
    bench = Bench()
    bench.connection.write(GET)
    bench.connection.shut_down()
    assert not bench.wire.ended
    bench.servers[0].answer()
    assert b"connection: close" in bench.wire.take()
    assert bench.wire.ended
    idle = Bench()
    idle.connection.shut_down()
    assert idle.wire.ended


def test_winding_down_never_closes_behind_a_head_that_promised_more() -> None:
    """A client that was not told would lose the request that it sends next."""
    bench = Bench()
    bench.connection.write(GET)
    events = bench.servers[0].events
    head = ResponseHead(
        status=200, reason="", headers=[("content-length", "2")], framing=Framing.LENGTH, length=2
    )
    events.on_response(head)
    bench.connection.wind_down()
    events.on_data(b"ok")
    events.on_end([])
    assert bench.wire.take() == OK
    assert not bench.wire.ended
    bench.connection.write(GET)
    bench.servers[1].answer()
    assert b"connection: close" in bench.wire.take()
    assert bench.wire.ended


def test_winding_down_leaves_an_idle_client_alone() -> None:
    bench = Bench()
    bench.connection.wind_down()
    assert not bench.wire.ended
