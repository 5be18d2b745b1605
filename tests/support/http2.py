# SPDX-License-Identifier: Apache-2.0
"""Both ends of the waypoint's HTTP/2 codec under test: recorders, two codecs joined, a raw peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.hpack import Header, encode
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import split
from waypoint.http.h2 import Http2Codec
from waypoint.http.h2_fields import encode_request, encode_response
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import Stream
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead, ResponseHead

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"shop"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]
OK = [(b":status", b"200")]


@dataclass
class Recorder:
    """What happened on one stream, in order; neighbouring pieces of data are one."""

    log: list[object] = field(default_factory=list)
    stream: Stream | None = None
    hook: Callable[[str], None] = lambda what: None

    def on_response(self, head: ResponseHead) -> None:
        self.log.append((head.status, head.headers, head.framing))
        self.hook("response")

    def on_data(self, data: bytes) -> None:
        assert data, "never empty"
        assert not any(isinstance(entry, list) for entry in self.log), "no byte follows the end"
        if self.log and isinstance(self.log[-1], bytes):
            self.log[-1] += data
        else:
            self.log.append(data)
        self.hook("data")

    def on_end(self, trailers: Headers) -> None:
        self.log.append(trailers)
        self.hook("end")

    def on_reset(self, code: ErrorCode, detail: str, *, by_peer: bool) -> None:
        self.log.append((code.name, "peer" if by_peer else "own"))

    def on_drained(self) -> None:
        self.hook("drained")

    @property
    def data(self) -> bytes:
        return b"".join(entry for entry in self.log if isinstance(entry, bytes))


@dataclass
class Side:
    """A codec with recorders."""

    role: Role
    limits: Http2Limits = field(default_factory=Http2Limits)
    now_s: float = 0.0
    requests: list[RequestHead] = field(default_factory=list)
    recorders: dict[int, Recorder] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    log: list[object] = field(default_factory=list)
    rooms: int = 0

    def __post_init__(self) -> None:
        self.codec = Http2Codec(self.role, self.limits, self, lambda: self.now_s)

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        self.requests.append(head)
        stream.events = self.recorders[stream.id] = Recorder(stream=stream)

    def on_refused(self, stream: Stream, error: BadMessageError) -> None:
        self.refused.append(error.reason)
        if stream.open:
            self.codec.respond(stream, encode([(b":status", b"%d" % error.status)]))
            self.codec.send_end(stream)

    def on_settings(self) -> None:
        self.log.append("settings")

    def on_ping_ack(self) -> None:
        self.log.append("ping ack")

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        self.log.append(("goaway", code.name))

    def on_room(self) -> None:
        self.rooms += 1

    # --- What tests do with it

    def open(self, head: RequestHead | None = None, *, end: bool = False) -> Recorder:
        """Send a request's head (client)."""
        head = head or request()
        recorder = Recorder()
        recorder.stream = self.codec.open(encode_request(head), head.method, recorder, end=end)
        self.recorders[recorder.stream.id] = recorder
        return recorder

    def stream(self, stream_id: int = 1) -> Stream:
        """Return a stream, open or not."""
        stream = self.recorders[stream_id].stream
        assert stream is not None
        return stream

    def respond(self, stream_id: int = 1, status: int = 200, headers: Headers | None = None) -> None:
        """Send a response's head (server)."""
        self.codec.respond(self.stream(stream_id), encode_response(response(status, headers)))


def request(method: str = "POST", headers: Headers | None = None, **changes: object) -> RequestHead:
    """Make a head."""
    head = RequestHead(
        method=method, target="/", authority="shop", headers=headers or [], framing=Framing.CHUNKED
    )
    for name, value in changes.items():
        setattr(head, name, value)
    return head


def response(status: int = 200, headers: Headers | None = None) -> ResponseHead:
    """Make a head."""
    return ResponseHead(status=status, reason="", headers=headers or [], framing=Framing.CHUNKED)


