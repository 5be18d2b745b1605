# SPDX-License-Identifier: Apache-2.0
"""A waypoint in small on loopback: a server side, exchanges, a pool; in HTTP/1.1 or 2."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mesh.model.workload import NamespacedHostname
from mesh.net.relay import End, TcpEnd
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.pool import Endpoint, Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.server1 import Http1Server
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream, Upstream, UpstreamEvents
from waypoint.routing.plan import Answer, Forward, plan_request

SERVICE = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint on loopback."""

    port: int

    @property
    def key(self) -> int:
        return self.port

    @property
    def label(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass
class Proxy:
    """A waypoint in small: either version on either side, every request to one of `endpoints`, in turn."""

    endpoints: list[Address]
    owner: TaskOwner
    http2_in: bool
    http2_out: bool
    limits: Http2Limits
    records: list[ExchangeRecord] = field(default_factory=list)
    refusals: list[BadMessageError] = field(default_factory=list)
    servers: list[Http2Server] = field(default_factory=list)
    ends: list[TcpEnd] = field(default_factory=list)
    plan: Callable[[RequestHead], Forward | Answer] | None = None
    """Decides instead of a table without rules."""
    turn: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.pool: Pool | Http2Pool = Pool(dial=self._dial, call_later=self._later, owner=self.owner)
        if self.http2_out:
            self.pool = Http2Pool(dial=self._dial, call_later=self._later, owner=self.owner)

    def _later(self, seconds: float, callback: object) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback)  # type: ignore[arg-type]

    async def _dial(self, endpoint: Endpoint) -> End:
        assert isinstance(endpoint, Address)
        try:
            _, end = await asyncio.get_running_loop().create_connection(TcpEnd, "127.0.0.1", endpoint.port)
        except OSError as error:
            raise DialError(Reason.CONNECT_REFUSED, error.strerror) from error
        self.ends.append(end)
        return end

    def accepted(self, end: TcpEnd) -> None:
        self.ends.append(end)
        if self.http2_in:
            server = Http2Server(
                service=self, call_later=self._later, on_closed=lambda: None, limits=self.limits
            )
            self.servers.append(server)
            server.start(end, server)
            end.start(server, server)
        else:
            first = Http1Server(service=self, call_later=self._later, on_closed=lambda: None)
            first.start(end, first)
            end.start(first, first)

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        plan = (
            plan_request(head, service=SERVICE, port=80, matcher=None, random=random.random)
            if self.plan is None
            else self.plan(head)
        )
        return Exchange(
            request=head,
            plan=plan,
            downstream=downstream,
            connect=self._connect,
            call_later=self._later,
            random=random.random,
            on_done=self.records.append,
        )

    def _connect(self, plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Upstream:
        self.turn += 1
        return self.pool.open(self.endpoints[self.turn % len(self.endpoints)], "", events)

    def refused(self, error: BadMessageError) -> None:
        self.refusals.append(error)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def proxy(
    *ports: int, http2_in: bool = True, http2_out: bool = True, limits: Http2Limits | None = None
) -> AsyncIterator[Proxy]:
    owner = TaskOwner("test waypoint")
    made = Proxy([Address(port) for port in ports], owner, http2_in, http2_out, limits or Http2Limits())
    server = await asyncio.get_running_loop().create_server(lambda: TcpEnd(made.accepted), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await owner.close()
        for end in made.ends:
            end.abort(Reason.LOCAL_CLOSE)
        async with asyncio.timeout(10):
            while not all(end.closed for end in made.ends):
                await asyncio.sleep(0)
