# SPDX-License-Identifier: Apache-2.0
"""One request of the waypoint's own, its answer collected: how filters ask other services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from waypoint.http.message import Headers, RequestHead, ResponseHead
from waypoint.proxy.streams import Failure, Upstream, UpstreamEvents


class CallError(Exception):
    """A call had no whole answer; says why (the other service's or the network's fault)."""


@dataclass(slots=True, kw_only=True)
class CallResult:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes
    trailers: Headers = field(default_factory=list)


Open = Callable[[UpstreamEvents], Upstream]
"""Begins a try at an endpoint; it never reports from inside."""


async def call(
    begin: Open, head: RequestHead, body: bytes, *, timeout_s: float, max_answer_bytes: int
) -> CallResult:
    """Send one request and return its answer.

    Raises:
        CallError: no connection, a broken or too large answer, or none in time.
    """
    collector = _Collector(max_answer_bytes)
    upstream = begin(collector)
    collector.upstream = upstream
    upstream.send_head(head)
    if body:
        upstream.send_data(body)
    upstream.send_end([])
    try:
        async with asyncio.timeout(timeout_s):
            return await collector.result
    except TimeoutError:
        upstream.cancel()
        raise CallError(f"{upstream.endpoint or 'it'} did not answer within {timeout_s:g} s") from None
    except asyncio.CancelledError:
        upstream.cancel()
        raise


class _Collector:
    """Takes the events of one try."""

    upstream: Upstream

    def __init__(self, max_bytes: int) -> None:
        self.result: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        self._max_bytes = max_bytes
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def on_response(self, head: ResponseHead) -> None:
        if not head.interim:
            self._head = head

    def on_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._max_bytes:
            self._pieces.append(data)
        elif not self.result.done():
            self.upstream.cancel()
            self.result.set_exception(CallError(f"its answer is larger than {self._max_bytes} bytes"))

    def on_end(self, trailers: Headers) -> None:
        if self.result.done():
            return
        if self._head is None:
            self.result.set_exception(CallError("it ended without an answer"))
            return
        self.result.set_result(
            CallResult(
                status=self._head.status,
                headers=self._head.headers,
                body=b"".join(self._pieces),
                trailers=trailers,
            )
        )

    def on_failure(self, failure: Failure, detail: str) -> None:
        if not self.result.done():
            self.result.set_exception(CallError(f"{failure.value}: {detail}"))

    def on_request_blocked(self, blocked: bool) -> None:
        """Nothing to hold: the body is small and sent whole."""
