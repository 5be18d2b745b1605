# SPDX-License-Identifier: Apache-2.0
"""Both ends of a codec under test: recorders of its events, two codecs joined, and a raw peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from mesh.hbone import frames
from mesh.hbone.codec import Codec
from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.hpack import Header, encode
from mesh.hbone.limits import Limits
from mesh.hbone.stream import Role, Stream

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]


@dataclass
class StreamRecorder:
    """What happened on one stream, in order."""

    data: bytearray = field(default_factory=bytearray)
    log: list[object] = field(default_factory=list)
    stream: Stream | None = None

    def on_response(self, status: int, headers: Sequence[Header]) -> None:
        self.log.append(("response", status, list(headers)))

    def on_data(self, data: bytes) -> None:
        assert data, "never empty"
        assert "end" not in self.log, "no byte follows the end"
        self.data += data

    def on_end(self) -> None:
        self.log.append("end")

    def on_closed(self) -> None:
        self.log.append("closed")

    def on_reset(self, code: ErrorCode, *, by_peer: bool) -> None:
        self.log.append(("reset", code.name, "peer" if by_peer else "own"))

    def on_drained(self) -> None:
        pass


@dataclass
class Side:
    """A codec with recorders; as a server it accepts every request unless told otherwise."""

    role: Role
    limits: Limits = field(default_factory=Limits)
    accept: bool = True
    read: bool = True
    now_s: float = 0.0
    requests: list[tuple[bytes, list[Header]]] = field(default_factory=list)
    recorders: dict[int, StreamRecorder] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    on_request_hook: Callable[[Stream], None] | None = None

    def __post_init__(self) -> None:
        self.codec = Codec(self.role, self.limits, self, lambda: self.now_s)

    def on_request(self, stream: Stream, authority: bytes, headers: Sequence[Header]) -> StreamRecorder:
        self.requests.append((authority, list(headers)))
        recorder = self.recorders[stream.id] = StreamRecorder(stream=stream)
        if self.read:
            self.codec.resume(stream)
        if self.accept:
            self.codec.respond(stream, 200)
        if self.on_request_hook is not None:
            self.on_request_hook(stream)
        return recorder

    def on_settings(self) -> None:
        self.log.append("settings")

    def on_ping_ack(self) -> None:
        self.log.append("ping ack")

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        self.log.append(("goaway", code.name))

    def open(self, authority: bytes = b"10.0.0.1:80", headers: Sequence[Header] = ()) -> StreamRecorder:
        """Open a tunnel (client) whose consumer reads."""
        recorder = StreamRecorder()
        stream = self.codec.open(authority, headers, recorder)
        recorder.stream = stream
        self.recorders[stream.id] = recorder
        if self.read:
            self.codec.resume(stream)
        return recorder


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


def pair(client_limits: Limits | None = None, server_limits: Limits | None = None) -> tuple[Side, Side]:
    """Return a client and a server whose SETTINGS are exchanged."""
    client = Side(Role.CLIENT, client_limits or Limits())
    server = Side(Role.SERVER, server_limits or Limits())
    exchange(client, server)
    return client, server


class RawPeer:
    """Speaks frames, right or wrong, to a codec of the other role."""

    def __init__(
        self, role_of_codec: Role, limits: Limits | None = None, *, settings: dict[int, int] | None = None
    ) -> None:
        self.side = Side(role_of_codec, limits or Limits())
        preface = frames.PREFACE if role_of_codec is Role.SERVER else b""
        self.side.codec.receive(preface + frames.settings(settings or {}))
        self.side.codec.take()

    def send(self, *encoded: bytes) -> list[tuple[int, int, int, bytes]]:
        """Send frames; return what the codec answers, split into (type, flags, stream, payload)."""
        self.side.codec.receive(b"".join(encoded))
        return split(self.side.codec.take())

    def fails(self, *encoded: bytes) -> ConnectionFailedError:
        """Send frames that must end the connection; return the error after checking its GOAWAY."""
        with pytest.raises(ConnectionFailedError) as caught:
            self.side.codec.receive(b"".join(encoded))
        kind, _, stream_id, payload = split(self.side.codec.take())[-1]
        assert (kind, stream_id) == (frames.GOAWAY, 0)
        assert int.from_bytes(payload[4:8], "big") == caught.value.code
        return caught.value

    def connect(self, stream_id: int = 1, *, end: bool = False) -> list[tuple[int, int, int, bytes]]:
        """Ask for a tunnel."""
        return self.send(request(stream_id, end=end))


def request(stream_id: int = 1, headers: Sequence[Header] = CONNECT, *, end: bool = False) -> bytes:
    """Encode a request."""
    return frames.headers(stream_id, encode(headers), end_stream=end, max_frame_bytes=16384)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """Encode a DATA frame."""
    return frames.frame(frames.DATA, flags, stream_id, payload)


def split(encoded: bytes) -> list[tuple[int, int, int, bytes]]:
    """Split bytes into frames: (type, flags, stream, payload)."""
    found, at = [], 0
    while at < len(encoded):
        size = int.from_bytes(encoded[at : at + 3], "big")
        stream_id = int.from_bytes(encoded[at + 5 : at + 9], "big")
        found.append((encoded[at + 3], encoded[at + 4], stream_id, encoded[at + 9 : at + 9 + size]))
        at += 9 + size
    return found
