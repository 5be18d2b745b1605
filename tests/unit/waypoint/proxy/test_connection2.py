# SPDX-License-Identifier: Apache-2.0
"""Bytes, deadlines and ends of a connection, on a server's side, in time moved by hand."""

from __future__ import annotations

from dataclasses import replace

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode, frame
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import split
from tests.support.http2 import GET, Loop, Side, Wire, heads
from tests.support.http_proxy import SERVICE
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.exchange import Exchange
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream, Failure, UpstreamEvents
from waypoint.routing.plan import Forward

LIMITS = Http2Limits(keepalive_interval_s=100.0, idle_timeout_s=1000.0)


class Never:
    """A server that never answers."""

    endpoint = ""
    reused = False

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def send_head(self, head: RequestHead) -> None:
        pass

    def send_data(self, data: bytes) -> None:
        pass

    def send_end(self, trailers: object) -> None:
        pass

    def cancel(self) -> None:
        self._bench.cancelled += 1

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


class Bench:
    """A server connection between a wire and a client's codec."""

    def __init__(self, limits: Http2Limits = LIMITS, *, settle: bool = True) -> None:
        self.loop = Loop()
        self.wire = Wire()
        self.closed = 0
        self.cancelled = 0
        self.refusals: list[str] = []
        self.events: list[UpstreamEvents] = []
        self.server = Http2Server(
            service=self,
            call_later=self.loop.call_later,
            on_closed=self._on_closed,
            limits=limits,
            now=self.loop.now,
        )
        self.server.start(self.wire, self.server)
        self.client = Side(Role.CLIENT)
        if settle:
            self.talk()

    def _on_closed(self) -> None:
        self.closed += 1

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        def connect(plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Never:
            self.events.append(events)
            return Never(self)

        return Exchange(
            request=head,
            plan=Forward(head=head, service=SERVICE, port=80, source=""),
            downstream=downstream,
            connect=connect,
            call_later=self.loop.call_later,
            random=lambda: 0.5,
            on_done=lambda record: None,
        )

    def refused(self, error: BadMessageError) -> None:
        self.refusals.append(error.reason)

    def talk(self) -> None:
        """Move bytes until nobody has any."""
        while True:
            self.loop.advance()
            to_client, to_server = self.wire.take(), self.client.codec.take()
            if not to_client and not to_server:
                return
            if to_client:
                self.client.codec.receive(to_client)
            if to_server:
                self.server.write(to_server)

    def said(self) -> list[tuple[int, int, int, bytes]]:
        self.loop.advance()
        return split(self.wire.take())


def goaway(frames_: list[tuple[int, int, int, bytes]]) -> ErrorCode:
    kind, _, _, payload = frames_[-1]
    assert kind == frames.GOAWAY
    return ErrorCode(int.from_bytes(payload[4:8], "big"))


def test_what_one_turn_makes_leaves_in_one_write() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET, end=True) + heads(3, GET, end=True) + frame(frames.PING, 0, 0, bytes(8)))
    before = bench.wire.writes
    for events in bench.events:
        events.on_failure(Failure.RESET, "gone")
    bench.loop.advance()
    assert bench.wire.writes == before + 1
    assert [stream for kind, _, stream, _ in bench.said() if kind == frames.HEADERS] == [1, 3]


def test_settings_that_do_not_come() -> None:
    bench = Bench(settle=False)
    bench.loop.advance(LIMITS.handshake_timeout_s - 0.001)
    assert not bench.server.closed
    bench.loop.advance(0.001)
    assert goaway(bench.said()) is ErrorCode.SETTINGS_TIMEOUT
    assert bench.refusals == ["no SETTINGS within 10 s"]
    assert bench.wire.ended
    bench.loop.advance(LIMITS.close_s)
    assert bench.wire.aborted is Reason.FORCED_CLOSE


def test_a_frame_that_does_not_end() -> None:
    bench = Bench()
    bench.loop.advance(17.0)
    bench.server.write(heads(1, GET)[:12])
    bench.loop.advance(LIMITS.head_timeout_s - 0.001)
    assert not bench.server.closed
    bench.loop.advance(0.001)
    assert goaway(bench.said()) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_frame_that_ends_in_time() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET)[:12])
    bench.loop.advance(LIMITS.head_timeout_s - 1)
    bench.server.write(heads(1, GET)[12:])
    bench.loop.advance(10)
    assert not bench.server.closed


def test_a_silent_client_is_pinged_and_given_up() -> None:
    bench = Bench()
    bench.client.open()
    bench.talk()
    bench.loop.advance(LIMITS.keepalive_interval_s - 0.001)
    assert bench.said() == []
    bench.loop.advance(0.001)
    assert [kind for kind, *_ in bench.said()] == [frames.PING]
    bench.loop.advance(LIMITS.keepalive_timeout_s - 0.001)
    assert not bench.server.closed
    bench.loop.advance(0.001)
    assert bench.server.closed
    assert bench.cancelled == 1


