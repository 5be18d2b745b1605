# SPDX-License-Identifier: Apache-2.0
"""Connections to endpoints: reused while idle, dialled when there is none, bounded in number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from mesh.net.relay import End
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from waypoint.http.message import Headers, RequestHead, ResponseHead
from waypoint.proxy.client1 import Http1Client
from waypoint.proxy.streams import CallLater, Failure, Timer, UpstreamEvents


class Endpoint(Protocol):
    """Where a request may go: equal keys share connections."""

    @property
    def key(self) -> Hashable:
        """What tells connections apart: address, port and how it is reached."""
        ...

    @property
    def label(self) -> str:
        """`address:port`, for logs and to tell endpoints apart when trying again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of all connections to endpoints; beyond them a request is answered 503, flag UO."""

    connections: int = 4096
    """Open connections, running and idle."""
    pending: int = 1024
    """Requests that wait for a dial."""
    idle_per_endpoint: int = 64
    """Connections kept for later; more are closed."""
    idle_s: float = 60.0
    """How long one is kept."""
    connect_s: float = 10.0
    """Deadline of a dial."""


Dial = Callable[[Endpoint], Awaitable[End]]
"""Opens a connection. Raises DialError."""


class Pool:
    """All HTTP/1.1 connections of the waypoint; loop thread only."""

    def __init__(
        self, *, dial: Dial, call_later: CallLater, owner: TaskOwner, limits: PoolLimits | None = None
    ):
        self._dial = dial
        self._call_later = call_later
        self._owner = owner
        self._limits = limits or PoolLimits()
        self._idle: dict[Hashable, list[tuple[Http1Client, Timer]]] = {}
        self._keys: dict[Http1Client, Hashable] = {}
        self._load: dict[Hashable, int] = {}
        self.pending = 0

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._keys)

    def load(self, key: Hashable) -> int:
        """Return how many requests run or wait on the endpoint."""
        return self._load.get(key, 0)

    def open(self, endpoint: Endpoint | None, detail: str, events: UpstreamEvents) -> PooledRequest:
        """Begin a try on `endpoint`; None fails it with `detail` on the loop's next turn."""
        request = PooledRequest(self, endpoint, events)
        if endpoint is None:
            request.fail_soon(Failure.NO_HOST, detail)
            return request
        self._load[endpoint.key] = self._load.get(endpoint.key, 0) + 1
        idle = self._idle.get(endpoint.key)
        if idle:
            client, timer = idle.pop()
            timer.cancel()
            request.bind(client)
        elif self.pending >= self._limits.pending:
            request.fail_soon(Failure.OVERFLOW, f"{self.pending} requests wait for a connection, the limit")
        elif len(self._keys) + self.pending >= self._limits.connections:
            request.fail_soon(Failure.OVERFLOW, f"{len(self._keys)} connections are open, the limit")
        else:
            self.pending += 1
            create_task(self._connect(endpoint, request), name=f"dial {endpoint.label}", owner=self._owner)
        return request

    def close_idle(self) -> None:
        """Close every idle connection (drain, or endpoints that left)."""
        for entries in list(self._idle.values()):
            for client, timer in list(entries):
                timer.cancel()
                client.close()

    async def _connect(self, endpoint: Endpoint, request: PooledRequest) -> None:
        try:
            async with asyncio.timeout(self._limits.connect_s):
                end = await self._dial(endpoint)
        except TimeoutError:
            request.fail(
                Failure.CONNECT, f"{endpoint.label} did not accept within {self._limits.connect_s:g} s"
            )
            return
        except DialError as error:
            request.fail(Failure.CONNECT, str(error))
            return
        finally:
            self.pending -= 1
        client = Http1Client(on_free=self._on_free, on_closed=self._on_closed)
        self._keys[client] = endpoint.key
        client.start(end, client)
        end.start(client, client)
        if request.over:
            self._on_free(client)
        else:
            request.bind(client)

    def _on_free(self, client: Http1Client) -> None:
        key = self._keys.get(client)
        if key is None:
            return
        entries = self._idle.setdefault(key, [])
        if len(entries) >= self._limits.idle_per_endpoint:
            client.close()
            return
        entries.append((client, self._call_later(self._limits.idle_s, client.close)))

    def _on_closed(self, client: Http1Client) -> None:
        key = self._keys.pop(client, None)
        if key is None:
            return
        entries = self._idle.get(key, [])
        for entry in entries:
            if entry[0] is client:
                entry[1].cancel()
                entries.remove(entry)
                break
        if not entries:
            self._idle.pop(key, None)

    def _ended(self, endpoint: Endpoint) -> None:
        left = self._load.get(endpoint.key, 0) - 1
        if left > 0:
            self._load[endpoint.key] = left
        else:
            self._load.pop(endpoint.key, None)


