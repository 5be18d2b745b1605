# SPDX-License-Identifier: Apache-2.0
"""The HTTP/2 client side: many tries on one connection, with a server's codec behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.http2 import Loop, Side, Wire, request, response
from waypoint.http.h2_fields import encode_fields, encode_response
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import Framing, Headers, ResponseHead
from waypoint.proxy.client2 import Http2Client, Http2Try
from waypoint.proxy.streams import Failure

LIMITS = Http2Limits()


@dataclass
class Log:
    """What a try reports."""

    said: list[object] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def on_response(self, head: ResponseHead) -> None:
        self.said.append(head.status)

    def on_data(self, data: bytes) -> None:
        self.said.append(data)

    def on_end(self, trailers: Headers) -> None:
        self.said.append(("end", trailers))

    def on_failure(self, failure: Failure, detail: str) -> None:
        self.said.append(failure)
        self.details.append(detail)

    def on_request_blocked(self, blocked: bool) -> None:
        self.said.append(blocked)


@dataclass
class Home:
    """Where tries come from."""

    overs: int = 0
    moved: list[Http2Try] = field(default_factory=list)

    def over(self) -> None:
        self.overs += 1

    def again(self, attempt: Http2Try) -> None:
        self.moved.append(attempt)


class Bench:
    """A connection between a wire and a server's codec."""

    def __init__(
        self, limits: Http2Limits = LIMITS, server: Http2Limits = LIMITS, *, settle: bool = True
    ) -> None:
        self.loop = Loop()
        self.wire = Wire()
        self.rooms = 0
        self.closed = 0
        self.home = Home()
        self.client = Http2Client(
            call_later=self.loop.call_later,
            on_room=self._on_room,
            on_closed=self._on_closed,
            limits=limits,
            now=self.loop.now,
        )
        self.client.start(self.wire, self.client)
        self.server = Side(Role.SERVER, server)
        if settle:
            self.talk()

    def _on_room(self, client: Http2Client) -> None:
        self.rooms += 1

    def _on_closed(self, client: Http2Client) -> None:
        self.closed += 1

    def talk(self) -> None:
        while True:
            self.loop.advance()
            to_server, to_client = self.wire.take(), self.server.codec.take()
            if not to_client and not to_server:
                return
            if to_server:
                self.server.codec.receive(to_server)
            if to_client:
                self.client.write(to_client)

    def attempt(self, *, head: bool = True, bind: bool = True) -> tuple[Http2Try, Log]:
        log = Log()
        made = Http2Try(log, endpoint="10.0.0.1:80", home=self.home)
        if bind:
            made.bind(self.client)
        if head:
            made.send_head(request())
        return made, log

    def answer(self, stream_id: int, body: bytes = b"", trailers: Headers | None = None) -> None:
        self.server.respond(stream_id)
        self.server.codec.send_data(self.server.stream(stream_id), body)
        self.server.codec.send_end(self.server.stream(stream_id), encode_fields(trailers or []))


def test_tries_run_side_by_side() -> None:
    bench = Bench()
    (first, one), (second, two) = bench.attempt(), bench.attempt()
    assert (first.reused, second.reused) == (False, True)
    first.send_data(b"question")
    first.send_end([("sum", "8")])
    second.send_end([])
    written = bench.wire.writes
    bench.talk()
    assert bench.wire.writes == written + 1
    assert bench.server.recorders[1].log == [b"question", [("sum", "8")]]
    bench.answer(3, b"3")
    bench.answer(1, b"1", [("grpc-status", "0")])
    bench.talk()
    assert one.said == [200, b"1", ("end", [("grpc-status", "0")])]
    assert two.said == [200, b"3", ("end", [])]
    assert bench.home.overs == 2
    assert bench.client.idle


def test_a_request_without_a_body_is_one_frame() -> None:
    bench = Bench()
    made, _ = bench.attempt(head=False)
    made.send_head(request("GET", framing=Framing.NONE))
    made.send_end([])
    bench.talk()
    assert bench.server.recorders[1].log == [[]]


