# SPDX-License-Identifier: Apache-2.0
"""The client's side in HTTP/1.1: one connection, one exchange at a time.

The connection stands where an application would: bytes of the client arrive by
`write`, as at the end of a relay, and the response goes to `peer.write`.
"""

from __future__ import annotations

import http
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mesh.net.relay import End, RelayOwner
from mesh.telemetry.reasons import Reason
from waypoint.http.h1 import Limits, MessageReader, format_chunk, format_last_chunk, format_response
from waypoint.http.message import (
    HOP_BY_HOP,
    BadMessageError,
    Event,
    Framing,
    Headers,
    MessageEnd,
    RequestHead,
    ResponseHead,
)
from waypoint.proxy.exchange import Exchange
from waypoint.proxy.streams import CallLater, Downstream, Timer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of one client connection."""

    message: Limits = field(default_factory=Limits)
    head_timeout_s: float = 60.0
    """From the first byte of a head to its last; then 408."""
    idle_timeout_s: float = 3600.0
    """Between two requests; at most twice that."""
    pipelined_bytes: int = 65_536
    """Bytes of later requests held while one is served."""
    drain_bytes: int = 1_048_576
    """Rest of a request's body read and dropped after an early response."""
    drain_s: float = 5.0
    """The same in time."""


class Service(Protocol):
    """Whoever decides what becomes of requests."""

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        """Make the exchange of a request; the caller starts it."""
        ...

    def refused(self, error: BadMessageError) -> None:
        """Count and log a request that was not valid."""
        ...


