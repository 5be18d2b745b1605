# SPDX-License-Identifier: Apache-2.0
"""Client codec, server side, exchanges, client side, server codec: whatever both ends do, in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from tests.support.http2 import Loop, Recorder, Side, Wire
from tests.support.http_proxy import SERVICE
from waypoint.http.h2_fields import encode_fields
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.client2 import Http2Client, Http2Try
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream, UpstreamEvents
from waypoint.routing.plan import Forward

LIMITS = replace(Http2Limits(), send_queue_bytes=20_000)


@dataclass
class Line:
    """One connection: an end of the waypoint, its wire, and the codec at the wire's other end."""

    end: Http2Server | Http2Client
    wire: Wire
    side: Side

    def move(self) -> bool:
        """Carry bytes both ways once; False: there were none."""
        outward, inward = self.wire.take(), self.side.codec.take()
        if outward:
            self.side.codec.receive(outward)
        if inward:
            self.end.write(inward)
        return bool(outward or inward)


class Through:
    """A waypoint in memory between one client and one server."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.records: list[ExchangeRecord] = []
        server = Http2Server(
            service=self,
            call_later=self.loop.call_later,
            on_closed=lambda: None,
            limits=LIMITS,
            now=self.loop.now,
        )
        self.upstream = Http2Client(
            call_later=self.loop.call_later,
            on_room=lambda _: None,
            on_closed=lambda _: None,
            limits=LIMITS,
            now=self.loop.now,
        )
        self.near = Line(server, Wire(), Side(Role.CLIENT, LIMITS))
        self.far = Line(self.upstream, Wire(), Side(Role.SERVER, LIMITS))
        for line in (self.near, self.far):
            line.end.start(line.wire, line.end)
        self.settle()

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        def connect(plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Http2Try:
            made = Http2Try(events)
            if self.upstream.room:
                made.bind(self.upstream)
            return made

        return Exchange(
            request=head,
            plan=Forward(head=head, service=SERVICE, port=80, source=""),
            downstream=downstream,
            connect=connect,
            call_later=self.loop.call_later,
            random=lambda: 0.5,
            on_done=self.records.append,
        )

    def refused(self, error: BadMessageError) -> None:
        raise AssertionError(f"the client's codec sent what the server refuses: {error}")

    def settle(self) -> None:
        self.loop.advance()
        while self.near.move() | self.far.move():
            self.loop.advance()


ACTIONS = [
    "open", "data", "long data", "end", "trailers", "client reset", "client pause", "client resume",
    "respond", "reply", "long reply", "finish", "finish with trailers", "server reset", "server pause",
    "server resume", "settle", "near", "far", "turn",
]  # fmt: skip
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3)), max_size=60)


class Play:
    """Both ends' actions, on their n-th stream where there is one."""

    def __init__(self, through: Through) -> None:
        self.t = through
        self.opened: list[Recorder] = []

    def act(self, what: str, index: int) -> None:
        t = self.t
        if what == "settle":
            t.settle()
        elif what == "turn":
            t.loop.advance()
        elif what in ("near", "far"):
            (t.near if what == "near" else t.far).move()
        elif what == "open":
            if t.near.side.codec.room:
                self.opened.append(t.near.side.open())
        elif what in ("respond", "reply", "long reply", "finish", "finish with trailers") or "server" in what:
            seen = list(t.far.side.recorders.values())
            if index < len(seen):
                self.serve(what, seen[index])
        elif index < len(self.opened):
            self.ask(what, self.opened[index])

    def ask(self, what: str, recorder: Recorder) -> None:
        codec, stream = self.t.near.side.codec, recorder.stream
        assert stream is not None
        if what == "data":
            codec.send_data(stream, b"question")
        elif what == "long data":
            codec.send_data(stream, bytes(90_000))
        elif what == "end":
            codec.send_end(stream)
        elif what == "trailers":
            codec.send_end(stream, encode_fields([("sum", "1")]))
        elif what == "client reset":
            codec.reset(stream, ErrorCode.CANCEL)
        elif what == "client pause":
            codec.pause(stream)
        else:
            codec.resume(stream)

    def serve(self, what: str, recorder: Recorder) -> None:
        codec, stream = self.t.far.side.codec, recorder.stream
        assert stream is not None
        if what == "server reset":
            codec.reset(stream, ErrorCode.INTERNAL_ERROR)
        elif what == "server pause":
            codec.pause(stream)
        elif what == "server resume":
            codec.resume(stream)
        else:
            self.t.far.side.respond(stream.id)
            if what == "reply":
                codec.send_data(stream, b"answer")
            elif what == "long reply":
                codec.send_data(stream, bytes(90_000))
            elif what == "finish":
                codec.send_end(stream)
            elif what == "finish with trailers":
                codec.send_end(stream, encode_fields([("grpc-status", "0")]))

    def finish(self) -> None:
        """Let everybody read on, and end what is open in the usual way."""
        near, far = self.t.near.side, self.t.far.side
        for _ in range(2):
            for side in (near, far):
                for stream in list(side.codec.streams.values()):
                    side.codec.resume(stream)
            self.t.settle()
            for stream in list(near.codec.streams.values()):
                near.codec.send_end(stream)
            self.t.settle()
            for stream in list(far.codec.streams.values()):
                far.respond(stream.id)
                far.codec.send_end(stream)
            self.t.settle()


