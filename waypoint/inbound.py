# SPDX-License-Identifier: Apache-2.0
"""HBONE connections to the waypoint: TLS with its own certificate, one client identity each.

For each CONNECT: what it asks for must be a service or workload that names this waypoint as
its own, so that nobody borrows the waypoint's identity to reach anything else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from mesh.hbone.authority import parse_authority
from mesh.hbone.driver import HboneConnection, Role, ServerTunnel
from mesh.hbone.limits import Limits
from mesh.hbone.metadata import parse_baggage, workload_from_baggage
from mesh.identity.contexts import TlsContexts
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import require_trust_domain
from mesh.net.sockets import DialError, Peer, reset
from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.metrics import TUNNEL_HANDSHAKE_SECONDS
from mesh.telemetry.reasons import Reason
from waypoint.config import Config
from waypoint.requests import Proxy
from waypoint.stream import ClientStream
from waypoint.telemetry import Client, Destination
from waypoint.upstreams import protocol_of

_log = logging.getLogger("waypoint.inbound")


class RefusedError(Exception):
    """A CONNECT that is not served: the status to answer, the code and the words."""

    def __init__(self, status: int, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class Inbound:
    """Serves the HBONE port; loop thread only."""

    def __init__(
        self,
        config: Config,
        proxy: Proxy,
        tls: TlsContexts,
        *,
        limits: Limits,
        clock: Clock,
        tasks: TaskOwner,
    ) -> None:
        self.config = config
        self.proxy = proxy
        self.tls = tls
        self.limits = limits
        self.clock = clock
        self.tasks = tasks
        self.draining = False
        self._sessions: set[Session] = set()
        self._emptied = Signal()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def streams(self) -> int:
        """Tunnels that are served now."""
        return len(self._streams())

    def accept(self, sock: socket.socket, peer: Peer) -> None:
        """Begin one accepted connection."""
        if len(self._sessions) >= self.config.max_connections or self.tasks.closed:
            reset(sock)
            _log.warning(
                "%s: refused, %d connections are open (AMBIT_MAX_CONNECTIONS)", peer, len(self._sessions)
            )
            return
        session = Session(self, peer)
        self._sessions.add(session)
        create_task(session.serve(sock), name="hbone", owner=self.tasks)

    def drain(self) -> None:
        """Ask every peer to open no further tunnels."""
        self.draining = True
        for session in tuple(self._sessions):
            session.drain()

    def wind_down(self) -> None:
        """Tell the clients to go elsewhere for their next requests."""
        for stream in self._streams():
            stream.wind_down()

    def end_idle(self) -> None:
        """End the clients' connections: at once, or after the requests that run."""
        for stream in self._streams():
            stream.shut_down()

    def _streams(self) -> list[ClientStream]:
        return [stream for session in self._sessions for stream in session.streams]

    def left(self, session: Session) -> None:
        """A connection is over."""
        self._sessions.discard(session)
        if not self._sessions:
            self._emptied.fire()

    async def wait_empty(self) -> None:
        """Return once no connection is open."""
        while self._sessions:
            await self._emptied.wait()

    def close(self) -> None:
        """Cut what is left."""
        for session in tuple(self._sessions):
            session.connection.close(Reason.DRAIN_DEADLINE)

    def find(self, authority: str, client: Client) -> Destination:
        """Find what a CONNECT asks for.

        Raises:
            RefusedError: it is nothing that this waypoint serves.
        """
        tables = self.proxy.tables
        parsed = parse_authority(authority)
        if parsed is None:
            raise RefusedError(400, Reason.BAD_AUTHORITY, f"authority {authority!r} is no host and port")
        host, port = parsed
        if isinstance(host, str):
            service = tables.store.find_hostname(host, client.namespace)
            address = service.addresses[0].address if service is not None and service.addresses else None
            peer = Peer(address, port) if address is not None else client.peer
        else:
            service = tables.store.find_service(host, client.namespace)
            peer = Peer(host, port)
        if service is not None and tables.serves(service):
            return Destination(service=service, workload=None, peer=peer)
        workload = tables.store.find_workload(host) if not isinstance(host, str) else None
        if workload is not None and tables.serves(workload):
            return Destination(service=None, workload=workload, peer=peer)
        named = (
            service.key if service is not None else workload.uid if workload is not None else "nothing known"
        )
        raise RefusedError(
            404,
            Reason.BAD_AUTHORITY,
            f"{authority} is {named}, which does not name {tables.gateway} as its waypoint; "
            "label it istio.io/use-waypoint",
        )