class Http1Server:
    """One client connection: an `End` for its bytes, their owner, and the `Downstream` of its exchanges.

    The caller starts it with the client's end and that end with it, as both peer and
    owner; `on_closed` is called once, when the client's end is gone for good.
    """

    _peer: End

    def __init__(
        self,
        *,
        service: Service,
        call_later: CallLater,
        on_closed: Callable[[], None],
        limits: ServerLimits | None = None,
    ) -> None:
        self._service = service
        self._call_later = call_later
        self._on_closed = on_closed
        self._limits = limits or ServerLimits()
        self._reader = MessageReader(requests=True, limits=self._limits.message)
        self._exchange: Exchange | None = None
        self._request: RequestHead | None = None
        self._request_ended = False
        self._response_ended = False
        self._chunked = False
        self._keep_alive = True
        self._winding_down = False
        self._raw = False
        self._draining = -1
        self._client_ended = False
        self._closed = False
        self._held: set[str] = set()
        self._served = False
        self._timer_is_for_head = False
        self._timer: Timer | None = call_later(self._limits.idle_timeout_s, self._on_idle)

    @property
    def idle(self) -> bool:
        """Whether no request is being received or served."""
        return self._exchange is None and self._reader.idle

    def wind_down(self) -> None:
        """Close after the next response whose head can say so: no client is cut off unawares."""
        self._winding_down = True

    def shut_down(self) -> None:
        """Close at once when no request runs, else as `wind_down` does."""
        self._winding_down = True
        if self.idle:
            self._close()

    # --- End: bytes of the client

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Take the way to the client; `owner` is this connection itself."""
        self._peer = peer

    def write(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self._closed:
            return
        if self._draining >= 0:
            self._draining -= len(data)
            if self._draining < 0:
                self._abort()
            return
        if self._raw and self._exchange is not None:
            self._exchange.on_request_data(data)
            return
        was_idle = self.idle
        self._reader.feed(data)
        self._advance()
        if was_idle and self._exchange is None and not self._closed and not self._reader.idle:
            # Most heads come whole: a timer only for one that does not.
            self._set_timer(self._limits.head_timeout_s, self._on_slow_head)

    def write_eof(self) -> None:
        """The client sends no more."""
        self._client_ended = True
        if self._closed:
            self._set_timer(None)
            return
        if self._raw and self._exchange is not None:
            self._exchange.on_request_end([])
        elif self._draining >= 0 or self.idle:
            self._close()
        elif not self._request_ended:
            if self._exchange is not None:
                self._exchange.on_request_reset()
            self._abort()
        else:
            self._keep_alive = False

    def abort(self, reason: Reason) -> None:
        """The client's connection broke."""
        if self._closed:
            return
        self._closed = True
        self._set_timer(None)
        if self._exchange is not None:
            self._exchange.on_request_reset()

    def end_closed(self, end: End, reason: Reason) -> None:
        """The client's connection is gone (RelayOwner)."""
        self._set_timer(None)
        self.abort(reason)
        self._on_closed()

    def pause_reading(self) -> None:
        """The way to the client is full."""
        if self._exchange is not None:
            self._exchange.on_response_blocked(True)

    def resume_reading(self) -> None:
        """The way to the client has room again."""
        if self._exchange is not None:
            self._exchange.on_response_blocked(False)

    # --- requests

    def _advance(self) -> None:
        try:
            for event in self._reader.events():
                self._take(event)
                if self._closed or self._raw or self._draining >= 0:
                    return
        except BadMessageError as error:
            self._refuse(error)
            return
        if self._request_ended and self._reader.pending:
            self._hold("pipeline")

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestHead):
            self._served = True
            if self._timer_is_for_head:
                self._set_timer(self._limits.idle_timeout_s, self._on_idle)
            self._request = event
            self._request_ended = self._response_ended = False
            self._keep_alive = self._keep_alive and event.keep_alive and bool(event.version_minor)
            self._exchange = self._service.begin(event, self)
            self._exchange.start()
        elif self._exchange is None:
            return
        elif isinstance(event, bytes):
            self._exchange.on_request_data(event)
        elif isinstance(event, MessageEnd):
            self._request_ended = True
            self._exchange.on_request_end(event.trailers)
            self._finish_if_complete()

    def _refuse(self, error: BadMessageError) -> None:
        self._service.refused(error)
        if self._exchange is not None:
            self._exchange.on_request_reset()
            self._abort()
            return
        body = f"{error.reason}\n".encode()
        headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
        head = format_response(error.status, _phrase(error.status), headers, chunked=False, close=True)
        self._peer.write(head + body)
        self._linger()

    # --- Downstream: the response

    def send_interim(self, head: ResponseHead) -> None:
        """Send a 1xx head, to clients that know of them (HTTP/1.1)."""
        if self._request is not None and self._request.version_minor and not self._closed:
            headers = [(n, v) for n, v in head.headers if n not in HOP_BY_HOP]
            self._peer.write(format_response(head.status, head.reason, headers, chunked=False, close=False))

    def send_head(self, head: ResponseHead) -> None:
        """Send the response head in the framing that this client can read."""
        request = self._request
        if self._closed or request is None:
            return
        if head.status == 101:
            self._switch(head, request)
            return
        headers = end_to_end(head.headers) if head.hop_by_hop else head.headers
        self._chunked = False
        if head.framing in (Framing.CHUNKED, Framing.CLOSE):
            self._chunked = bool(request.version_minor)
            self._keep_alive = self._keep_alive and self._chunked
        if not self._request_ended and request.framing is not Framing.NONE:
            self._keep_alive = False
        self._keep_alive = self._keep_alive and not self._winding_down
        phrase = head.reason or _phrase(head.status)
        self._peer.write(
            format_response(head.status, phrase, headers, chunked=self._chunked, close=not self._keep_alive)
        )

    def _switch(self, head: ResponseHead, request: RequestHead) -> None:
        """Pass a 101 on: from here both directions are bytes."""
        headers = [*end_to_end(head.headers), ("connection", "upgrade"), ("upgrade", request.upgrade)]
        self._peer.write(
            format_response(101, head.reason or _phrase(101), headers, chunked=False, close=False)
        )
        self._raw = True
        self._keep_alive = False
        self._chunked = False
        rest = self._reader.take_rest()
        if rest and self._exchange is not None:
            self._exchange.on_request_data(rest)

    def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        if not self._closed:
            self._peer.write(format_chunk(data) if self._chunked else data)

    def send_end(self, trailers: Headers) -> None:
        """Complete the response; trailers reach a client of chunked responses only."""
        if self._closed:
            return
        if self._chunked:
            self._peer.write(format_last_chunk(trailers))
        self._response_ended = True
        self._finish_if_complete()

    def reset(self, detail: str) -> None:
        """Break off: the connection is reset, so that no client takes the rest for the whole."""
        self._abort()

    def pause_request(self) -> None:
        """Stop reading the body."""
        self._hold("upstream")

    def resume_request(self) -> None:
        """Read the body again."""
        self._release("upstream")

    # --- ends

    def _finish_if_complete(self) -> None:
        if not self._response_ended or self._closed:
            return
        if self._raw:
            self._close()
            return
        if not self._request_ended:
            if self._request is not None and self._request.framing is not Framing.NONE:
                self._linger()
            return
        self._exchange = None
        self._request = None
        self._held.discard("upstream")
        if not self._keep_alive:
            self._close()
            return
        self._reader.next_message()
        if self._reader.pending:
            self._release("pipeline")
            self._advance()
            if self._exchange is None and not self._closed and not self._reader.idle:
                self._set_timer(self._limits.head_timeout_s, self._on_slow_head)

    def _linger(self) -> None:
        """End our side and drop what the client still sends, so that it reads the response."""
        self._exchange = None
        self._draining = self._limits.drain_bytes
        self._held.clear()
        self._peer.resume_reading()
        self._peer.write_eof()
        self._set_timer(self._limits.drain_s, self._abort)
        if self._client_ended:
            self._close()

    def _close(self) -> None:
        """End our side; a client that does not end its own in time is reset."""
        if not self._closed:
            self._closed = True
            self._set_timer(None if self._client_ended else self._limits.drain_s, self._break_off)
            self._peer.write_eof()

    def _break_off(self) -> None:
        self._peer.abort(Reason.IDLE_TIMEOUT)

    def _abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._set_timer(None)
            self._peer.abort(Reason.FORCED_CLOSE)

    def _on_idle(self) -> None:
        """Close a connection without a request since the timer began; one timer serves many requests."""
        self._timer = None
        if self.idle and not self._served:
            self._close()
        else:
            self._served = False
            self._set_timer(self._limits.idle_timeout_s, self._on_idle)

    def _on_slow_head(self) -> None:
        self._timer = None
        if self._exchange is None:
            self._refuse(
                BadMessageError(f"request head not complete within {self._limits.head_timeout_s:g} s", 408)
            )

    def _set_timer(self, seconds: float | None, callback: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or callback is None else self._call_later(seconds, callback)
        self._timer_is_for_head = self._timer is not None and callback == self._on_slow_head

    def _hold(self, why: str) -> None:
        if not self._held:
            self._peer.pause_reading()
        self._held.add(why)

    def _release(self, why: str) -> None:
        if why in self._held:
            self._held.discard(why)
            if not self._held and not self._closed:
                self._peer.resume_reading()


def end_to_end(headers: Headers) -> Headers:
    """Return the fields that may be forwarded (RFC 9110 §7.6.1)."""
    named: set[str] = set()
    for name, value in headers:
        if name == "connection":
            named.update(token.strip().lower() for token in value.split(","))
    if not named:
        return [(name, value) for name, value in headers if name not in HOP_BY_HOP]
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP and name not in named]


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
