# SPDX-License-Identifier: Apache-2.0
"""What an exchange needs of its two sides, whatever protocol each speaks."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from waypoint.cluster.circuit import Circuit
from waypoint.http.message import Headers, RequestHead, ResponseHead


class Failure(enum.Enum):
    """How an upstream try ended without a whole response."""

    CONNECT = "connect"
    """No connection could be made: nothing was sent."""
    REFUSED = "refused"
    """The server refused the stream (REFUSED_STREAM, GOAWAY): it surely did not act on it."""
    RESET = "reset"
    """The connection ended before the response was complete."""
    PROTOCOL = "protocol"
    """The response was not valid."""
    OVERFLOW = "overflow"
    """A limit on connections, pending or running requests was reached."""
    NO_HOST = "no host"
    """The service has no endpoint that may take the request."""
    NO_CLUSTER = "no cluster"
    """There is no such service or subset."""


class Downstream(Protocol):
    """The client's side of one request: takes the response."""

    def send_interim(self, head: ResponseHead) -> None:
        """Send a 1xx head."""
        ...

    def send_head(self, head: ResponseHead) -> None:
        """Send the response head; once."""
        ...

    def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        ...

    def send_end(self, trailers: Headers) -> None:
        """Complete the response."""
        ...

    def reset(self, detail: str) -> None:
        """Break the response off, visibly to the client."""
        ...

    def pause_request(self) -> None:
        """Stop reading the request's body."""
        ...

    def resume_request(self) -> None:
        """Read the request's body again."""
        ...


class Upstream(Protocol):
    """The server's side of one try: takes the request, before it is connected too."""

    @property
    def endpoint(self) -> str:
        """`address:port` of the endpoint; empty before one is chosen."""
        ...

    @property
    def reused(self) -> bool:
        """Whether its connection had carried another request before."""
        ...

    def send_head(self, head: RequestHead) -> None:
        """Send the request head; once, first."""
        ...

    def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        ...

    def send_end(self, trailers: Headers) -> None:
        """Complete the request."""
        ...

    def cancel(self) -> None:
        """Give the try up; no event follows."""
        ...

    def pause_response(self) -> None:
        """Stop reading the response's body."""
        ...

    def resume_response(self) -> None:
        """Read the response's body again."""
        ...


class UpstreamEvents(Protocol):
    """What a try reports, never from inside `Connect`; `on_end` or `on_failure` is the last, exactly once."""

    def on_response(self, head: ResponseHead) -> None:
        """Take a response head, interim ones included."""
        ...

    def on_data(self, data: bytes) -> None:
        """Take a piece of the body."""
        ...

    def on_end(self, trailers: Headers) -> None:
        """The response is complete."""
        ...

    def on_failure(self, failure: Failure, detail: str) -> None:
        """The try ended without a whole response."""
        ...

    def on_request_blocked(self, blocked: bool) -> None:
        """The connection takes no more (or again takes) bytes of the request."""
        ...


class Watch(Protocol):
    """Follows one try for whoever chose its endpoint."""

    @property
    def circuit(self) -> Circuit:
        """The bounds of the endpoint's service; the same for equal keys."""
        ...

    def on_response(self, head: ResponseHead) -> None:
        """A head came; it may be changed."""
        ...

    def on_end(self, trailers: Headers) -> None:
        """The response is complete; `on_over` follows."""
        ...

    def on_over(self, failure: Failure | None) -> None:
        """The try is over, exactly once; None: complete or given up."""
        ...


class Timer(Protocol):
    """A call in the future that can be called off."""

    def cancel(self) -> None:
        """Call it off; harmless after it happened."""
        ...


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Starts a timer: delay in seconds, callback."""