class Session:
    """One HBONE connection: one proven identity, any number of tunnels."""

    def __init__(self, inbound: Inbound, peer: Peer) -> None:
        self._inbound = inbound
        self._peer = peer
        self._client: Client | None = None
        self._refused = False
        self.streams: set[ClientStream] = set()
        self.connection = HboneConnection(
            role=Role.SERVER,
            limits=inbound.limits,
            on_request=self._requested,
            on_close=self._closed,
            clock=inbound.clock,
        )

    async def serve(self, sock: socket.socket) -> None:
        """Bring the connection up: certificate, TLS; tunnels then arrive by themselves."""
        inbound = self._inbound
        try:
            context = await inbound.tls.server(inbound.config.identity)
            await self._handshake(sock, context)
        except DialError as error:
            inbound.left(self)
            reset(sock)
            _log.warning("%s: %s (%s)", self._peer, error.detail, error.reason.value)
        except OSError:
            inbound.left(self)
            sock.close()  # The peer left before it said anything.
        except BaseException:
            inbound.left(self)
            sock.close()
            raise
        else:
            self._verify()

    async def _handshake(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        inbound = self._inbound
        timeout_s = inbound.config.connect_timeout_s
        started = inbound.clock.monotonic()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self.connection, sock, ssl=context, ssl_handshake_timeout=timeout_s
            )
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise DialError(
                Reason.TLS_FAILURE,
                f"TLS with {self._peer}: {error or f'no handshake within {timeout_s:g} s'}",
            ) from error
        elapsed = inbound.clock.monotonic() - started
        inbound.proxy.telemetry.recorder.observe(TUNNEL_HANDSHAKE_SECONDS, ("waypoint",), elapsed)

    def drain(self) -> None:
        """Ask the peer to open no further tunnels."""
        if self.connection.settled:
            self.connection.drain()

    def _closed(self, _connection: HboneConnection, reason: Reason) -> None:
        self._inbound.left(self)
        _log.debug("hbone connection from %s closed: %s", self._peer, reason)

    def _verify(self) -> SpiffeId | None:
        if self._refused:
            return None
        try:
            return require_trust_domain(self.connection.peer_der, self._inbound.config.trust_domain)
        except IdentityError as error:
            self._refused = True
            _log.warning("%s: %s (%s)", self._peer, error, Reason.IDENTITY_INVALID.value)
            self.connection.close(Reason.IDENTITY_INVALID)
            return None

    def _known(self, tunnel: ServerTunnel) -> Client | None:
        """Return who asks, proven once; a workload that was not known may be by now."""
        if self._client is None or self._client.workload is None:
            identity = self._verify()
            if identity is None:
                return None
            text = str(identity)
            workload = self._inbound.proxy.tables.store.find_workload(self._peer.address)
            if workload is None or workload.identity != text:
                workload = workload_from_baggage(parse_baggage(tunnel.get(b"baggage")), text)
            self._client = Client(
                identity=text, namespace=identity.namespace, peer=self._peer, workload=workload
            )
        return self._client

    def _requested(self, tunnel: ServerTunnel) -> None:
        client = self._known(tunnel)
        if client is None:
            return
        inbound = self._inbound
        try:
            destination = inbound.find(tunnel.authority, client)
        except RefusedError as refusal:
            tunnel.refuse(refusal.status, refusal.reason)
            _log.warning("%s (%s): %s", client.peer, client.identity, refusal)
            return
        stream = ClientStream(
            inbound.proxy,
            tunnel,
            client,
            destination,
            tasks=inbound.tasks,
            on_closed=self.streams.discard,
        )
        self.streams.add(stream)
        stream.serve(protocol_of(destination.service, destination.peer.port))
        if inbound.draining:
            self.connection.drain()