def exchange(left: Side, right: Side) -> None:
    """Move bytes both ways until nobody has any."""
    while True:
        to_right, to_left = left.codec.take(), right.codec.take()
        if not to_right and not to_left:
            return
        if to_right:
            right.codec.receive(to_right)
        if to_left:
            left.codec.receive(to_left)


def pair(client: Http2Limits | None = None, server: Http2Limits | None = None) -> tuple[Side, Side]:
    """Return a client and a server whose SETTINGS are exchanged."""
    sides = Side(Role.CLIENT, client or Http2Limits()), Side(Role.SERVER, server or Http2Limits())
    exchange(*sides)
    return sides


class RawPeer:
    """Speaks frames, right or wrong, to a codec of `role`."""

    def __init__(
        self,
        role: Role = Role.SERVER,
        limits: Http2Limits | None = None,
        settings: dict[int, int] | None = None,
    ) -> None:
        self.side = Side(role, limits or Http2Limits())
        preface = frames.PREFACE if role is Role.SERVER else b""
        self.side.codec.receive(preface + frames.settings(settings or {}))
        self.side.codec.take()

    def send(self, *encoded: bytes) -> list[tuple[int, int, int, bytes]]:
        """Send frames; return what the codec answers, split into (type, flags, stream, payload)."""
        self.side.codec.receive(b"".join(encoded))
        return split(self.side.codec.take())

    def fails(self, *encoded: bytes) -> ErrorCode:
        """Send frames that must end the connection; return the error after checking its GOAWAY."""
        with pytest.raises(ConnectionFailedError) as caught:
            self.side.codec.receive(b"".join(encoded))
        kind, _, stream_id, payload = split(self.side.codec.take())[-1]
        assert (kind, stream_id) == (frames.GOAWAY, 0)
        assert int.from_bytes(payload[4:8], "big") == caught.value.code
        return caught.value.code

    def resets(self, *encoded: bytes) -> ErrorCode:
        """Send frames that must end one stream and nothing else; return the code of RST_STREAM."""
        kind, _, _, payload = self.send(*encoded)[-1]
        assert kind == frames.RST_STREAM
        return ErrorCode(int.from_bytes(payload, "big"))


def heads(stream_id: int, fields: list[Header], *, end: bool = False) -> bytes:
    """Encode HEADERS."""
    return frames.headers(stream_id, encode(fields), end_stream=end, max_frame_bytes=16384)


def data(stream_id: int, payload: bytes, *, end: bool = False, flags: int = 0) -> bytes:
    """Encode DATA."""
    return frames.frame(frames.DATA, flags | (frames.END_STREAM if end else 0), stream_id, payload)


@dataclass
class Appointment:
    """A timer of `Loop`."""

    at_s: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Time by hand: `call_later` and `now` of connections, `run` and `advance` for tests."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.appointments: list[Appointment] = []

    def now(self) -> float:
        return self.now_s

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Appointment:
        self.appointments.append(Appointment(self.now_s + seconds, callback))
        return self.appointments[-1]

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass and what is due happen, in order."""
        until = self.now_s + seconds
        while True:
            self.appointments = [a for a in self.appointments if not a.cancelled]
            due = [a for a in self.appointments if a.at_s <= until]
            if not due:
                break
            first = min(due, key=lambda a: a.at_s)
            self.appointments.remove(first)
            self.now_s = max(self.now_s, first.at_s)
            first.callback()
        self.now_s = until


@dataclass
class Wire:
    """The far end of a connection: what was written to it and done with it."""

    data: bytearray = field(default_factory=bytearray)
    writes: int = 0
    ended: bool = False
    aborted: Reason | None = None
    paused: bool = False

    def start(self, peer: object, owner: object) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        assert not self.ended, "nothing is written after the end"
        self.data += data
        self.writes += 1

    def write_eof(self) -> None:
        self.ended = True

    def abort(self, reason: Reason) -> None:
        self.aborted = reason

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data
