# SPDX-License-Identifier: Apache-2.0
"""The HTTP/2 server side: each stream an exchange, with a scripted service behind and a codec before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from tests.support.http2 import Loop, Side, Wire, request, response
from tests.support.http_proxy import SERVICE
from waypoint.http.h2_fields import encode_fields
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream, Failure, UpstreamEvents
from waypoint.routing.plan import Answer, Forward, answer

LIMITS = Http2Limits()
GRPC = [("content-type", "application/grpc")]


@dataclass
class Try:
    """One upstream try: records the request, answers when told."""

    events: UpstreamEvents
    head: RequestHead | None = None
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers | None = None
    cancelled: bool = False
    flow: list[str] = field(default_factory=list)
    endpoint: str = "10.0.0.1:80"
    reused: bool = False

    def send_head(self, head: RequestHead) -> None:
        self.head = head

    def send_data(self, data: bytes) -> None:
        self.body += data

    def send_end(self, trailers: Headers) -> None:
        self.trailers = trailers

    def cancel(self) -> None:
        self.cancelled = True

    def pause_response(self) -> None:
        self.flow.append("pause")

    def resume_response(self) -> None:
        self.flow.append("resume")


class Bench:
    """A client's codec, the server side, and a service that forwards unless told otherwise."""

    def __init__(self, limits: Http2Limits = LIMITS, client: Http2Limits = LIMITS) -> None:
        self.loop = Loop()
        self.wire = Wire()
        self.tries: list[Try] = []
        self.records: list[ExchangeRecord] = []
        self.refusals: list[str] = []
        self.decide: Callable[[RequestHead], Forward | Answer] = lambda head: Forward(
            head=head, service=SERVICE, port=80, source=""
        )
        self.server = Http2Server(
            service=self,
            call_later=self.loop.call_later,
            on_closed=lambda: None,
            limits=limits,
            now=self.loop.now,
        )
        self.server.start(self.wire, self.server)
        self.client = Side(Role.CLIENT, client)
        self.talk()

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        def connect(plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Try:
            self.tries.append(Try(events))
            return self.tries[-1]

        return Exchange(
            request=head,
            plan=self.decide(head),
            downstream=downstream,
            connect=connect,
            call_later=self.loop.call_later,
            random=lambda: 0.5,
            on_done=self.records.append,
        )

    def refused(self, error: BadMessageError) -> None:
        self.refusals.append(error.reason)

    def talk(self) -> None:
        while True:
            self.loop.advance()
            to_client, to_server = self.wire.take(), self.client.codec.take()
            if not to_client and not to_server:
                return
            if to_client:
                self.client.codec.receive(to_client)
            if to_server:
                self.server.write(to_server)


def test_two_requests_run_side_by_side() -> None:
    bench = Bench()
    first, second = bench.client.open(), bench.client.open()
    bench.client.codec.send_data(second.stream, b"body")  # type: ignore[arg-type]
    bench.client.codec.send_end(second.stream, encode_fields([("sum", "4")]))  # type: ignore[arg-type]
    bench.talk()
    assert [made.head is not None for made in bench.tries] == [True, True]
    assert (bytes(bench.tries[1].body), bench.tries[1].trailers) == (b"body", [("sum", "4")])
    assert bench.tries[0].trailers is None
    events = bench.tries[1].events
    events.on_response(response(200, [("x", "1"), ("connection", "x-y")]))
    events.on_data(b"answer")
    events.on_end([("grpc-status", "0")])
    bench.talk()
    assert second.log == [(200, [("x", "1")], Framing.CHUNKED), b"answer", [("grpc-status", "0")]]
    assert first.log == []
    assert not bench.server.idle
    assert [record.status for record in bench.records] == [200]


def test_a_trailers_only_response_stays_one() -> None:
    bench = Bench()
    mine = bench.client.open(end=True)
    bench.talk()
    bench.tries[0].events.on_response(response(200, [("grpc-status", "5")]))
    bench.tries[0].events.on_end([])
    written = bench.wire.writes
    bench.talk()
    assert bench.wire.writes == written + 1
    assert mine.log == [(200, [("grpc-status", "5")], Framing.CHUNKED), []]
    assert bench.server.idle


def test_interim_heads_are_passed_on() -> None:
    bench = Bench()
    mine = bench.client.open()
    bench.talk()
    bench.tries[0].events.on_response(ResponseHead(status=103, reason="", headers=[], framing=Framing.NONE))
    bench.tries[0].events.on_response(response())
    bench.talk()
    assert [entry[0] for entry in mine.log] == [103, 200]  # type: ignore[index]


def test_a_client_that_resets_ends_its_try_and_no_other() -> None:
    bench = Bench()
    bench.client.open()
    bench.client.open()
    bench.talk()
    bench.client.codec.reset(bench.client.stream(1), ErrorCode.CANCEL)
    bench.talk()
    assert [made.cancelled for made in bench.tries] == [True, False]
    assert [record.flag for record in bench.records] == ["DC"]


def test_a_response_that_breaks_off_is_reset() -> None:
    bench = Bench()
    mine = bench.client.open(end=True)
    bench.talk()
    events = bench.tries[0].events
    events.on_response(response())
    events.on_data(b"half")
    events.on_failure(Failure.RESET, "gone")
    bench.talk()
    assert mine.log[1:] == [b"half", ("INTERNAL_ERROR", "peer")]


def test_an_answer_before_the_end_of_the_request_stops_it() -> None:
    bench = Bench()
    bench.decide = lambda head: answer(403, flag="-", detail="no")
    mine = bench.client.open()
    bench.client.codec.send_data(mine.stream, b"much more to come")  # type: ignore[arg-type]
    bench.talk()
    assert mine.log[0][0] == 403  # type: ignore[index]
    assert mine.log[1:] == [b"no\n", [], ("NO_ERROR", "peer")]
    assert not bench.client.codec.streams
    assert bench.server.idle


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], [(414, [("content-type", "text/plain; charset=utf-8")], Framing.CHUNKED), b"too long\n", []]),
        (
            GRPC,
            [(200, [*GRPC, ("grpc-status", "13"), ("grpc-message", "too long")], Framing.CHUNKED), []],
        ),
    ],
)
def test_a_request_that_the_service_refuses_is_answered_and_counted(
    headers: Headers, expected: list[object]
) -> None:
    def refuse(head: RequestHead) -> Answer:
        raise BadMessageError("too long", 414)

    bench = Bench()
    bench.decide = refuse
    mine = bench.client.open(request(headers=headers), end=True)
    bench.talk()
    assert mine.log == expected
    assert bench.refusals == ["too long"]


