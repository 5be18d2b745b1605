# SPDX-License-Identifier: Apache-2.0
"""Client codec, server side, exchanges, client side, server codec: whatever both ends do, in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from tests.support.http2 import Loop, Recorder, Side, Wire, request
from tests.support.http_proxy import SERVICE
from waypoint.http.h2 import Http2Codec
from waypoint.http.h2_fields import encode_fields
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import Stream
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.client2 import Http2Client, Http2Try
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream, UpstreamEvents
from waypoint.routing.plan import Forward

LIMITS = replace(Http2Limits(), send_queue_bytes=20_000, connection_window_bytes=70_000)


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
        self.refusals: list[str] = []
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
        self.refusals.append(error.reason)

    def settle(self) -> None:
        self.loop.advance()
        while self.near.move() | self.far.move():
            self.loop.advance()


CLIENT = ["open", "data", "data", "long data", "end", "trailers", "reset", "pause", "resume"]
SERVER = ["head", "data", "data", "long data", "end", "trailers", "reset", "pause", "resume"]
MOVES = ["settle", "settle", "settle", "near", "far", "turn"]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("client"), st.sampled_from(CLIENT), st.integers(0, 3)),
        st.tuples(st.just("server"), st.sampled_from(SERVER), st.integers(0, 3)),
        st.tuples(st.just("move"), st.sampled_from(MOVES), st.just(0)),
    ),
    min_size=40,
    max_size=80,
)


class Play:
    """Both ends' actions, on their n-th stream where there is one."""

    def __init__(self, through: Through) -> None:
        self.t = through
        self.opened: list[Recorder] = []
        self.sent: dict[Stream | None, bytes] = {}

    def act(self, who: str, what: str, index: int) -> None:
        if who == "move":
            self.move(what)
            return
        side = self.t.near.side if who == "client" else self.t.far.side
        if what == "open":
            if side.codec.room:
                self.opened.append(side.open(request(headers=[("x-id", str(len(self.opened)))])))
            return
        known = list(side.recorders.values())
        if index < len(known) and (stream := known[-1 - index].stream) is not None and stream.open:
            if who == "server" and what not in ("reset", "pause", "resume"):
                side.respond(stream.id)
            self.send(side.codec, stream, what)

    def move(self, how: str) -> None:
        if how == "settle":
            self.t.settle()
        elif how == "turn":
            self.t.loop.advance()
        else:
            (self.t.near if how == "near" else self.t.far).move()

    def send(self, codec: Http2Codec, stream: Stream, what: str) -> None:
        if what in ("data", "long data"):
            if stream.sent_end or stream.final is not None:
                return
            # No two pieces are alike, so that none can stand for another.
            piece = b"%d." % len(self.sent.get(stream, b"")) * (1 if what == "data" else 20_000)
            self.sent[stream] = self.sent.get(stream, b"") + piece
            codec.send_data(stream, piece)
        elif what == "end":
            codec.send_end(stream)
        elif what == "trailers":
            codec.send_end(stream, encode_fields([("sum", "1")]))
        elif what == "reset":
            codec.reset(stream, ErrorCode.CANCEL)
        elif what == "pause":
            codec.pause(stream)
        elif what == "resume":
            codec.resume(stream)

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
def test_nothing_stays_behind_and_nothing_is_made_up(script: list[tuple[str, str, int]]) -> None:
    through = Through()
    play = Play(through)
    play.act("client", "open", 0)
    for step in script:
        play.act(*step)
    play.finish()
    for line in (through.near, through.far):
        assert not line.side.codec.streams
        assert not line.end.codec.streams
        assert not line.end.held
        assert not line.end.closed
        assert line.side.codec._send_window > 0
    assert through.upstream.idle
    assert not through.refusals
    assert len(through.records) == len(play.opened)
    for recorder in play.opened:
        check(recorder)
    far = through.far.side
    for head, theirs in zip(far.requests, far.recorders.values(), strict=True):
        mine = play.opened[int(dict(head.headers)["x-id"])]
        same_body(theirs, play.sent.get(mine.stream, b""))
        if mine.log and mine.log[0][0] == 200:  # type: ignore[index]
            same_body(mine, play.sent.get(theirs.stream, b""))


def same_body(recorder: Recorder, sent: bytes) -> None:
    """A body that ended is what was sent; one that was broken off, the beginning of it."""
    whole = any(isinstance(entry, list) for entry in recorder.log)
    assert recorder.data == sent if whole else sent.startswith(recorder.data)


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


sizes = st.lists(st.integers(1, 9) | st.integers(20_000, 60_000), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(sizes, st.lists(st.integers(0, 6), min_size=20, max_size=60))
def test_bodies_arrive_whole_at_any_pace(lengths: list[int], pace: list[int]) -> None:
    pieces = [bytes([index]) * length for index, length in enumerate(lengths)]
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
    assert len(through.refusals) <= ("near" in where)
    assert not through.near.end.codec.streams