def test_what_comes_before_a_connection_is_held() -> None:
    bench = Bench()
    made, log = bench.attempt(bind=False)
    made.send_data(b"early ")
    made.send_data(b"bird")
    made.send_end([("sum", "1")])
    assert log.said == [True]
    made.bind(bench.client)
    assert log.said == [True, False]
    bench.talk()
    assert bench.server.recorders[1].log == [b"early bird", [("sum", "1")]]


def test_room_is_what_the_server_allows() -> None:
    bench = Bench(server=replace(LIMITS, max_streams=2))
    assert bench.client.room == 2
    begun, _ = bench.attempt(head=False)
    assert bench.client.room == 1
    assert not bench.client.idle
    begun.cancel()
    assert (bench.client.room, bench.rooms) == (2, 1)
    bench.attempt()
    bench.attempt()
    assert bench.client.room == 0
    bench.talk()
    bench.answer(1)
    bench.talk()
    assert (bench.client.room, bench.rooms) == (1, 2)


def test_a_cancelled_try_is_reset_at_the_server_and_says_nothing_more() -> None:
    bench = Bench()
    made, log = bench.attempt()
    bench.talk()
    made.cancel()
    made.cancel()
    made.send_data(b"x")
    made.send_end([])
    late = frames.headers(1, encode_response(response()), end_stream=False, max_frame_bytes=16384)
    bench.client.write(late + frames.frame(frames.DATA, frames.END_STREAM, 1, b"late"))
    bench.talk()
    assert log.said == []
    assert bench.server.recorders[1].log == [("CANCEL", "peer")]
    assert bench.home.overs == 1
    assert not bench.client.closed


def test_a_response_before_the_end_of_its_request_ends_both() -> None:
    bench = Bench()
    _, log = bench.attempt()
    bench.talk()
    bench.server.respond(1)
    stream = bench.server.stream(1)
    bench.server.codec.take()
    # A server that ends its response and takes no notice of the request's rest.
    bench.client.write(frames.headers(1, encode_response(response()), end_stream=True, max_frame_bytes=16384))
    assert log.said == [200, ("end", [])]
    bench.talk()
    assert stream.id == 1
    assert bench.server.recorders[1].log == [("NO_ERROR", "peer")]


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (ErrorCode.REFUSED_STREAM, Failure.REFUSED),
        (ErrorCode.CANCEL, Failure.RESET),
        (ErrorCode.INTERNAL_ERROR, Failure.RESET),
        (ErrorCode.HTTP_1_1_REQUIRED, Failure.PROTOCOL),
    ],
)
def test_a_reset_is_the_failure_that_it_stands_for(code: ErrorCode, failure: Failure) -> None:
    bench = Bench()
    (_, log), (_, other) = bench.attempt(), bench.attempt()
    bench.talk()
    bench.server.codec.reset(bench.server.stream(1), code)
    bench.talk()
    assert log.said == [failure]
    assert log.details[0].startswith("10.0.0.1:80: ")
    assert other.said == []
    assert not bench.client.closed


def test_a_malformed_response_is_the_servers_fault() -> None:
    bench = Bench()
    _, log = bench.attempt()
    bench.talk()
    bench.server.codec.respond(bench.server.stream(1), encode_fields([("x", "1")]))
    bench.talk()
    assert log.said == [Failure.PROTOCOL]
    assert "malformed" in log.details[0]


def test_goaway_moves_what_the_server_did_not_act_on() -> None:
    bench = Bench()
    (first, one), (second, two) = bench.attempt(), bench.attempt()
    second.send_data(b"body")
    second.send_end([("sum", "4")])
    bench.talk()
    bench.client.write(frames.goaway(1, ErrorCode.NO_ERROR))
    assert bench.home.moved == [second]
    assert bench.client.room == 0
    other = Bench()
    second.bind(other.client)
    other.talk()
    assert other.server.recorders[1].log == [b"body", [("sum", "4")]]
    other.answer(1, b"moved")
    other.talk()
    assert two.said == [200, b"moved", ("end", [])]
    # The first goes on, and the connection ends after it.
    assert one.said == []
    bench.answer(1)
    bench.talk()
    assert one.said == [200, ("end", [])]
    assert bench.wire.ended
    assert bench.closed == 1
    assert first.over