@settings(deadline=None, max_examples=300)
@given(steps)
def test_nothing_stays_behind_and_nothing_is_made_up(script: list[tuple[str, int]]) -> None:
    through = Through()
    play = Play(through)
    for what, index in script:
        play.act(what, index)
    play.finish()
    for line in (through.near, through.far):
        assert not line.side.codec.streams
        assert not line.end.codec.streams
        assert not line.end.held
        assert not line.end.closed
        assert line.side.codec._send_window > 0
    assert through.upstream.idle
    assert len(through.records) == len(play.opened)
    for recorder in play.opened:
        check(recorder)


def check(recorder: Recorder) -> None:
    """What a client saw is a response, or the beginning of one and a reset."""
    kinds = [
        "head" if isinstance(entry, tuple) and isinstance(entry[0], int)
        else "reset" if isinstance(entry, tuple)
        else "end" if isinstance(entry, list)
        else "data"
        for entry in recorder.log
    ]  # fmt: skip
    assert "".join(kind[0] for kind in kinds) in {"", "r", "h", "hd", "hr", "hdr", "he", "hde", "her", "hder"}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=50_000), max_size=5), st.lists(st.integers(0, 5), max_size=40))
def test_bodies_arrive_whole_at_any_pace(pieces: list[bytes], pace: list[int]) -> None:
    through = Through()
    mine = through.near.side.open()
    through.settle()
    (theirs,) = through.far.side.recorders.values()
    near, far = through.near.side.codec, through.far.side.codec
    assert mine.stream is not None
    assert theirs.stream is not None
    through.far.side.respond(theirs.stream.id)
    left = list(pieces)
    for step in pace:
        if step == 0 and left:
            near.send_data(mine.stream, left[0])
            far.send_data(theirs.stream, left.pop(0))
        elif step == 1:
            far.pause(theirs.stream)
        elif step == 2:
            far.resume(theirs.stream)
        elif step == 3:
            near.pause(mine.stream)
        elif step == 4:
            near.resume(mine.stream)
        else:
            through.settle()
    for piece in left:
        near.send_data(mine.stream, piece)
        far.send_data(theirs.stream, piece)
    near.send_end(mine.stream)
    through.settle()
    far.resume(theirs.stream)
    near.resume(mine.stream)
    through.settle()
    far.send_end(theirs.stream)
    through.settle()
    assert (theirs.data, mine.data) == (b"".join(pieces), b"".join(pieces))
    assert (theirs.log[-1], mine.log[-1]) == ([], [])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["near", "far"]), min_size=1, max_size=3), st.binary(max_size=60))
def test_garbage_ends_a_connection_and_its_requests_only(where: list[str], garbage: bytes) -> None:
    through = Through()
    for _ in range(3):
        through.near.side.open(end=True)
    through.settle()
    for place in where:
        (through.near if place == "near" else through.far).end.write(frames.frame(0, 0, 1) + garbage)
        through.loop.advance(1.0)
    through.near.end.close()
    through.loop.advance(1.0)
    assert len(through.records) == 3
    assert not through.near.end.codec.streams
