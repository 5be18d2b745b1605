# SPDX-License-Identifier: Apache-2.0
"""A captured connection on its way out: original destination, decision, dial, join.

The decision is `resolve.decide`; this file does its I/O. Every connection that comes
here ends in `Connections.finish`, with one reason. The application sees a refusal as a
reset, never as an orderly end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from mesh.hbone.metadata import format_forwarded, format_traceparent
from mesh.model.address import IPAddress
from mesh.model.workload import Workload
from mesh.net.relay import CountedEnd
from mesh.net.sockets import DialError, Peer, cached_ip, dial, reset, tcp_end
from mesh.telemetry.metrics import ON_DEMAND_DNS, peer_labels
from mesh.telemetry.reasons import Reason
from ztunnel.access import OUTBOUND, Flow
from ztunnel.connections import LiveConnection
from ztunnel.original_dst import NotCapturedError, read_original_dst
from ztunnel.plane import Plane, Pod
from ztunnel.resolve.decide import Reject, Upstream, decide_outbound
from ztunnel.serving import begin, refuse_uncaptured, relay_pair


class Tunnels(Protocol):
    """Opens tunnels, over pooled connections (`ztunnel.dial`)."""

    async def open(
        self, pod: Pod, source: Workload, upstream: Upstream, headers: list[tuple[bytes, bytes]]
    ) -> tuple[CountedEnd, str]:
        """Open one tunnel; return it, answered with 200, and its peer's SPIFFE id.

        Raises:
            DialError: it could not be opened; says why.
        """
        ...


class StreamHandler(Protocol):
    """Takes a captured connection away from the table's default, e.g. DNS over TCP."""

    def __call__(self, pod: Pod, sock: socket.socket, flow: Flow) -> bool:
        """Answer whether it takes the connection; then it owns the socket."""
        ...


class Outbound:
    """Serves the pods' listeners on 15001; one per worker."""

    def __init__(
        self,
        plane: Plane,
        tunnels: Tunnels,
        *,
        random_bytes: Callable[[int], bytes],
        dns: StreamHandler | None,
    ) -> None:
        self._plane = plane
        self._tunnels = tunnels
        self._random_bytes = random_bytes
        self._dns = dns

    def accept(self, pod: Pod, sock: socket.socket, peer: Peer) -> None:
        """Begin one accepted connection."""
        try:
            captured = read_original_dst(sock, pod.namespace.cookie)
        except NotCapturedError as error:
            refuse_uncaptured(self._plane, sock, peer, OUTBOUND, f"{Reason.NO_CAPTURE_RECORD.text}: {error}")
            return
        flow = Flow(direction=OUTBOUND, source=peer, destination=captured.original)
        if self._dns is not None and captured.original.port == 53 and self._dns(pod, sock, flow):
            return
        begin(
            self._plane,
            pod,
            flow,
            lambda row: self._serve(pod, sock, row),
            lambda _reason, _detail: reset(sock),
        )

    async def _serve(self, pod: Pod, sock: socket.socket, row: LiveConnection) -> None:
        flow = row.flow
        source = await pod.known_workload()
        flow.source_workload = source
        original = flow.destination
        decision = decide_outbound(
            self._plane.store, source, original.address, original.port, self._plane.random
        )
        flow.service = decision.service
        flow.destination_workload = decision.workload
        if isinstance(decision, Reject):
            raise DialError(decision.reason, decision.detail)
        upstream = await self._open(pod, source, decision, flow)
        try:
            downstream = await tcp_end(sock)
        except BaseException:
            upstream.abort(Reason.LOCAL_CLOSE)
            raise
        relay_pair(self._plane, row, downstream, upstream)

    async def _open(self, pod: Pod, source: Workload, upstream: Upstream, flow: Flow) -> CountedEnd:
        if upstream.tunnelled:
            return await self._open_tunnel(pod, source, upstream, flow)
        address = upstream.address
        if address is None:
            address = await self._resolve(source, upstream, flow.destination.address)
        flow.destination = Peer(address, upstream.port)
        sock = await dial(
            pod.namespace.socket,
            flow.destination,
            timeout_s=self._plane.config.connect_timeout_s,
            keepalive=True,
        )
        return await tcp_end(sock)

    async def _open_tunnel(self, pod: Pod, source: Workload, upstream: Upstream, flow: Flow) -> CountedEnd:
        assert upstream.address is not None
        original = flow.destination
        flow.source_identity = source.identity
        flow.hbone = Peer(upstream.address, upstream.port)
        service = upstream.service
        headers = [
            (b"baggage", self._plane.baggage.get(source)),
            (b"forwarded", format_forwarded(str(flow.source), service.hostname if service else "")),
            (b"traceparent", format_traceparent(self._random_bytes(24))),
        ]
        host, _, port = upstream.authority.rpartition(":")
        flow.destination = Peer(cached_ip(host.strip("[]")), int(port)) if host else original
        tunnel, flow.destination_identity = await self._tunnels.open(pod, source, upstream, headers)
        flow.mutual_tls = True
        return tunnel

    async def _resolve(self, source: Workload, upstream: Upstream, asked: IPAddress) -> IPAddress:
        """Resolve a workload that has only a name; the caller's address family first."""
        self._plane.recorder.add(ON_DEMAND_DNS, (*peer_labels(source, source.identity), upstream.hostname))
        try:
            async with asyncio.timeout(self._plane.config.connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    upstream.hostname, upstream.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            raise DialError(
                Reason.DNS_FAILURE, f"{upstream.hostname} does not resolve: {error or 'no answer in time'}"
            ) from error
        addresses = [ip_address(str(entry[4][0])) for entry in found]
        same = [address for address in addresses if address.version == asked.version] or addresses
        if not same:
            raise DialError(Reason.DNS_FAILURE, f"{upstream.hostname} has no address")
        return same[int(self._plane.random() * len(same))]
