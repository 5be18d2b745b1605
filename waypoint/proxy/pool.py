# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 connections to endpoints: reused while idle, dialled when there is none, bounded in number.

A request that finds no idle connection waits for the next one that is dialled or freed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mesh.net.relay import End
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from waypoint.cluster.circuit import Bound, Circuit
from waypoint.http.message import Headers, RequestHead, ResponseHead
from waypoint.proxy.client1 import Http1Client
from waypoint.proxy.streams import CallLater, Failure, UpstreamEvents, Watch

SWEEP_S = 1.0
"""How often idle connections are looked at."""


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
    """Requests that wait for a connection."""
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
        self,
        *,
        dial: Dial,
        call_later: CallLater,
        owner: TaskOwner,
        limits: PoolLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._dial = dial
        self._call_later = call_later
        self._owner = owner
        self._limits = limits or PoolLimits()
        self._now = now
        self._groups: dict[Hashable, _Group] = {}
        self._sweeping = False
        self.connections = 0
        """Open connections and dials."""
        self.pending = 0
        """Requests that wait for a connection."""

    def open(
        self, endpoint: Endpoint | None, detail: str, events: UpstreamEvents, watch: Watch | None = None
    ) -> PooledRequest:
        """Begin a try on `endpoint`; None fails it with `detail` on the loop's next turn."""
        if endpoint is None:
            request = PooledRequest("", events, watch)
            self._fail_soon(request, Failure.NO_HOST, detail)
            return request
        request = PooledRequest(endpoint.label, events, watch)
        group = self._groups.get(endpoint.key)
        if group is not None and group.idle:
            request.bind(group.idle.pop().client)
            return request
        circuit = watch.circuit if watch is not None else Circuit(endpoint.label)
        if circuit.pending_full:
            self._fail_soon(request, Failure.OVERFLOW, circuit.overflow(Bound.PENDING))
        elif self.pending >= self._limits.pending:
            words = f"{self.pending} requests wait for a connection, the limit"
            self._fail_soon(request, Failure.OVERFLOW, f"{words} (AMBIT_MAX_PENDING_REQUESTS)")
        else:
            if group is None:
                group = self._groups[endpoint.key] = _Group(endpoint, circuit)
            self._wait(group, request)
            self._dial_for(group)
        return request

    def _fail_soon(self, request: PooledRequest, failure: Failure, detail: str) -> None:
        """Fail on the loop's next turn: `open` never reports from inside."""
        self._call_later(0, lambda: request.fail(failure, detail))

    def close_idle(self, keys: Iterable[Hashable] | None = None) -> None:
        """Close idle connections (drain), or those of `keys` (endpoints that left) once they are idle."""
        groups = list(self._groups.values())
        if keys is not None:
            # An endpoint that returns starts anew; requests that still wait for this one are served.
            groups = [group for key in keys if (group := self._groups.pop(key, None)) is not None]
        for group in groups:
            group.retired = keys is not None
            for entry in tuple(group.idle):
                entry.client.close()

    # --- waiting and dialling

    def _wait(self, group: _Group, request: PooledRequest) -> None:
        group.waiting.append(request)
        group.wanted += 1
        group.circuit.pending += 1
        self.pending += 1
        request.leave = lambda: self._left(group)

    def _left(self, group: _Group) -> None:
        """Count a request out that waited."""
        group.wanted -= 1
        group.circuit.pending -= 1
        self.pending -= 1
        if not group.wanted:
            group.waiting.clear()

    def _dial_for(self, group: _Group) -> None:
        """Dial once for each request that waits, as far as the limits allow."""
        while group.wanted > group.dialling:
            # Every endpoint may have one, so that no request waits for a connection that never comes.
            if group.circuit.connections_full and group.connections:
                group.circuit.overflow(Bound.CONNECTIONS)
                return
            if self.connections >= self._limits.connections:
                if not group.connections:
                    words = f"{self.connections} connections are open, the limit"
                    self._fail_first(group, Failure.OVERFLOW, f"{words} (AMBIT_MAX_UPSTREAM_CONNECTIONS)")
                    self._forget(group)
                return
            group.dialling += 1
            self._opened(group)
            create_task(self._connect(group), name=f"dial {group.endpoint.label}", owner=self._owner)

    def _fail_first(self, group: _Group, failure: Failure, detail: str) -> None:
        request = group.take()
        if request is not None:
            request.stop_waiting()
            self._fail_soon(request, failure, detail)

    def _opened(self, group: _Group) -> None:
        group.connections += 1
        group.circuit.connections += 1
        self.connections += 1

    def _closed(self, group: _Group) -> None:
        group.connections -= 1
        group.circuit.connections -= 1
        self.connections -= 1

    async def _connect(self, group: _Group) -> None:
        label, circuit = group.endpoint.label, group.circuit
        timeout_s = circuit.policy.connect_timeout_s if circuit.source else self._limits.connect_s
        detail = ""
        end: End | None = None
        try:
            async with asyncio.timeout(timeout_s):
                end = await self._dial(group.endpoint)
        except TimeoutError:
            detail = f"{label} did not accept within {timeout_s:g} s"
            if circuit.source:
                detail += f" ({circuit.source}: connectTimeout)"
        except DialError as error:
            detail = str(error)
        finally:
            group.dialling -= 1
            if end is None:
                self._closed(group)
        if end is None:
            self._fail_first(group, Failure.CONNECT, detail)
            self._dial_for(group)
            self._forget(group)
            return
        client = Http1Client(
            on_free=lambda freed: self._free(group, freed),
            on_closed=lambda closed: self._on_closed(group, closed),
        )
        group.clients[client] = self._now()
        client.start(end, client)
        end.start(client, client)
        if not client.closed:
            self._free(group, client)

    def _free(self, group: _Group, client: Http1Client) -> None:
        """Give a connection to the next request that waits, or keep it."""
        circuit = group.circuit
        most, age_s = circuit.policy.max_requests_per_connection, circuit.policy.max_connection_age_s
        if (
            (group.retired and (client.requests or not group.wanted))
            or (most is not None and client.requests >= most)
            or (age_s is not None and self._now() - group.clients[client] >= age_s)
        ):
            client.close()
            return
        request = group.take()
        if request is not None:
            request.bind(client)
        elif len(group.idle) >= self._limits.idle_per_endpoint:
            client.close()
        else:
            group.idle.append(_Idle(client, self._now()))
            if not self._sweeping:
                self._sweeping = True
                self._call_later(SWEEP_S, self._sweep)

    def _on_closed(self, group: _Group, client: Http1Client) -> None:
        if group.clients.pop(client, None) is None:
            return
        group.idle = [entry for entry in group.idle if entry.client is not client]
        self._closed(group)
        self._dial_for(group)
        self._forget(group)

    def _forget(self, group: _Group) -> None:
        key = group.endpoint.key
        if not group.connections and not group.wanted and self._groups.get(key) is group:
            del self._groups[key]

    def _sweep(self) -> None:
        """Close what was idle for too long."""
        now_s, left = self._now(), False
        for group in tuple(self._groups.values()):
            policy = group.circuit.policy
            idle_s = policy.idle_timeout_s if group.circuit.source else self._limits.idle_s
            age_s = policy.max_connection_age_s
            for entry in tuple(group.idle):
                if (idle_s is not None and now_s - entry.since_s >= idle_s) or (
                    age_s is not None and now_s - group.clients[entry.client] >= age_s
                ):
                    entry.client.close()
            left = left or bool(group.idle)
        self._sweeping = left
        if left:
            self._call_later(SWEEP_S, self._sweep)