def test_a_request_over_a_limit_is_answered_and_a_malformed_one_reset() -> None:
    bench = Bench(replace(LIMITS, max_fields=5))
    mine = bench.client.open(request(headers=[("a", "1"), ("b", "1")]), end=True)
    other = bench.client.open(request(headers=[(":late", "1")]), end=True)
    bench.talk()
    assert mine.log[0][0] == 431  # type: ignore[index]
    assert other.log == [("PROTOCOL_ERROR", "peer")]
    assert len(bench.refusals) == 2
    assert not bench.tries


def test_a_client_that_does_not_read_stops_the_server_and_lets_it_go_on() -> None:
    limits = replace(LIMITS, send_queue_bytes=10_000)
    bench = Bench(limits)
    mine = bench.client.open(end=True)
    other = bench.client.open(end=True)
    bench.talk()
    bench.client.codec.pause(mine.stream)  # type: ignore[arg-type]
    first, second = bench.tries
    first.events.on_response(response())
    while not first.flow:
        first.events.on_data(bytes(5000))
        bench.talk()
    assert len(mine.data) == LIMITS.initial_window_bytes
    second.events.on_response(response())
    second.events.on_data(bytes(100_000))
    bench.talk()
    assert len(other.data) == 100_000
    bench.client.codec.resume(mine.stream)  # type: ignore[arg-type]
    bench.talk()
    assert first.flow == ["pause", "resume"]
    assert second.flow in ([], ["pause", "resume"])


def test_a_full_connection_stops_every_source_that_writes() -> None:
    bench = Bench()
    bench.client.open(end=True)
    bench.talk()
    events = bench.tries[0].events
    events.on_response(response())
    bench.server.pause_reading()
    events.on_data(b"1")
    events.on_data(b"2")
    assert bench.tries[0].flow == ["pause"]
    bench.server.resume_reading()
    assert bench.tries[0].flow == ["pause", "resume"]
    assert not bench.server.held


def test_a_server_that_does_not_read_stops_the_client() -> None:
    bench = Bench()
    mine = bench.client.open()
    bench.talk()
    bench.tries[0].events.on_request_blocked(True)
    bench.client.codec.send_data(mine.stream, bytes(200_000))  # type: ignore[arg-type]
    bench.talk()
    assert len(bench.tries[0].body) == LIMITS.initial_window_bytes
    bench.tries[0].events.on_request_blocked(False)
    bench.talk()
    assert len(bench.tries[0].body) == 200_000


def test_nothing_is_held_for_a_request_that_is_over() -> None:
    bench = Bench()
    mine = bench.client.open(end=True)
    bench.talk()
    bench.server.pause_reading()
    bench.tries[0].events.on_response(response())
    bench.tries[0].events.on_data(b"1")
    assert len(bench.server.held) == 1
    bench.client.codec.reset(mine.stream, ErrorCode.CANCEL)  # type: ignore[arg-type]
    bench.talk()
    assert not bench.server.held