def test_a_try_is_not_moved_forever() -> None:
    log, home = Log(), Home()
    made = Http2Try(log, home=home)
    made.send_head(request())
    for moves in range(1, 10):
        bench = Bench()
        made.bind(bench.client)
        bench.client.write(frames.goaway(0, ErrorCode.NO_ERROR))
        assert len(home.moved) == min(moves, 8)
    assert log.said == [Failure.REFUSED]


def test_a_body_too_long_to_be_kept_is_not_moved() -> None:
    for size, moved in ((65_536, 1), (65_537, 0)):
        bench = Bench()
        made, log = bench.attempt()
        made.send_data(bytes(size))
        bench.client.write(frames.goaway(0, ErrorCode.NO_ERROR))
        assert len(bench.home.moved) == moved
        assert (Failure.REFUSED in log.said) is not bool(moved)


def test_a_lost_connection_fails_every_try() -> None:
    bench = Bench()
    (_, one), (begun, two) = bench.attempt(), bench.attempt(head=False)
    bench.client.abort(Reason.PEER_RESET)
    bench.client.end_closed(bench.wire, Reason.PEER_RESET)
    assert one.said == [Failure.RESET]
    assert two.said == [Failure.CONNECT]
    assert one.details == [f"10.0.0.1:80: connection lost: {Reason.PEER_RESET.text}"]
    begun.send_head(request())
    assert (bench.closed, bench.client.room) == (1, 0)


def test_what_a_server_says_when_it_leaves_is_told() -> None:
    bench = Bench()
    _, log = bench.attempt()
    bench.talk()
    bench.client.write(frames.goaway(1, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings"))
    assert log.said == []
    bench.client.write_eof()
    assert log.said == [Failure.RESET]
    assert log.details[0].endswith(
        "the peer closed the connection after GOAWAY ENHANCE_YOUR_CALM 'too_many_pings'"
    )


def test_a_server_of_http1_is_named() -> None:
    bench = Bench(settle=False)
    _, log = bench.attempt()
    bench.loop.advance()
    bench.client.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    assert log.said == [Failure.PROTOCOL]
    assert "the server speaks HTTP/1.1" in log.details[0]
    assert bench.wire.ended


def test_a_server_that_does_not_read_blocks_the_request_until_it_does() -> None:
    bench = Bench(replace(LIMITS, send_queue_bytes=1000))
    made, log = bench.attempt()
    bench.talk()
    bench.server.codec.pause(bench.server.stream(1))
    made.send_data(bytes(70_000))
    bench.talk()
    assert log.said == [True]
    assert len(bench.server.recorders[1].data) == 65_536
    bench.server.codec.resume(bench.server.stream(1))
    bench.talk()
    assert log.said == [True, False]
    assert len(bench.server.recorders[1].data) == 70_000
    bench.client.pause_reading()
    made.send_data(b"x")
    made.send_data(b"x")
    assert log.said == [True, False, True]
    bench.client.resume_reading()
    assert log.said == [True, False, True, False]
    made.cancel()
    assert not bench.client.held


def test_a_client_that_does_not_read_blocks_the_response() -> None:
    bench = Bench()
    made, log = bench.attempt()
    made.send_end([])
    bench.talk()
    made.pause_response()
    bench.answer(1, bytes(200_000))
    bench.talk()
    assert sum(len(said) for said in log.said if isinstance(said, bytes)) == LIMITS.initial_window_bytes
    made.resume_response()
    bench.talk()
    assert log.said[-1] == ("end", [])
    assert sum(len(said) for said in log.said if isinstance(said, bytes)) == 200_000


def test_closing_takes_leave() -> None:
    bench = Bench()
    bench.client.shut_down()
    bench.talk()
    assert ("goaway", "NO_ERROR") in bench.server.log
    assert bench.wire.ended
    bench = Bench()
    _, log = bench.attempt()
    bench.client.close()
    assert log.said == [Failure.RESET]
    assert (bench.wire.ended, bench.closed) == (True, 1)
