# SPDX-License-Identifier: Apache-2.0
"""The server's side in HTTP/1.1: one connection to an endpoint, one try at a time."""

from __future__ import annotations

from collections.abc import Callable

from mesh.net.relay import End, RelayOwner
from mesh.telemetry.reasons import Reason
from waypoint.http.h1 import Limits, MessageReader, format_chunk, format_last_chunk, format_request
from waypoint.http.message import (
    BadMessageError,
    Event,
    Framing,
    Headers,
    MessageEnd,
    RequestHead,
    ResponseHead,
)
from waypoint.proxy.server1 import end_to_end
from waypoint.proxy.streams import Failure, UpstreamEvents


class Http1Client:
    """One connection: an `End` for the server's bytes and their owner.

    `on_free` is called when a try is over and the connection may take another,
    `on_closed` once when it may not any more.
    """

    _peer: End

    def __init__(
        self,
        *,
        on_free: Callable[[Http1Client], None],
        on_closed: Callable[[Http1Client], None],
        limits: Limits | None = None,
    ) -> None:
        self._on_free = on_free
        self._on_closed = on_closed
        self._reader = MessageReader(requests=False, limits=limits or Limits())
        self._events: UpstreamEvents | None = None
        self._request: RequestHead | None = None
        self._chunked = False
        self._request_ended = False
        self._keep_alive = True
        self._raw = False
        self._reading_paused = False
        self.closed = False
        self.requests = 0
        """Tries that it has taken."""

    # --- requests

    def begin(self, events: UpstreamEvents) -> None:
        """Take the connection for one try."""
        if self._events is not None or self.closed:
            raise RuntimeError("the connection is not free")
        self.requests += 1
        self._events = events
        self._request_ended = False

    def send_head(self, head: RequestHead) -> None:
        """Send the request head; a body without a length is sent in chunks."""
        self._request = head
        self._reader.next_message(head.method)
        self._chunked = head.framing is Framing.CHUNKED
        headers = end_to_end(head.headers) if head.hop_by_hop else head.headers
        if head.upgrade:
            headers = [*headers, ("connection", "upgrade"), ("upgrade", head.upgrade)]
        self._peer.write(
            format_request(head.method, head.target, head.authority, headers, chunked=self._chunked)
        )

    def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        if not self.closed:
            self._peer.write(format_chunk(data) if self._chunked else data)

    def send_end(self, trailers: Headers) -> None:
        """Complete the request."""
        if self.closed:
            return
        if self._raw:
            self._peer.write_eof()
        elif self._chunked:
            self._peer.write(format_last_chunk(trailers))
        self._request_ended = True

    def cancel(self) -> None:
        """Give the try up; what is half done makes the connection useless."""
        self._events = None
        self.close()

    def pause_response(self) -> None:
        """Stop reading."""
        self._reading_paused = True
        self._peer.pause_reading()

    def resume_response(self) -> None:
        """Read again."""
        self._reading_paused = False
        self._peer.resume_reading()

    def close(self) -> None:
        """Break the connection off."""
        if not self.closed:
            self.closed = True
            self._peer.abort(Reason.LOCAL_CLOSE)
            self._on_closed(self)

    # --- End: bytes of the server

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Take the way to the server; `owner` is this connection itself."""
        self._peer = peer

    def write(self, data: bytes) -> None:
        """Take bytes of the server."""
        if self.closed:
            return
        events = self._events
        if events is None:
            # Nothing was asked: such bytes would be taken for the answer to the next request.
            self.close()
            return
        if self._raw:
            events.on_data(data)
            return
        self._reader.feed(data)
        try:
            for event in self._reader.events():
                self._take(event, events)
                if self._events is not events or self.closed or self._raw:
                    return
        except BadMessageError as error:
            self._fail(Failure.PROTOCOL, f"invalid response: {error.reason}")

    def _take(self, event: Event, events: UpstreamEvents) -> None:
        if isinstance(event, ResponseHead):
            self._take_head(event, events)
        elif isinstance(event, bytes):
            events.on_data(event)
        elif isinstance(event, MessageEnd):
            self._keep_alive = self._keep_alive and not self._reader.pending
            self._complete(events, event.trailers)

    def _take_head(self, head: ResponseHead, events: UpstreamEvents) -> None:
        if head.status == 101:
            if self._request is None or not self._request.upgrade:
                raise BadMessageError("101 without an upgrade request")
            self._raw = True
            self._keep_alive = False
            events.on_response(head)
            rest = self._reader.take_rest()
            if rest and self._events is events:
                events.on_data(rest)
            return
        if not head.interim:
            self._keep_alive = head.keep_alive and head.framing is not Framing.CLOSE
        events.on_response(head)

    def _complete(self, events: UpstreamEvents, trailers: Headers) -> None:
        """The response is whole: free the connection first, as its end may begin the next try."""
        self._events = None
        free = self._request_ended and self._keep_alive
        if free:
            # Whoever waits for a connection may take it at once.
            self._release()
        events.on_end(trailers)
        if not free:
            self.close()

    def _release(self) -> None:
        self._request = None
        if self._reading_paused:
            self.resume_response()
        self._on_free(self)

    def write_eof(self) -> None:
        """The server sends no more."""
        if self.closed:
            return
        events = self._events
        if events is None:
            self.close()
            return
        if self._raw:
            self._events = None
            events.on_end([])
            self._end()
            return
        try:
            end = self._reader.eof()
        except BadMessageError as error:
            self._fail(Failure.RESET, error.reason)
            return
        if isinstance(end, MessageEnd):
            self._events = None
            events.on_end(end.trailers)
            self.close()
        else:
            self._fail(Failure.RESET, "the server closed the connection before a response")

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self._peer.write_eof()
            self._on_closed(self)

    def abort(self, reason: Reason) -> None:
        """The connection is gone."""
        if self.closed:
            return
        self.closed = True
        events, self._events = self._events, None
        self._on_closed(self)
        if events is not None:
            events.on_failure(Failure.RESET, f"connection to the server lost: {reason.text}")

    def end_closed(self, end: End, reason: Reason) -> None:
        """The connection is gone for good (RelayOwner)."""
        self.abort(reason)

    def pause_reading(self) -> None:
        """The way to the server is full."""
        if self._events is not None:
            self._events.on_request_blocked(True)

    def resume_reading(self) -> None:
        """The way to the server has room again."""
        if self._events is not None:
            self._events.on_request_blocked(False)

    def _fail(self, failure: Failure, detail: str) -> None:
        events, self._events = self._events, None
        self.close()
        if events is not None:
            events.on_failure(failure, detail)
