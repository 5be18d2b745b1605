# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 connections to endpoints: shared by concurrent tries, dialled when all are full."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from waypoint.cluster.circuit import Bound, Circuit
from waypoint.http.h2_limits import Http2Limits
from waypoint.proxy.client2 import Http2Client, Http2Try
from waypoint.proxy.pool import Dial, Endpoint, PoolLimits
from waypoint.proxy.streams import CallLater, Failure, UpstreamEvents, Watch

_EXPECTED_STREAMS = 100
"""What a connection that is being dialled will take, by the advice of RFC 9113 §6.5.2."""
_PARALLEL_DIALS = 8
"""Connections to one endpoint that are dialled at a time."""
NEVER_S = 365 * 86_400.0
"""Idle timeout of connections that are kept for good."""


class Http2Pool:
    """All HTTP/2 connections of the waypoint; offers what `pool.Pool` does. Loop thread only."""

    def __init__(
        self,
        *,
        dial: Dial,
        call_later: CallLater,
        owner: TaskOwner,
        limits: PoolLimits | None = None,
        connection_limits: Http2Limits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dial = dial
        self._call_later = call_later
        self._owner = owner
        self._limits = limits or PoolLimits()
        self._connection_limits = replace(
            connection_limits or Http2Limits(), idle_timeout_s=self._limits.idle_s
        )
        self._now = now
        self._groups: dict[Hashable, _Group] = {}
        self.connections = 0
        """Open connections and dials."""
        self.pending = 0
        """Tries that wait for a connection."""

    def load(self, key: Hashable) -> int:
        """Return how many requests run or wait on the endpoint."""
        group = self._groups.get(key)
        return group.load if group is not None else 0

    def open(
        self, endpoint: Endpoint | None, detail: str, events: UpstreamEvents, watch: Watch | None = None
    ) -> Http2Try:
        """Begin a try on `endpoint`; None fails it with `detail` on the loop's next turn."""
        if endpoint is None:
            attempt = Http2Try(events, watch=watch)
            self._call_later(0, lambda: attempt.fail(Failure.NO_HOST, detail))
            return attempt
        group = self._groups.get(endpoint.key)
        if group is None:
            circuit = watch.circuit if watch is not None else Circuit(endpoint.label)
            group = self._groups[endpoint.key] = _Group(self, endpoint, circuit)
        attempt = Http2Try(events, endpoint=endpoint.label, home=group, watch=watch)
        group.load += 1
        client = group.find()
        if client is not None:
            attempt.bind(client)
        elif group.circuit.pending_full:
            words = group.circuit.overflow(Bound.PENDING)
            self._call_later(0, lambda: attempt.fail(Failure.OVERFLOW, words))
        elif self.pending >= self._limits.pending:
            words = f"{self.pending} requests wait for a connection, the limit"
            detail = f"{words} (AMBIT_MAX_PENDING_REQUESTS)"
            self._call_later(0, lambda: attempt.fail(Failure.OVERFLOW, detail))
        else:
            group.enqueue(attempt)
        return attempt

    def close_idle(self, keys: Iterable[Hashable] | None = None) -> None:
        """Close idle connections (drain), or those of `keys` (endpoints that left) once they are idle."""
        groups = list(self._groups.values())
        if keys is not None:
            # An endpoint that returns starts anew; tries that still wait for this one are served.
            groups = [group for key in keys if (group := self._groups.pop(key, None)) is not None]
        for group in groups:
            group.retired = keys is not None
            for client in [client for client in group.clients if client.idle]:
                client.close()

    def _dial_for(self, group: _Group) -> None:
        """Dial for tries that wait, unless enough dials are on their way or a limit is reached."""
        while group.waiting and self._dial_one(group):
            pass

    def _dial_one(self, group: _Group) -> bool:
        """Dial where tries wait that no other dial is for; False: there are none, or a limit is reached."""
        if group.dialling:
            expected = min(_EXPECTED_STREAMS, self._bounds(group.circuit).max_streams)
            if group.dialling >= _PARALLEL_DIALS or len(group.waiting) <= group.dialling * expected:
                return False
        # Every endpoint may have one, so that no request waits for a connection that never comes.
        if group.circuit.connections_full and (group.clients or group.dialling):
            group.circuit.overflow(Bound.CONNECTIONS)
            return False
        if self.connections >= self._limits.connections:
            if not group.clients:
                words = f"{self.connections} connections are open, the limit"
                self._fail_waiting(group, Failure.OVERFLOW, f"{words} (AMBIT_MAX_UPSTREAM_CONNECTIONS)")
            return False
        group.dialling += 1
        group.circuit.connections += 1
        self.connections += 1
        label = group.endpoint.label
        create_task(self._connect(group), name=f"dial {label} for HTTP/2", owner=self._owner)
        return True

    async def _connect(self, group: _Group) -> None:
        circuit = group.circuit
        timeout_s = circuit.policy.connect_timeout_s if circuit.source else self._limits.connect_s
        end, detail = None, "the dial was given up"
        try:
            async with asyncio.timeout(timeout_s):
                end = await self._dial(group.endpoint)
        except TimeoutError:
            detail = f"did not accept within {timeout_s:g} s"
            if circuit.source:
                detail += f" ({circuit.source}: connectTimeout)"
        except DialError as error:
            detail = error.detail
        finally:
            group.dialling -= 1
            if end is None:
                circuit.connections -= 1
                self.connections -= 1
        if end is None:
            self._fail_waiting(group, Failure.CONNECT, detail)
            return
        client = Http2Client(
            call_later=self._call_later,
            on_room=lambda _: self._serve(group),
            on_closed=lambda closed: self._on_closed(group, closed),
            limits=self._bounds(circuit),
        )
        group.clients.append(client)
        group.opened_s[client] = self._now()
        client.start(end, client)
        end.start(client, client)
        self._serve(group)

    def _bounds(self, circuit: Circuit) -> Http2Limits:
        """Return the limits of one connection to a service."""
        bounds, policy = self._connection_limits, circuit.policy
        if not circuit.source:
            return bounds
        return replace(
            bounds,
            max_streams=min(bounds.max_streams, policy.max_concurrent_streams or bounds.max_streams),
            idle_timeout_s=NEVER_S if policy.idle_timeout_s is None else policy.idle_timeout_s,
            keepalive_interval_s=policy.ping_interval_s or bounds.keepalive_interval_s,
            keepalive_timeout_s=policy.ping_timeout_s or bounds.keepalive_timeout_s,
        )

    def _serve(self, group: _Group) -> None:
        """Bind tries that wait to connections with room; dial for those that are left."""
        while group.waiting and (client := group.find()) is not None:
            attempt = group.waiting.popleft()
            group.left()
            attempt.bind(client)
        for client in [
            client for client in group.clients if client.idle and (group.retired or group.spent(client))
        ]:
            client.close()
        self._dial_for(group)

    def _fail_waiting(self, group: _Group, failure: Failure, detail: str) -> None:
        """Fail what waits, unless another dial is on its way that may serve it."""
        if group.dialling:
            return
        waiting, group.waiting = group.waiting, deque()
        for _ in waiting:
            group.left()

        def fail() -> None:
            for attempt in waiting:
                attempt.fail(failure, detail)

        self._call_later(0, fail)

    def _on_closed(self, group: _Group, client: Http2Client) -> None:
        if client in group.clients:
            group.clients.remove(client)
            group.opened_s.pop(client, None)
            group.circuit.connections -= 1
            self.connections -= 1
        self._dial_for(group)
        self._forget(group)

    def _forget(self, group: _Group) -> None:
        if group.load or group.clients or group.dialling or group.waiting:
            return
        if self._groups.get(group.endpoint.key) is group:
            del self._groups[group.endpoint.key]


class _Group:
    """The connections to one endpoint and the tries that wait for one: the `Home` of its tries."""

    __slots__ = (
        "_pool",
        "circuit",
        "clients",
        "dialling",
        "endpoint",
        "load",
        "opened_s",
        "retired",
        "waiting",
    )

    def __init__(self, pool: Http2Pool, endpoint: Endpoint, circuit: Circuit) -> None:
        self._pool = pool
        self.endpoint = endpoint
        self.circuit = circuit
        self.clients: list[Http2Client] = []
        self.opened_s: dict[Http2Client, float] = {}
        self.waiting: deque[Http2Try] = deque()
        self.dialling = 0
        self.retired = False
        self.load = 0

    def find(self) -> Http2Client | None:
        """Return a connection that takes another try."""
        for client in self.clients:
            if client.room and not self.spent(client):
                return client
        return None

    def spent(self, client: Http2Client) -> bool:
        """Whether a connection takes no further try, by number or age or because its endpoint left."""
        policy = self.circuit.policy
        most, age_s = policy.max_requests_per_connection, policy.max_connection_age_s
        return (
            (self.retired and client.requests > 0)
            or (most is not None and client.requests >= most)
            or (age_s is not None and self._pool._now() - self.opened_s[client] >= age_s)
        )

    def enqueue(self, attempt: Http2Try) -> None:
        """Let a try wait for a connection."""
        self.waiting.append(attempt)
        self.circuit.pending += 1
        self._pool.pending += 1
        self._pool._dial_for(self)

    def left(self) -> None:
        """Count a try out that waited."""
        self.circuit.pending -= 1
        self._pool.pending -= 1

    def over(self) -> None:
        """Count a try out."""
        for attempt in [attempt for attempt in self.waiting if attempt.over]:
            self.waiting.remove(attempt)
            self.left()
        self.load -= 1
        if not self.load:
            self._pool._forget(self)

    def again(self, attempt: Http2Try) -> None:
        """Bind a try to another connection."""
        client = self.find()
        if client is not None:
            attempt.bind(client)
        else:
            self.enqueue(attempt)
