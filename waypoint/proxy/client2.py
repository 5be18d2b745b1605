# SPDX-License-Identifier: Apache-2.0
"""The server's side in HTTP/2: one connection to an endpoint, many tries at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.stream import Role
from waypoint.http.h2_fields import encode_fields, encode_request
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import Stream
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.connection2 import Http2Connection, StreamSide
from waypoint.proxy.streams import CallLater, Failure, UpstreamEvents, Watch

_KEPT_BYTES = 65_536
"""Body of a try that is kept until its response begins."""
_MOVES = 8
"""Connections that may be closed under one try before it counts as failed."""


class Http2Client(Http2Connection):
    """One connection to a server.

    `on_room` is called when it may take another try than before, `on_closed` once when it
    takes none any more and no try runs on it.
    """

    def __init__(
        self,
        *,
        call_later: CallLater,
        on_room: Callable[[Http2Client], None],
        on_closed: Callable[[Http2Client], None],
        limits: Http2Limits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(Role.CLIENT, call_later=call_later, limits=limits, now=now)
        self._on_room_freed = on_room
        self._on_closed = on_closed
        self._begun: set[Http2Try] = set()
        self.requests = 0
        """Tries that it has taken."""

    @property
    def room(self) -> int:
        """Tries that it takes now: 0 where it is full, draining or closed."""
        return 0 if self.closed else max(0, self.codec.room - len(self._begun))

    @property
    def idle(self) -> bool:
        """Whether no try runs on it."""
        return not self.codec.streams and not self._begun

    def begin(self, attempt: Http2Try) -> None:
        """Take a try that has not sent its head."""
        self.requests += 1
        self._begun.add(attempt)

    def open(self, attempt: Http2Try, head: RequestHead) -> Stream:
        """Send the head of a try that it took."""
        self._begun.discard(attempt)
        return self.codec.open(encode_request(head), head.method, attempt, end=head.framing is Framing.NONE)

    def drop(self, attempt: Http2Try) -> None:
        """Forget a try that was given up before its head."""
        self._begun.discard(attempt)
        self.on_room()

    def on_room(self) -> None:
        """A try ended, or the server takes more."""
        super().on_room()
        if not self.closed:
            self._on_room_freed(self)

    def _explain(self, error: ConnectionFailedError, data: bytes) -> str:
        if not self.codec.settled and data[:7] == b"HTTP/1.":
            return "the server speaks HTTP/1.1 where HTTP/2 is asked for; see the port's name or appProtocol"
        return super()._explain(error, data)

    def _on_lost(self, detail: str, *, by_peer: bool) -> None:
        begun, self._begun = self._begun, set()
        self._on_closed(self)
        for attempt in begun:
            attempt.fail(Failure.CONNECT, detail)

    def _on_gone(self) -> None:
        """Whoever needs to know learned of it when the connection was lost."""


class Home(Protocol):
    """Where a try came from."""

    def over(self) -> None:
        """A try needs no connection any more; once for each."""
        ...

    def again(self, attempt: Http2Try) -> None:
        """Bind a try to another connection: its own closed without acting on it."""
        ...


class Http2Try(StreamSide):
    """One try: the `Upstream` of an exchange; holds what it is given until a connection takes it.

    What was sent is kept a while, so that a try that meets a connection which is just being
    closed (GOAWAY) moves to another one without anybody's notice.
    """

    __slots__ = (
        "_client",
        "_events",
        "_head",
        "_home",
        "_kept",
        "_kept_bytes",
        "_moves",
        "_stream",
        "_trailers",
        "_watch",
        "endpoint",
        "over",
        "reused",
    )

    def __init__(
        self,
        events: UpstreamEvents,
        *,
        endpoint: str = "",
        home: Home | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self._events = events
        self._home = home
        self._watch = watch
        self._client: Http2Client | None = None
        self._stream: Stream | None = None
        self._head: RequestHead | None = None
        self._kept: list[bytes] | None = []
        """The body so far; None: what was sent of it is too long to be sent again."""
        self._kept_bytes = 0
        self._trailers: Headers | None = None
        self._moves = 0
        self.endpoint = endpoint
        self.reused = False
        self.over = False

    def bind(self, client: Http2Client) -> None:
        """Run over `client`, which has room, from now on."""
        self._client = client
        self.reused = client.requests > 0
        client.begin(self)
        if self._head is None:
            return
        stream = self._stream = client.open(self, self._head)
        for data in self._kept or ():
            client.codec.send_data(stream, data)
        if self._kept_bytes > _KEPT_BYTES:
            self._kept = None
        if self._trailers is not None:
            self._send_end(client, stream, self._trailers)
        client.wake()
        if self._blocked:
            client.held.add(self)
            self._unblock(client, stream)

    def fail(self, failure: Failure, detail: str) -> None:
        """Report a failure, unless the try is over."""
        if not self.over:
            self._end(failure)
            self._events.on_failure(failure, f"{self.endpoint}: {detail}" if self.endpoint else detail)

    def _end(self, failure: Failure | None) -> None:
        self.over = True
        self._kept = None
        if self._blocked and self._client is not None:
            self._client.held.discard(self)
        if self._home is not None:
            self._home.over()
        if self._watch is not None:
            self._watch.on_over(failure)

    # --- Upstream

    def send_head(self, head: RequestHead) -> None:
        """Send or hold the head."""
        client = self._client
        self._head = head
        if client is not None and not self.over:
            self._stream = client.open(self, head)
            client.wake()

    def send_data(self, data: bytes) -> None:
        """Send or hold a piece of the body."""
        client, stream = self._client, self._stream
        if self.over:
            return
        if self._kept is not None:
            self._kept.append(data)
            self._kept_bytes += len(data)
        if client is None or stream is None:
            if not self._blocked:
                self._blocked = True
                self._events.on_request_blocked(True)
            return
        if self._kept_bytes > _KEPT_BYTES:
            self._kept = None
        self._send(client, stream, data)
        client.wake()

    def send_end(self, trailers: Headers) -> None:
        """Send or hold the end."""
        client, stream = self._client, self._stream
        self._trailers = trailers
        if client is not None and stream is not None and not self.over:
            self._send_end(client, stream, trailers)
            client.wake()

    def _send_end(self, client: Http2Client, stream: Stream, trailers: Headers) -> None:
        client.codec.send_end(stream, encode_fields(trailers) if trailers else b"")

    def cancel(self) -> None:
        """Give the try up: the server learns of it, other tries do not."""
        if self.over:
            return
        client, stream = self._client, self._stream
        self._end(None)
        if client is not None:
            if stream is None:
                client.drop(self)
            else:
                client.codec.reset(stream, ErrorCode.CANCEL)
                client.wake()

    def pause_response(self) -> None:
        """Give the server no more credit for the body."""
        if self._client is not None and self._stream is not None:
            self._client.codec.pause(self._stream)

    def resume_response(self) -> None:
        """Give it again."""
        if self._client is not None and self._stream is not None:
            self._client.codec.resume(self._stream)
            self._client.wake()

    # --- StreamEvents

    def on_response(self, head: ResponseHead) -> None:
        """Pass a head on."""
        self._kept = None
        if self._watch is not None:
            self._watch.on_response(head)
        self._events.on_response(head)

    def on_data(self, data: bytes) -> None:
        """Pass a piece of the body on."""
        self._events.on_data(data)

    def on_end(self, trailers: Headers) -> None:
        """The response is complete; what is missing of the request is not sent any more."""
        if self.over:
            return
        client, stream = self._client, self._stream
        if self._watch is not None:
            self._watch.on_end(trailers)
        self._end(None)
        if client is not None and stream is not None and stream.open:
            client.codec.reset(stream, ErrorCode.NO_ERROR)
        self._events.on_end(trailers)

    def on_reset(self, code: ErrorCode, detail: str, *, by_peer: bool) -> None:
        """The server gave the response up, or broke a rule, or is gone."""
        if not by_peer:
            self.fail(Failure.PROTOCOL, detail)
        elif code is ErrorCode.REFUSED_STREAM:
            self._refused(detail)
        elif code is ErrorCode.HTTP_1_1_REQUIRED:
            self.fail(Failure.PROTOCOL, "the server demands HTTP/1.1")
        else:
            self.fail(Failure.RESET, detail)

    def _refused(self, detail: str) -> None:
        """The server surely did not act on it, as if it had not been sent (RFC 9113 §8.7)."""
        client = self._client
        if (
            client is not None
            and client.codec.closing
            and self._home is not None
            and self._kept is not None
            and self._moves < _MOVES
        ):
            self._moves += 1
            client.held.discard(self)
            self._client = self._stream = None
            self._home.again(self)
        else:
            self.fail(Failure.REFUSED, detail)

    def on_drained(self) -> None:
        """Let the request's body go on."""
        if self._client is not None and self._stream is not None:
            self._unblock(self._client, self._stream)

    def _source_blocked(self, blocked: bool) -> None:
        self._events.on_request_blocked(blocked)
