# SPDX-License-Identifier: Apache-2.0
"""An HBONE node in this process: what ztunnel does with the transport, without its decisions."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from mesh.hbone.driver import ClientTunnel, HboneConnection, Limits, Role, ServerTunnel
from mesh.hbone.frames import HboneError
from mesh.net.relay import Relay, RelayResult, TcpEnd, join
from mesh.runtime.clock import SystemClock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.reasons import Reason
from tests.support.eventually import eventually_async
from tests.support.pki import Authority

LOOPBACK = "127.0.0.1"


def port_of(server: asyncio.Server) -> int:
    """Return the port that a server got."""
    port: int = server.sockets[0].getsockname()[1]
    return port


class Node:
    """Listeners, connections and relays of one test; `results` and `closed` say how they ended."""

    def __init__(self, directory: Path, authority: Authority, limits: Limits | None = None) -> None:
        self.directory = directory
        self.authority = authority
        self.limits = limits or Limits()
        self.owner = TaskOwner("test node")
        self.servers: list[asyncio.Server] = []
        self.accepted: list[HboneConnection] = []
        self.dialled: list[HboneConnection] = []
        self.requests: list[ServerTunnel] = []
        self.relays: list[Relay] = []
        self.results: list[RelayResult] = []
        self.closed: list[Reason] = []
        self.failures: list[HboneError | OSError] = []
        self.refuse: tuple[int, Reason] | None = None

    def context(self, *, server: bool, namespace: str = "default") -> ssl.SSLContext:
        """Return mutual TLS with a fresh workload certificate."""
        return self.authority.workload(namespace).context(self.directory, server=server)

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None = None
    ) -> int:
        """Listen on loopback; return the port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, LOOPBACK, 0, ssl=context, backlog=1024)
        self.servers.append(server)
        return port_of(server)

    def connection(self, role: Role) -> HboneConnection:
        """Make a connection object of this node."""
        made = HboneConnection(
            role=role,
            limits=self.limits,
            on_request=self._request if role is Role.SERVER else None,
            on_close=lambda _, reason: self.closed.append(reason),
            clock=SystemClock(),
        )
        (self.accepted if role is Role.SERVER else self.dialled).append(made)
        return made

    async def serve(self, context: ssl.SSLContext | None = None) -> int:
        """Accept HBONE; each tunnel goes to its authority."""
        return await self.listen(
            lambda: self.connection(Role.SERVER), context or self.context(server=True, namespace="server")
        )

    async def dial(self, port: int, context: ssl.SSLContext | None = None) -> HboneConnection:
        """Open an HBONE connection."""
        context = context or self.context(server=False, namespace="client")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: self.connection(Role.CLIENT), LOOPBACK, port, ssl=context, server_hostname=""
        )
        return connection

    async def listen_out(self, pick: Callable[[], HboneConnection], authority: str) -> int:
        """Accept plain TCP; each connection goes through a tunnel of `pick()` to `authority`."""

        def accepted(end: TcpEnd) -> None:
            create_task(self._outbound(end, pick(), authority), name="outbound", owner=self.owner)

        return await self.listen(lambda: TcpEnd(accepted))

    def _request(self, tunnel: ServerTunnel) -> None:
        self.requests.append(tunnel)
        if self.refuse is not None:
            tunnel.refuse(*self.refuse)
            return
        create_task(self._inbound(tunnel), name="inbound", owner=self.owner)

    async def _inbound(self, tunnel: ServerTunnel) -> None:
        host, _, port = tunnel.authority.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            _, end = await loop.create_connection(TcpEnd, host, int(port))
        except OSError:
            tunnel.refuse(503, Reason.CONNECT_REFUSED)
            return
        tunnel.accept()
        self.relays.append(join(tunnel, end, self.results.append))

    async def _outbound(self, end: TcpEnd, connection: HboneConnection, authority: str) -> None:
        try:
            tunnel: ClientTunnel = connection.open_tunnel(authority, [(b"baggage", b"k8s.pod.name=test")])
            response = await tunnel.opened
        except HboneError as error:
            self.failures.append(error)
            end.abort(error.reason)
            return
        if response.reason is not None:
            end.abort(response.reason)
            return
        self.relays.append(join(end, tunnel, self.results.append))

    async def close(self) -> None:
        """End everything; waits until each connection is gone."""
        for server in self.servers:
            server.close()
        for connection in (*self.dialled, *self.accepted):
            connection.close(Reason.FORCED_CLOSE)
        made = [c for c in (*self.dialled, *self.accepted) if c.transport is not None]
        await eventually_async(lambda: all(c.closed for c in made), "HBONE connections closed")
        await eventually_async(lambda: all(r.done for r in self.relays), "relays done")
        await self.owner.close()
        for server in self.servers:
            await server.wait_closed()


@contextlib.asynccontextmanager
async def node(directory: Path, authority: Authority, limits: Limits | None = None) -> AsyncIterator[Node]:
    """Run a node until the block ends."""
    made = Node(directory, authority, limits)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def tcp_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
) -> AsyncIterator[int]:
    """Run a stream server on loopback; yields its port."""
    server = await asyncio.start_server(handle, LOOPBACK, 0, backlog=1024)  # type: ignore[arg-type]
    try:
        yield port_of(server)
    finally:
        server.close()
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, then the end of file."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a stream and wait for it, whatever state it is in."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
