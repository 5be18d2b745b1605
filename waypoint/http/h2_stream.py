# SPDX-License-Identifier: Apache-2.0
"""One request inside the HTTP/2 codec, and what the codec tells its users. Pure."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mesh.hbone.flow import ReceiveWindow
from mesh.hbone.frames import ErrorCode
from waypoint.http.message import BadMessageError, Headers, RequestHead, ResponseHead


class StreamEvents(Protocol):
    """Learns what the peer does on one stream. Calls may call back into the codec.

    After the peer's end and our own, or after `on_reset`, nothing more is told.
    """

    def on_response(self, head: ResponseHead) -> None:
        """A response head arrived, interim ones included (client only)."""
        ...

    def on_data(self, data: bytes) -> None:
        """Bytes of the body arrived, in order; never empty."""
        ...

    def on_end(self, trailers: Headers) -> None:
        """The peer's message is complete; once."""
        ...

    def on_reset(self, code: ErrorCode, detail: str, *, by_peer: bool) -> None:
        """The stream is gone at once, by the peer's RST_STREAM or GOAWAY or by its fault; once."""
        ...

    def on_drained(self) -> None:
        """Everything that waited for window is framed."""
        ...


class ConnectionEvents(Protocol):
    """Learns what the peer does on the connection."""

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        """A request begins (server only): set `stream.events`, or answer or reset it at once."""
        ...

    def on_refused(self, stream: Stream, error: BadMessageError) -> None:
        """A request was not valid (server only). Answer it where it is `open`; else it was reset."""
        ...

    def on_settings(self) -> None:
        """The peer's first SETTINGS arrived: it speaks HTTP/2."""
        ...

    def on_ping_ack(self) -> None:
        """The peer answered a PING."""
        ...

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        """The peer takes no new stream; live ones go on."""
        ...

    def on_room(self) -> None:
        """A stream ended, or the peer takes more of them than before."""
        ...


class Stream:
    """State of one stream; written by the codec only."""

    __slots__ = (
        "answered",
        "events",
        "expected",
        "final",
        "head_at",
        "head_turn",
        "id",
        "method",
        "open",
        "queue",
        "queued_bytes",
        "receive",
        "received_end",
        "send_window",
        "sent_end",
    )

    def __init__(self, stream_id: int, send_window: int, method: str) -> None:
        self.id = stream_id
        self.events: StreamEvents | None = None
        self.method = method
        self.open = True
        """Whether the connection still knows it."""
        self.send_window = send_window
        """What the peer takes now; negative after it lowered its initial window."""
        self.receive: ReceiveWindow | None = None
        """What the peer may send; None while it is the initial one, untouched."""
        self.expected = -1
        """Bytes of body that content-length still promises; -1: it promises nothing."""
        self.queue: deque[bytes | memoryview] | None = None
        """Bytes that wait for window."""
        self.queued_bytes = 0
        self.final: bytes | None = None
        """Trailer block (empty: none) that follows what is queued."""
        self.sent_end = False
        self.received_end = False
        self.answered = False
        """Whether the final response head was sent or received."""
        self.head_turn = -1
        """Turn of writing in which its last frame was made..."""
        self.head_at = 0
        """...and where in the codec's output that frame's header is: END_STREAM can still be set there."""
