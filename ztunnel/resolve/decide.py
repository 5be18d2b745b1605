# SPDX-License-Identifier: Apache-2.0
"""Where an outbound connection goes: the decision table of ztunnel's outbound side.

Pure and total: given the store, the source workload, the original destination and a
source of randomness, it answers one `Upstream` or one `Reject`; it never raises and
never answers plaintext for a destination that speaks HBONE. Inbound: `admit.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.model.address import IPAddress, format_host_port
from mesh.model.service import LoadBalancingMode, Service
from mesh.model.workload import GatewayAddress, NamespacedHostname, TunnelProtocol, Workload
from mesh.state.balance import Random, Target, candidates, choose, nearest, weighted
from mesh.state.store import Store
from mesh.telemetry.reasons import Reason

HBONE_PORT = 15008
ZTUNNEL_PORTS = frozenset({15001, 15006, HBONE_PORT})
"""In-pod listeners: no application of a meshed workload is behind them."""


class Kind(enum.Enum):
    """Which row of the decision table applied."""

    PASSTHROUGH = "passthrough"
    """Nothing is known of the destination: plain TCP to the original address."""
    DIRECT = "direct"
    """The chosen endpoint is the caller itself."""
    PLAIN = "plain"
    """A known workload outside the mesh."""
    HBONE = "hbone"
    """A tunnel to the destination workload."""
    WAYPOINT = "waypoint"
    """A tunnel to a waypoint of the destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where to dial, what to ask for there, and for whom (telemetry)."""

    kind: Kind
    address: IPAddress | None
    """Dialled address; None: resolve `hostname` when dialling."""
    port: int
    """Dialled port; of a tunnel its HBONE port."""
    hostname: str = ""
    authority: str = ""
    """CONNECT authority of a tunnel; empty for plain TCP."""
    identities: frozenset[str] = frozenset()
    """SPIFFE ids of which the tunnel's peer must present one."""
    workload: Workload | None = None
    """The workload that is dialled, if known."""
    service: Service | None = None
    """The service that the caller addressed, if any."""

    @property
    def tunnelled(self) -> bool:
        """Whether the connection travels in HBONE."""
        return self.kind in (Kind.HBONE, Kind.WAYPOINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The connection is closed: why, in a code and in words."""

    reason: Reason
    detail: str
    workload: Workload | None = None
    service: Service | None = None


def decide_outbound(
    store: Store, source: Workload, address: IPAddress, port: int, random: Random
) -> Upstream | Reject:
    """Decide one connection of `source` to its original destination."""
    service = store.find_service(address, source.namespace)
    if service is not None and service.load_balancing.mode is not LoadBalancingMode.PASSTHROUGH:
        return _to_service(store, source, service, address, port, random)
    if service is not None and (waypoint := _service_waypoint(service, random)) is not None:
        found = _to_waypoint(store, source, waypoint, address, port, random, service=service)
        if found is not None:
            return found
    workload = store.find_workload(address)
    if workload is None:
        return Upstream(kind=Kind.PASSTHROUGH, address=address, port=port, service=service)
    if workload.waypoint is not None and workload.uid != source.uid:
        found = _to_waypoint(store, source, workload.waypoint, address, port, random, workload=workload)
        if found is not None:
            return found
    target = Target(workload=workload, address=address, port=port)
    return _to_target(source, target, service)


def _to_service(
    store: Store, source: Workload, service: Service, vip: IPAddress, port: int, random: Random
) -> Upstream | Reject:
    waypoint = _service_waypoint(service, random)
    if waypoint is not None:
        found = _to_waypoint(store, source, waypoint, vip, port, random, service=service)
        if found is not None:
            return found
    target = choose(store, service, port, source, ipv6=vip.version == 6, random=random)
    if target is None:
        return Reject(
            reason=Reason.NO_HEALTHY_UPSTREAM,
            detail=f"no healthy upstream: {format_host_port(vip, port)} ({service.key}): "
            f"{_why_none(store, service, port)}",
            service=service,
        )
    return _to_target(source, target, service)


def _to_target(source: Workload, target: Target, service: Service | None) -> Upstream | Reject:
    workload, address, port = target.workload, target.address, target.port
    if workload.tunnel_protocol is TunnelProtocol.HBONE and port in ZTUNNEL_PORTS:
        return Reject(
            reason=Reason.ILLEGAL_PORT,
            detail=f"port {port} of {workload.uid} is ztunnel's own; dial the application's port",
            workload=workload,
            service=service,
        )
    if workload.uid == source.uid:
        return Upstream(kind=Kind.DIRECT, address=address, port=port, workload=workload, service=service)
    if workload.tunnel_protocol is TunnelProtocol.HBONE and address is not None:
        return Upstream(
            kind=Kind.HBONE,
            address=address,
            port=HBONE_PORT,
            authority=format_host_port(address, port),
            identities=_identities(workload, service),
            workload=workload,
            service=service,
        )
    if workload.tunnel_protocol is TunnelProtocol.HBONE:
        return Reject(
            reason=Reason.NO_HEALTHY_UPSTREAM,
            detail=f"{workload.uid} needs HBONE and has no address to dial",
            workload=workload,
            service=service,
        )
    return Upstream(
        kind=Kind.PLAIN,
        address=address,
        hostname=workload.hostname,
        port=port,
        workload=workload,
        service=service,
    )


def _service_waypoint(service: Service, random: Random) -> GatewayAddress | None:
    """Draw among the weighted waypoints; none of them with a weight: the plain one."""
    drawn = weighted([(w.destination, w.weight) for w in service.weighted_waypoints], random)
    return drawn if drawn is not None else service.waypoint


def _to_waypoint(
    store: Store,
    source: Workload,
    gateway: GatewayAddress,
    address: IPAddress,
    port: int,
    random: Random,
    *,
    service: Service | None = None,
    workload: Workload | None = None,
) -> Upstream | Reject | None:
    """Choose a waypoint instance, or None when the source is that waypoint itself."""
    ipv6 = address.version == 6
    targets, balancing = _waypoint_targets(store, source, gateway, ipv6=ipv6)
    if any(target.workload.uid == source.uid for target in targets):
        return None
    if balancing is not None:
        targets = nearest(balancing.load_balancing, source, targets)
    target = weighted([(t, t.workload.capacity) for t in targets if t.address is not None], random)
    if target is None or target.address is None:
        return Reject(
            reason=Reason.WAYPOINT_UNAVAILABLE,
            detail=f"waypoint {gateway.destination} of "
            f"{service.key if service else workload and workload.uid} "
            "has no ready instance; traffic is not sent past it",
            service=service,
            workload=workload,
        )
    return Upstream(
        kind=Kind.WAYPOINT,
        address=target.address,
        port=gateway.hbone_mtls_port or HBONE_PORT,
        authority=format_host_port(address, port),
        identities=_identities(target.workload, balancing),
        workload=target.workload,
        service=service,
    )


def _waypoint_targets(
    store: Store, source: Workload, gateway: GatewayAddress, *, ipv6: bool
) -> tuple[list[Target], Service | None]:
    port = gateway.hbone_mtls_port or HBONE_PORT
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname):
        service = store.services.get(destination)
    else:
        service = store.find_service(destination.address, source.namespace)
        if service is None:
            workload = store.find_workload(destination.address, destination.network)
            if workload is None:
                return [], None
            return [Target(workload=workload, address=destination.address, port=port)], None
    if service is None:
        return [], None
    return candidates(store, service, None, ipv6=ipv6), service


def _identities(workload: Workload, service: Service | None) -> frozenset[str]:
    names = service.subject_alt_names if service is not None else ()
    return frozenset((workload.identity, *(name for name in names if name.startswith("spiffe://"))))


def _why_none(store: Store, service: Service, port: int) -> str:
    endpoints = store.endpoints(service.key)
    if service.port(port) is None and not any(e.ports.ports.get(port) for e in endpoints):
        return f"the service has no port {port}"
    if not endpoints:
        return "it has no endpoints"
    unhealthy = sum(1 for e in endpoints if not e.workload.healthy)
    return f"{len(endpoints)} endpoints, {unhealthy} not ready, none usable for port {port}"
