# SPDX-License-Identifier: Apache-2.0
"""The client's side in HTTP/2: one connection, an exchange for each of its streams.

The same to its surroundings as `server1`: bytes of the client arrive by `write`, the
responses go to `peer.write`, and a `Service` makes the exchanges.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from waypoint.http.grpc import failure_headers, is_grpc
from waypoint.http.h2_fields import encode_fields, encode_response
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import Stream
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.connection2 import Http2Connection, StreamSide
from waypoint.proxy.exchange import Exchange
from waypoint.proxy.server1 import Service
from waypoint.proxy.streams import CallLater


class Http2Server(Http2Connection):
    """One client connection; `on_closed` is called once, when the client's end is gone for good."""

    def __init__(
        self,
        *,
        service: Service,
        call_later: CallLater,
        on_closed: Callable[[], None],
        limits: Http2Limits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(Role.SERVER, call_later=call_later, limits=limits, now=now)
        self._service = service
        self._on_closed = on_closed

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        """Begin the exchange of a request."""
        request = ServedRequest(self, stream)
        try:
            exchange = self._service.begin(head, request)
        except BadMessageError as error:
            self._service.refused(error)
            self._answer_refused(stream, error, grpc=is_grpc(head.headers))
            return
        request.exchange = exchange
        stream.events = request
        exchange.start()

    def on_refused(self, stream: Stream, error: BadMessageError) -> None:
        """Answer a request that is over a limit, count any that is not valid."""
        self._service.refused(error)
        if stream.open:
            self._answer_refused(stream, error, grpc=False)

    def _answer_refused(self, stream: Stream, error: BadMessageError, *, grpc: bool) -> None:
        body = b"" if grpc else f"{error.reason}\n".encode()
        if grpc:
            status, headers = 200, failure_headers(error.status, error.reason)
        else:
            status, headers = error.status, [("content-type", "text/plain; charset=utf-8")]
        head = ResponseHead(status=status, reason="", headers=headers, framing=Framing.CHUNKED)
        self.codec.respond(stream, encode_response(head))
        self.codec.send_data(stream, body)
        self.codec.send_end(stream)

    def _on_lost(self, detail: str, *, by_peer: bool) -> None:
        """Tell what the client did wrong; every exchange learned of the end by its stream."""
        if not by_peer:
            self._service.refused(BadMessageError(detail))

    def _end_late(self, code: ErrorCode, detail: str) -> None:
        if code is not ErrorCode.NO_ERROR:
            self._service.refused(BadMessageError(detail, 408))
        super()._end_late(code, detail)

    def _on_gone(self) -> None:
        self._on_closed()


class ServedRequest(StreamSide):
    """One stream: the `Downstream` of its exchange, and what the client does on it."""

    __slots__ = ("_connection", "_stream", "exchange")

    exchange: Exchange

    def __init__(self, connection: Http2Server, stream: Stream) -> None:
        super().__init__()
        self._connection = connection
        self._stream = stream

    # --- Downstream

    def send_interim(self, head: ResponseHead) -> None:
        """Send a 1xx head."""
        self._connection.codec.send_interim(self._stream, encode_response(head))
        self._connection.wake()

    def send_head(self, head: ResponseHead) -> None:
        """Send the response head; once."""
        self._connection.codec.respond(self._stream, encode_response(head))
        self._connection.wake()

    def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        self._send(self._connection, self._stream, data)
        self._connection.wake()

    def send_end(self, trailers: Headers) -> None:
        """Complete the response; a request that is not complete yet is stopped."""
        self._connection.codec.send_end(self._stream, encode_fields(trailers) if trailers else b"")
        self._connection.held.discard(self)
        self._connection.wake()

    def reset(self, detail: str) -> None:
        """Break the response off, visibly to the client."""
        self._connection.codec.reset(self._stream, ErrorCode.INTERNAL_ERROR)
        self._connection.held.discard(self)
        self._connection.wake()

    def pause_request(self) -> None:
        """Give the client no more credit for the body."""
        self._connection.codec.pause(self._stream)

    def resume_request(self) -> None:
        """Give it again."""
        self._connection.codec.resume(self._stream)
        self._connection.wake()

    # --- StreamEvents

    def on_response(self, head: ResponseHead) -> None:
        """Clients only."""
        raise NotImplementedError

    def on_data(self, data: bytes) -> None:
        """Pass a piece of the request's body on."""
        self.exchange.on_request_data(data)

    def on_end(self, trailers: Headers) -> None:
        """The request is complete."""
        self.exchange.on_request_end(trailers)

    def on_reset(self, code: ErrorCode, detail: str, *, by_peer: bool) -> None:
        """The client gave the request up, or broke a rule on it, or is gone."""
        self._connection.held.discard(self)
        self.exchange.on_request_reset()

    def on_drained(self) -> None:
        """Let the response go on."""
        self._unblock(self._connection, self._stream)

    def _source_blocked(self, blocked: bool) -> None:
        self.exchange.on_response_blocked(blocked)
