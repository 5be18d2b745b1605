# SPDX-License-Identifier: Apache-2.0
"""Which endpoint a request goes to, and the way there: a tunnel to a meshed one, TCP to another.

The choice is least-request of two draws by weight, among the endpoints that the service's
locality preference allows. Connections are kept by `waypoint.proxy.pool`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from mesh.hbone.metadata import format_baggage, format_forwarded
from mesh.hbone.opener import TunnelOpener
from mesh.hbone.pool import PoolKey
from mesh.model.address import IPAddress, format_host_port
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname, TunnelProtocol, Workload
from mesh.net.relay import CountedEnd
from mesh.net.sockets import DialError, Peer, cached_ip, dial, plain_socket, tcp_end
from mesh.state.balance import Random, candidates, nearest, weighted
from mesh.telemetry.reasons import Reason
from waypoint.config import HBONE_PORT
from waypoint.tables import Tables


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint of a service, with the way to it. Equal keys share connections."""

    workload: Workload
    address: IPAddress | None
    """None: the workload has only a name, resolved when dialled."""
    port: int
    service: str
    """Hostname of the service that it was chosen for; empty: addressed by itself."""
    key: Hashable
    label: str

    @property
    def tunnelled(self) -> bool:
        """Whether it is reached through HBONE."""
        return self.workload.tunnel_protocol is TunnelProtocol.HBONE


_Option = tuple[Address, int]
"""An endpoint and its weight."""


def make_address(workload: Workload, address: IPAddress | None, port: int, service: str) -> Address:
    """Name an endpoint."""
    label = format_host_port(address, port) if address is not None else f"{workload.hostname}:{port}"
    return Address(workload, address, port, service, (workload.uid, label, workload.tunnel_protocol), label)


class Upstreams:
    """Chooses and dials endpoints; loop thread only."""

    def __init__(
        self,
        tables: Tables,
        opener: TunnelOpener,
        *,
        own: Callable[[], Workload | None],
        identity: str,
        connect_timeout_s: float,
        load: Callable[[Hashable], int],
        random: Random,
    ) -> None:
        """Build it.

        Args:
            tables: services and their endpoints.
            opener: opens tunnels with this waypoint's identity.
            own: this waypoint's workload, once it is known.
            identity: this waypoint's SPIFFE id.
            connect_timeout_s: of a TCP connection.
            load: how many requests an endpoint (by its key) has now.
            random: draws from [0, 1).
        """
        self._tables = tables
        self._opener = opener
        self._own = own
        self._identity = identity
        self._connect_timeout_s = connect_timeout_s
        self._load = load
        self._random = random
        self._known: dict[tuple[NamespacedHostname, int], tuple[_Option, ...]] = {}

    def forget(self) -> None:
        """Look at the tables again: services or workloads changed."""
        self._known.clear()

    def choose(self, service: Service, port: int, avoid: frozenset[str]) -> Address | None:
        """Choose an endpoint, not one of `avoid` (labels) if there is another; None: there is none."""
        options = self._known.get((service.key, port))
        if options is None:
            options = self._known[service.key, port] = self._options(service, port)
        if avoid:
            options = tuple(o for o in options if o[0].label not in avoid) or options
        if len(options) < 2:
            return options[0][0] if options else None
        first, second = weighted(options, self._random), weighted(options, self._random)
        if first is None or second is None or self._load(first.key) <= self._load(second.key):
            return first
        return second

    def _options(self, service: Service, port: int) -> tuple[_Option, ...]:
        own = self._own()
        targets = candidates(self._tables.store, service, port, ipv6=False)
        if own is not None:
            targets = nearest(service.load_balancing, own, targets)
        return tuple(
            (make_address(t.workload, t.address, t.port, service.hostname), t.workload.capacity)
            for t in targets
        )

    async def dial(self, endpoint: Address, client: str = "") -> CountedEnd:
        """Connect to an endpoint; `client` is the first client's `address:port` where there is one only.

        Raises:
            DialError: it was not reached, or is not who it should be; says why.
        """
        address = endpoint.address if endpoint.address is not None else await self._resolve(endpoint)
        if not endpoint.tunnelled:
            target = Peer(address, endpoint.port)
            sock = await dial(plain_socket, target, timeout_s=self._connect_timeout_s, keepalive=True)
            return await tcp_end(sock)
        own = self._own()
        key = PoolKey(
            source_identity=self._identity,
            destination_identities=frozenset((endpoint.workload.identity,)),
            address=address,
            port=HBONE_PORT,
            source_ip=None,
        )
        headers = [(b"x-istio-source", b"waypoint")]
        if own is not None:
            headers.append((b"baggage", format_baggage(own)))
        if client or endpoint.service:
            headers.append((b"forwarded", format_forwarded(client or "unknown", endpoint.service)))
        tunnel, _ = await self._opener.open(key, format_host_port(address, endpoint.port), headers)
        return tunnel

    async def _resolve(self, endpoint: Address) -> IPAddress:
        name = endpoint.workload.hostname
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    name, endpoint.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            why = f"{name} does not resolve: {error or 'no answer in time'}"
            raise DialError(Reason.DNS_FAILURE, why) from error
        if not found:
            raise DialError(Reason.DNS_FAILURE, f"{name} has no address")
        return cached_ip(str(found[int(self._random() * len(found))][4][0]))


def why_none(tables: Tables, service: Service, port: int) -> str:
    """Say why a service has no endpoint for a request."""
    endpoints = tables.store.endpoints(service.key)
    if service.port(port) is None and not any(e.ports.ports.get(port) for e in endpoints):
        return f"{service.key} has no port {port}"
    if not endpoints:
        return f"{service.key} has no endpoints"
    unhealthy = sum(1 for e in endpoints if not e.workload.healthy)
    return f"{service.key}: {len(endpoints)} endpoints, {unhealthy} not ready, none usable for port {port}"