class PooledRequest:
    """One try: holds what it is given until a connection takes it over."""

    def __init__(self, pool: Pool, endpoint: Endpoint | None, events: UpstreamEvents) -> None:
        self._pool = pool
        self._target = endpoint
        self._events = events
        self._client: Http1Client | None = None
        self._held: list[Callable[[Http1Client], None]] = []
        self.endpoint = endpoint.label if endpoint is not None else ""
        self.reused = False
        self.over = False

    def bind(self, client: Http1Client) -> None:
        """Run over `client` from now on."""
        self._client = client
        self.reused = client.requests > 0
        client.begin(self)
        held, self._held = self._held, []
        for call in held:
            if self._client is client:
                call(client)
        self._events.on_request_blocked(False)

    def fail(self, failure: Failure, detail: str) -> None:
        """Report a failure, unless the try is over."""
        if not self.over:
            self._end()
            self._events.on_failure(failure, detail)

    def fail_soon(self, failure: Failure, detail: str) -> None:
        """The same on the loop's next turn: `open` never reports from inside."""
        self._pool._call_later(0, lambda: self.fail(failure, detail))

    def _end(self) -> None:
        self.over = True
        self._client = None
        self._held.clear()
        if self._target is not None:
            self._pool._ended(self._target)

    # --- Upstream

    def send_head(self, head: RequestHead) -> None:
        """Send or hold the head."""
        self._do(lambda client: client.send_head(head))

    def send_data(self, data: bytes) -> None:
        """Send or hold a piece of the body."""
        self._do(lambda client: client.send_data(data))
        if self._client is None and not self.over:
            self._events.on_request_blocked(True)

    def send_end(self, trailers: Headers) -> None:
        """Send or hold the end."""
        self._do(lambda client: client.send_end(trailers))

    def _do(self, call: Callable[[Http1Client], None]) -> None:
        if self._client is not None:
            call(self._client)
        elif not self.over:
            self._held.append(call)

    def cancel(self) -> None:
        """Give the try up."""
        if not self.over:
            client = self._client
            self._end()
            if client is not None:
                client.cancel()

    def pause_response(self) -> None:
        """Stop reading."""
        if self._client is not None:
            self._client.pause_response()

    def resume_response(self) -> None:
        """Read again."""
        if self._client is not None:
            self._client.resume_response()

    # --- UpstreamEvents of the connection

    def on_response(self, head: ResponseHead) -> None:
        """Pass a head on."""
        self._events.on_response(head)

    def on_data(self, data: bytes) -> None:
        """Pass a piece of the body on."""
        self._events.on_data(data)

    def on_end(self, trailers: Headers) -> None:
        """The response is complete."""
        self._end()
        self._events.on_end(trailers)

    def on_failure(self, failure: Failure, detail: str) -> None:
        """The connection failed."""
        self.fail(failure, f"{self.endpoint}: {detail}")

    def on_request_blocked(self, blocked: bool) -> None:
        """Pass back-pressure on."""
        self._events.on_request_blocked(blocked)
