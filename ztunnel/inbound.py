# SPDX-License-Identifier: Apache-2.0
"""Connections into a pod: HBONE on 15008, and plaintext on 15006.

HBONE: TLS with the pod's own certificate, one peer identity per connection, then for
each CONNECT: admission, policy, dial of the application from the client's address, join.
Plaintext: policy without an identity, then the same dial. Nothing is dialled before
policy has allowed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from functools import partial

from mesh.authz.evaluate import Connection as PolicyView
from mesh.hbone.driver import HboneConnection, Role, ServerTunnel
from mesh.hbone.limits import Limits
from mesh.hbone.metadata import (
    find_header,
    forwarded_host,
    parse_baggage,
    workload_from_baggage,
)
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import require_trust_domain
from mesh.model.address import IPAddress
from mesh.model.service import Service
from mesh.model.workload import Workload
from mesh.net.sockets import DialError, Peer, dial, parse_sockaddr, reset, set_keepalive, tcp_end
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import create_task
from mesh.telemetry.metrics import TUNNEL_HANDSHAKE_SECONDS
from mesh.telemetry.reasons import Reason
from ztunnel.access import INBOUND, Flow
from ztunnel.connections import LiveConnection, count_denial
from ztunnel.original_dst import inbound_dst
from ztunnel.plane import Plane, Pod
from ztunnel.proxy_protocol import format_proxy_v2
from ztunnel.resolve.admit import Refused, admit
from ztunnel.resolve.decide import ZTUNNEL_PORTS
from ztunnel.resolve.judge import judge
from ztunnel.serving import begin, fail_early, relay_pair
from ztunnel.sockets import bind_source

_log = logging.getLogger("ztunnel.inbound")


class Inbound:
    """Serves the pods' listeners on 15008 and 15006; one per worker."""

    def __init__(self, plane: Plane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self.draining = False
        """Whether peers are asked to open further tunnels elsewhere."""
        self._sessions: set[Session] = set()
        self._emptied = Signal()

    def accept_hbone(self, pod: Pod, sock: socket.socket, peer: Peer) -> None:
        """Begin one accepted connection on 15008."""
        limit = self._plane.config.max_connections
        if pod.tasks.closed or len(self._sessions) >= limit:
            reset(sock)
            flow = Flow(direction=INBOUND, source=peer, destination=peer)
            fail_early(
                self._plane,
                flow,
                Reason.LIMIT_EXCEEDED,
                f"{limit} HBONE connections are open (AMBIT_MAX_CONNECTIONS)",
            )
            return
        session = Session(self, self._plane, pod, peer, self._limits)
        self._sessions.add(session)
        create_task(session.serve(sock), name="hbone", owner=pod.tasks)

    def accept_plain(self, pod: Pod, sock: socket.socket, peer: Peer) -> None:
        """Begin one accepted connection on 15006."""
        with contextlib.suppress(OSError):
            set_keepalive(sock)
        flow = Flow(direction=INBOUND, source=peer, destination=inbound_dst(sock))
        begin(
            self._plane,
            pod,
            flow,
            lambda row: self._serve_plain(pod, sock, row),
            lambda _reason, _detail: reset(sock),
        )

    async def _serve_plain(self, pod: Pod, sock: socket.socket, row: LiveConnection) -> None:
        flow = row.flow
        if flow.destination.port in ZTUNNEL_PORTS:
            raise DialError(
                Reason.ILLEGAL_PORT,
                f"port {flow.destination.port} of {pod.info} is ztunnel's own; dial the application's port",
            )
        local = await pod.known_workload()
        flow.destination_workload = local
        flow.source_workload = self._plane.store.find_workload(flow.source.address)
        allow(self._plane, row, local, flow.destination, None)
        upstream = await tcp_end(await dial_app(self._plane, pod, local, flow.source, flow.destination))
        try:
            downstream = await tcp_end(sock)
        except BaseException:
            upstream.abort(Reason.LOCAL_CLOSE)
            raise
        relay_pair(self._plane, row, downstream, upstream)

    def drain(self) -> None:
        """Ask every peer to open no further tunnels; live ones run on.

        A peer in its handshake was let in and is served: it is asked with its first tunnel.
        """
        self.draining = True
        for session in tuple(self._sessions):
            if session.connection.settled:
                session.connection.drain()

    def left(self, session: Session) -> None:
        """A connection is over."""
        self._sessions.discard(session)
        if not self._sessions:
            self._emptied.fire()

    async def wait_empty(self) -> None:
        """Return once no HBONE connection is open."""
        while self._sessions:
            await self._emptied.wait()

    def close_pod(self, uid: str) -> None:
        """Cut the HBONE connections of a pod that is gone."""
        for session in tuple(self._sessions):
            if session.pod.info.uid == uid:
                session.connection.close(Reason.FORCED_CLOSE)

    def __len__(self) -> int:
        return len(self._sessions)


class Session:
    """One HBONE connection into a pod: one proven identity, any number of tunnels."""

    def __init__(self, inbound: Inbound, plane: Plane, pod: Pod, peer: Peer, limits: Limits) -> None:
        self.pod = pod
        self.connection = HboneConnection(
            role=Role.SERVER,
            limits=limits,
            on_request=self._requested,
            on_close=self._closed,
            clock=plane.clock,
        )
        self._plane = plane
        self._peer = peer
        self._dialled = peer
        self._inbound = inbound
        self._identity: SpiffeId | None = None
        self._refused = False

    async def serve(self, sock: socket.socket) -> None:
        """Bring the connection up: certificate, TLS; tunnels then arrive by themselves."""
        try:
            self._dialled = parse_sockaddr(sock.getsockname())
            local = await self.pod.known_workload()
            context = await self._plane.tls.server(local.identity)
            await self._handshake(sock, context)
        except DialError as error:
            self._inbound.left(self)
            reset(sock)
            flow = Flow(direction=INBOUND, source=self._peer, destination=self._dialled)
            fail_early(self._plane, flow, error.reason, error.detail)
        except OSError:
            self._inbound.left(self)
            sock.close()  # The peer left before it said anything.
        except BaseException:
            self._inbound.left(self)
            sock.close()
            raise
        else:
            self._verify()

    async def _handshake(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        timeout_s = self._plane.config.connect_timeout_s
        started = self._plane.clock.monotonic()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self.connection, sock, ssl=context, ssl_handshake_timeout=timeout_s
            )
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise DialError(
                Reason.TLS_FAILURE,
                f"TLS with {self._peer}: {error or f'no handshake within {timeout_s:g} s'}",
            ) from error
        self._plane.recorder.observe(
            TUNNEL_HANDSHAKE_SECONDS, ("destination",), self._plane.clock.monotonic() - started
        )

    def _closed(self, _connection: HboneConnection, reason: Reason) -> None:
        self._inbound.left(self)
        _log.debug("hbone connection from %s to %s closed: %s", self._peer, self.pod.info, reason)

    def _verify(self) -> SpiffeId | None:
        """Return the peer's identity, proven once; a peer without one is sent away."""
        if self._identity is None and not self._refused:
            try:
                self._identity = require_trust_domain(self.connection.peer_der, self._trust_domain())
            except IdentityError as error:
                self._refused = True
                flow = Flow(direction=INBOUND, source=self._peer, destination=self._dialled)
                fail_early(self._plane, flow, Reason.IDENTITY_INVALID, f"{self._peer}: {error}")
                self.connection.close(Reason.IDENTITY_INVALID)
        return self._identity

    def _requested(self, tunnel: ServerTunnel) -> None:
        # A request may be in the same bytes as the end of the handshake: whoever comes first verifies.
        identity = self._verify()
        if identity is None:
            return
        flow = Flow(
            direction=INBOUND,
            source=self._peer,
            source_identity=str(identity),
            destination=self._dialled,
            mutual_tls=True,
        )
        status = {"code": 503}
        begin(
            self._plane,
            self.pod,
            flow,
            lambda row: self._serve(tunnel, row, identity, status),
            lambda reason, _detail: tunnel.refuse(status["code"], reason),
        )
        if self._inbound.draining:
            self.connection.drain()

    def _trust_domain(self) -> str:
        local = self.pod.workload()
        return local.trust_domain if local is not None else self._plane.config.trust_domain

    async def _serve(
        self, tunnel: ServerTunnel, row: LiveConnection, identity: SpiffeId, status: dict[str, int]
    ) -> None:
        plane, flow = self._plane, row.flow
        local = await self.pod.known_workload()
        flow.destination_workload = local
        flow.destination_identity = local.identity
        self._label_source(flow, tunnel, identity)
        decision = admit(plane.store, local, self._dialled.address, tunnel.authority, identity.namespace)
        if isinstance(decision, Refused):
            status["code"] = decision.status
            raise DialError(decision.reason, decision.detail)
        target = Peer(decision.address, decision.port)
        flow.hbone, flow.destination = self._dialled, target
        flow.service = decision.service or self._named_service(tunnel, local)
        status["code"] = 401
        allow(plane, row, local, target, identity)
        status["code"] = 503
        upstream = await tcp_end(await dial_app(plane, self.pod, local, flow.source, target))
        if decision.proxied is not None:
            upstream.write(
                format_proxy_v2(flow.source, Peer(*decision.proxied), str(identity), decision.host)
            )
        tunnel.accept([(b"baggage", plane.baggage.get(local))])
        relay_pair(plane, row, tunnel, upstream)

    def _label_source(self, flow: Flow, tunnel: ServerTunnel, identity: SpiffeId) -> None:
        known = self._plane.store.find_workload(self._peer.address)
        if known is not None and known.identity == str(identity):
            flow.source_workload = known
        else:
            baggage = parse_baggage(find_header(tunnel.headers, b"baggage"))
            flow.source_workload = workload_from_baggage(baggage, str(identity))

    def _named_service(self, tunnel: ServerTunnel, local: Workload) -> Service | None:
        host = forwarded_host(find_header(tunnel.headers, b"forwarded"))
        for key in local.services:
            if host and key.hostname == host:
                return self._plane.store.services.get(key)
        return None


def allow(
    plane: Plane, row: LiveConnection, local: Workload, target: Peer, identity: SpiffeId | None
) -> None:
    """Judge a connection and note in its row what it is judged by from here on.

    Raises:
        DialError: denied; says by which policy.
    """
    view = PolicyView(
        source_identity=identity,
        source_ip=row.flow.source.address,
        destination_ip=target.address,
        destination_port=target.port,
    )
    verdict = judge(plane.store, local, view)
    for note in verdict.dry_run:
        _log.debug("%s: %s", note, row.flow.fields())
    if not verdict.allowed:
        count_denial(plane.recorder, verdict.policy, verdict.reason)
        raise DialError(verdict.reason, verdict.detail)
    row.policy = view
    row.workload = local


async def dial_app(plane: Plane, pod: Pod, local: Workload, client: Peer, target: Peer) -> socket.socket:
    """Dial the application inside the pod, from the client's address unless that is the pod's own.

    Raises:
        DialError: it does not answer; says why.
    """
    source: IPAddress | None = client.address
    own = client.address in local.addresses or client.address == target.address
    if (
        not plane.config.spoof_source
        or pod.info.hbone_only
        or own
        or client.address.version != target.address.version
    ):
        source = None
    return await dial(
        pod.namespace.socket,
        target,
        timeout_s=plane.config.connect_timeout_s,
        prepare=None if source is None else partial(bind_source, source=source),
        what=f"application {pod.info}:{target.port}",
    )