def test_a_client_that_answers_its_pings_is_kept() -> None:
    bench = Bench()
    bench.client.open()
    for _ in range(60):
        bench.talk()
        bench.loop.advance(15)
    assert not bench.server.closed


def test_an_idle_connection_is_closed_in_two_steps() -> None:
    bench = Bench()
    for _ in range(100):
        bench.loop.advance(9.99)
        bench.talk()
    assert not bench.server.closed
    bench.loop.advance(1.0)
    first, second = bench.said()
    assert (first[0], first[3][:4]) == (frames.GOAWAY, (2**31 - 1).to_bytes(4, "big"))
    assert second[0] == frames.PING
    # A request that crossed the first GOAWAY is served.
    bench.server.write(heads(1, GET, end=True))
    bench.server.write(frame(frames.PING, frames.ACK, 0, second[3]))
    assert goaway(bench.said()) is ErrorCode.NO_ERROR
    bench.loop.advance()
    assert not bench.server.closed
    bench.server.write(frames.rst_stream(1, ErrorCode.CANCEL))
    bench.loop.advance()
    assert bench.wire.ended


def test_a_request_keeps_a_connection_from_being_idle() -> None:
    bench = Bench()
    bench.client.open()
    for _ in range(120):
        bench.talk()
        bench.loop.advance(10)
    assert not bench.server.closed
    bench.client.codec.reset(bench.client.stream(), ErrorCode.CANCEL)
    bench.talk()
    for _ in range(99):
        bench.loop.advance(10)
        bench.talk()
    assert bench.client.codec.room
    bench.loop.advance(11)
    bench.talk()
    assert not bench.client.codec.room
    assert bench.server.closed


def test_the_second_call_to_shut_down_does_nothing() -> None:
    bench = Bench()
    bench.server.shut_down()
    bench.server.shut_down()
    assert [kind for kind, *_ in bench.said()] == [frames.GOAWAY, frames.PING]


def test_a_broken_rule_is_named_and_ends_every_request() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET, end=True))
    bench.wire.take()
    bench.server.write(frame(frames.PING, 0, 0, b"short"))
    assert goaway(bench.said()) is ErrorCode.FRAME_SIZE_ERROR
    assert bench.refusals == ["HTTP/2 rules broken: FRAME_SIZE_ERROR, PING of 5 bytes"]
    assert bench.wire.ended
    assert bench.cancelled == 1
    bench.server.write(heads(3, GET, end=True))
    assert bench.wire.take() == b""


def test_a_client_that_ends_is_let_go_at_once() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET, end=True))
    bench.server.write_eof()
    assert bench.wire.ended
    assert bench.cancelled == 1
    bench.server.end_closed(bench.wire, Reason.COMPLETE)
    assert bench.closed == 1
    assert not [a for a in bench.loop.appointments if not a.cancelled and a.at_s > bench.loop.now_s]


def test_a_connection_that_breaks_ends_its_requests() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET, end=True))
    bench.server.abort(Reason.PEER_RESET)
    bench.server.end_closed(bench.wire, Reason.PEER_RESET)
    assert (bench.cancelled, bench.closed) == (1, 1)
    for act in (bench.server.close, bench.server.shut_down, bench.server.write_eof):
        act()
    assert not bench.wire.ended


def test_a_client_that_reads_nothing_cannot_make_us_say_much() -> None:
    limits = replace(LIMITS, max_unread_answers_bytes=170)
    bench = Bench(limits)
    ping = frame(frames.PING, 0, 0, bytes(8))
    bench.server.write(ping * 100)
    assert bench.wire.aborted is None
    bench.server.pause_reading()
    bench.server.write(ping * 5)
    bench.server.resume_reading()
    bench.server.pause_reading()
    for _ in range(10):
        assert bench.wire.aborted is None
        bench.server.write(ping)
    bench.server.write(ping)
    assert bench.wire.aborted is Reason.H2_FLOOD
    assert bench.server.closed
    assert bench.refusals == ["the peer leaves more than 170 bytes of answers unread"]


def test_goaway_of_a_client_ends_the_connection_after_its_requests() -> None:
    bench = Bench()
    bench.server.write(heads(1, GET, end=True) + frames.goaway(0, ErrorCode.NO_ERROR))
    bench.loop.advance()
    assert not bench.server.closed
    bench.server.write(frames.rst_stream(1, ErrorCode.CANCEL))
    bench.loop.advance()
    assert bench.wire.ended
