# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 connections to endpoints: shared by concurrent tries, dialled when all are full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import replace

from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from waypoint.http.h2_limits import Http2Limits
from waypoint.proxy.client2 import Http2Client, Http2Try
from waypoint.proxy.pool import Dial, Endpoint, PoolLimits
from waypoint.proxy.streams import CallLater, Failure, UpstreamEvents


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
    ) -> None:
        self._dial = dial
        self._call_later = call_later
        self._owner = owner
        self._limits = limits or PoolLimits()
        self._connection_limits = replace(
            connection_limits or Http2Limits(), idle_timeout_s=self._limits.idle_s
        )
        self._groups: dict[Hashable, _Group] = {}
        self.connections = 0
        """Open connections."""
        self.pending = 0
        """Tries that wait for a connection."""

    def load(self, key: Hashable) -> int:
        """Return how many requests run or wait on the endpoint."""
        group = self._groups.get(key)
        return group.load if group is not None else 0

    def open(self, endpoint: Endpoint | None, detail: str, events: UpstreamEvents) -> Http2Try:
        """Begin a try on `endpoint`; None fails it with `detail` on the loop's next turn."""
        if endpoint is None:
            attempt = Http2Try(events)
            self._call_later(0, lambda: attempt.fail(Failure.NO_HOST, detail))
            return attempt
        group = self._groups.get(endpoint.key)
        if group is None:
            group = self._groups[endpoint.key] = _Group(self, endpoint)
        attempt = Http2Try(events, endpoint=endpoint.label, home=group)
        group.load += 1
        client = group.find()
        if client is not None:
            attempt.bind(client)
        elif self.pending >= self._limits.pending:
            detail = f"{self.pending} requests wait for a connection, the limit"
            self._call_later(0, lambda: attempt.fail(Failure.OVERFLOW, detail))
        else:
            group.enqueue(attempt)
        return attempt

    def close_idle(self) -> None:
        """Close every idle connection (drain, or endpoints that left)."""
        for group in list(self._groups.values()):
            for client in [client for client in group.clients if client.idle]:
                client.close()

    def _dial_for(self, group: _Group) -> None:
        """Dial for tries that wait, unless one is on its way or the limit is reached."""
        if not group.waiting or group.dialling:
            return
        if self.connections >= self._limits.connections:
            if not group.clients:
                detail = f"{self.connections} connections are open, the limit"
                self._fail_waiting(group, Failure.OVERFLOW, detail)
            return
        group.dialling = True
        self.connections += 1
        label = group.endpoint.label
        create_task(self._connect(group), name=f"dial {label} for HTTP/2", owner=self._owner)

    async def _connect(self, group: _Group) -> None:
        connected = False
        try:
            async with asyncio.timeout(self._limits.connect_s):
                end = await self._dial(group.endpoint)
            connected = True
        except TimeoutError:
            detail = f"did not accept within {self._limits.connect_s:g} s"
            self._fail_waiting(group, Failure.CONNECT, detail)
            return
        except DialError as error:
            self._fail_waiting(group, Failure.CONNECT, error.detail)
            return
        finally:
            group.dialling = False
            if not connected:
                self.connections -= 1
        client = Http2Client(
            call_later=self._call_later,
            on_room=lambda _: self._serve(group),
            on_closed=lambda closed: self._on_closed(group, closed),
            limits=self._connection_limits,
        )
        group.clients.append(client)
        client.start(end, client)
        end.start(client, client)
        self._serve(group)

    def _serve(self, group: _Group) -> None:
        """Bind tries that wait to connections with room; dial for those that are left."""
        while group.waiting and (client := group.find()) is not None:
            attempt = group.waiting.popleft()
            self.pending -= 1
            if not attempt.over:
                attempt.bind(client)
        self._dial_for(group)

    def _fail_waiting(self, group: _Group, failure: Failure, detail: str) -> None:
        waiting, group.waiting = group.waiting, deque()
        self.pending -= len(waiting)

        def fail() -> None:
            for attempt in waiting:
                attempt.fail(failure, detail)

        self._call_later(0, fail)

    def _on_closed(self, group: _Group, client: Http2Client) -> None:
        if client in group.clients:
            group.clients.remove(client)
            self.connections -= 1
        self._dial_for(group)
        self._forget(group)

    def _forget(self, group: _Group) -> None:
        if not group.load and not group.clients and not group.dialling and not group.waiting:
            self._groups.pop(group.endpoint.key, None)


class _Group:
    """The connections to one endpoint and the tries that wait for one: the `Home` of its tries."""

    __slots__ = ("_pool", "clients", "dialling", "endpoint", "load", "waiting")

    def __init__(self, pool: Http2Pool, endpoint: Endpoint) -> None:
        self._pool = pool
        self.endpoint = endpoint
        self.clients: list[Http2Client] = []
        self.waiting: deque[Http2Try] = deque()
        self.dialling = False
        self.load = 0

    def find(self) -> Http2Client | None:
        """Return a connection that takes another try."""
        for client in self.clients:
            if client.room:
                return client
        return None

    def enqueue(self, attempt: Http2Try) -> None:
        """Let a try wait for a connection."""
        self.waiting.append(attempt)
        self._pool.pending += 1
        self._pool._dial_for(self)

    def over(self) -> None:
        """Count a try out."""
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