@dataclass(slots=True, eq=False)
class _Idle:
    client: Http1Client
    since_s: float


class _Group:
    """The connections to one endpoint and the requests that wait for one."""

    __slots__ = (
        "circuit",
        "clients",
        "connections",
        "dialling",
        "endpoint",
        "idle",
        "retired",
        "waiting",
        "wanted",
    )

    def __init__(self, endpoint: Endpoint, circuit: Circuit) -> None:
        self.endpoint = endpoint
        self.circuit = circuit
        self.clients: dict[Http1Client, float] = {}
        """With when each was opened."""
        self.connections = 0
        """Open ones and dials."""
        self.dialling = 0
        self.idle: list[_Idle] = []
        self.waiting: deque[PooledRequest] = deque()
        """Requests that wait, and some that gave up meanwhile."""
        self.wanted = 0
        """How many of them did not."""
        self.retired = False

    def take(self) -> PooledRequest | None:
        """Return the request that has waited longest."""
        while self.waiting:
            request = self.waiting.popleft()
            if not request.over:
                return request
        return None


class PooledRequest:
    """One try: holds what it is given until a connection takes it over."""

    __slots__ = ("_client", "_events", "_held", "_watch", "endpoint", "leave", "over", "reused")

    def __init__(self, endpoint: str, events: UpstreamEvents, watch: Watch | None) -> None:
        self._events = events
        self._watch = watch
        self._client: Http1Client | None = None
        self._held: list[Callable[[Http1Client], None]] = []
        self.leave: Callable[[], None] | None = None
        """While it waits: counts it out of those that do."""
        self.endpoint = endpoint
        self.reused = False
        self.over = False

    def bind(self, client: Http1Client) -> None:
        """Run over `client` from now on."""
        self.stop_waiting()
        self._client = client
        self.reused = client.requests > 0
        client.begin(self)
        if not self._held:
            return
        held, self._held = self._held, []
        for call in held:
            if self._client is client:
                call(client)
        self._events.on_request_blocked(False)

    def stop_waiting(self) -> None:
        """Be no longer counted among those that wait."""
        if self.leave is not None:
            self.leave()
            self.leave = None

    def fail(self, failure: Failure, detail: str) -> None:
        """Report a failure, unless the try is over."""
        if not self.over:
            self._end(failure)
            self._events.on_failure(failure, detail)

    def _end(self, failure: Failure | None) -> None:
        self.over = True
        self._client = None
        self._held.clear()
        self.stop_waiting()
        if self._watch is not None:
            self._watch.on_over(failure)

    # --- Upstream

    def send_head(self, head: RequestHead) -> None:
        """Send or hold the head."""
        if self._client is not None:
            self._client.send_head(head)
        elif not self.over:
            self._held.append(lambda client: client.send_head(head))

    def send_data(self, data: bytes) -> None:
        """Send or hold a piece of the body."""
        if self._client is not None:
            self._client.send_data(data)
        elif not self.over:
            self._held.append(lambda client: client.send_data(data))
            self._events.on_request_blocked(True)

    def send_end(self, trailers: Headers) -> None:
        """Send or hold the end."""
        if self._client is not None:
            self._client.send_end(trailers)
        elif not self.over:
            self._held.append(lambda client: client.send_end(trailers))

    def cancel(self) -> None:
        """Give the try up."""
        if not self.over:
            client = self._client
            self._end(None)
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
        if self._watch is not None:
            self._watch.on_response(head)
        self._events.on_response(head)

    def on_data(self, data: bytes) -> None:
        """Pass a piece of the body on."""
        self._events.on_data(data)

    def on_end(self, trailers: Headers) -> None:
        """The response is complete."""
        if self._watch is not None:
            self._watch.on_end(trailers)
        self._end(None)
        self._events.on_end(trailers)

    def on_failure(self, failure: Failure, detail: str) -> None:
        """The connection failed."""
        self.fail(failure, f"{self.endpoint}: {detail}")

    def on_request_blocked(self, blocked: bool) -> None:
        """Pass back-pressure on."""
        self._events.on_request_blocked(blocked)
