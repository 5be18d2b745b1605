# SPDX-License-Identifier: Apache-2.0
"""One tunnel inside the codec, and what the codec tells its users. Pure."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mesh.hbone.flow import ReceiveWindow
from mesh.hbone.frames import ErrorCode
from mesh.hbone.hpack import Header


class Role(enum.Enum):
    """Which end of the HTTP/2 connection this is."""

    CLIENT = "client"
    SERVER = "server"


class StreamEvents(Protocol):
    """Learns what the peer does on one stream. Calls may call back into the codec."""

    def on_response(self, status: int, headers: Sequence[Header]) -> None:
        """The final response arrived (client only; once)."""
        ...

    def on_data(self, data: bytes) -> None:
        """Bytes arrived, in order; never empty."""
        ...

    def on_end(self) -> None:
        """The peer sends no more; this side still may. Once."""
        ...

    def on_closed(self) -> None:
        """Both directions ended orderly; the stream is gone. Once, or `on_reset`."""
        ...

    def on_reset(self, code: ErrorCode, *, by_peer: bool) -> None:
        """The stream is gone at once, by the peer's RST_STREAM or by its fault. Once, or `on_closed`."""
        ...

    def on_drained(self) -> None:
        """Everything that waited for window is framed."""
        ...


class ConnectionEvents(Protocol):
    """Learns what the peer does on the connection."""

    def on_request(self, stream: Stream, authority: bytes, headers: Sequence[Header]) -> StreamEvents:
        """A tunnel was asked for (server only); return who learns of it from now on."""
        ...

    def on_settings(self) -> None:
        """The peer's first SETTINGS arrived: it speaks HTTP/2."""
        ...

    def on_ping_ack(self) -> None:
        """The peer answered a PING."""
        ...

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        """The peer takes no new tunnel; live ones go on."""
        ...


class Stream:
    """State of one tunnel; written by the codec only."""

    __slots__ = (
        "answered",
        "end_queued",
        "events",
        "id",
        "queue",
        "queued_bytes",
        "receive",
        "received_end",
        "send_window",
        "sent_end",
    )

    def __init__(self, stream_id: int, send_window: int, receive: ReceiveWindow) -> None:
        self.id = stream_id
        self.events: StreamEvents | None = None
        self.send_window = send_window
        """What the peer takes now; negative after it lowered its initial window."""
        self.receive = receive
        self.queue: deque[bytes | memoryview] = deque()
        """Bytes that wait for window."""
        self.queued_bytes = 0
        self.end_queued = False
        self.sent_end = False
        self.received_end = False
        self.answered = False
        """Whether the final response was sent or received."""
