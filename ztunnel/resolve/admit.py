# SPDX-License-Identifier: Apache-2.0
"""What an inbound CONNECT may reach: the decision table of ztunnel's HBONE side.

Pure. The authority is judged against the pod that was dialled; policy is judged
afterwards, by `mesh.authz.evaluate`, on the destination that this answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.hbone.authority import parse_authority
from mesh.model.address import IPAddress, format_host_port
from mesh.model.service import Service
from mesh.model.workload import ApplicationProtocol, NamespacedHostname, NetworkAddress, Workload
from mesh.state.balance import target_port
from mesh.state.store import Store
from mesh.telemetry.reasons import Reason
from ztunnel.resolve.decide import ZTUNNEL_PORTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The application socket that the tunnel is for: always on the address that was dialled."""

    address: IPAddress
    port: int
    service: Service | None = None
    proxied: tuple[IPAddress, int] | None = None
    """Send a PROXY v2 header with the source and this, the asked-for destination, first."""
    host: str = ""
    """The name that was asked for, if it was one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The answer to the CONNECT: status, code and words."""

    status: int
    reason: Reason
    detail: str


def admit(
    store: Store, local: Workload, dialled: IPAddress, authority: str, client_namespace: str
) -> Admitted | Refused:
    """Judge the authority of a CONNECT that reached `local` on `dialled`:15008."""
    parsed = parse_authority(authority)
    if parsed is None:
        return Refused(
            status=400, reason=Reason.BAD_AUTHORITY, detail=f"authority {authority!r} is no host and port"
        )
    host, port = parsed
    if local.application_tunnel is not None:
        return _to_application_tunnel(store, local, dialled, host, port, client_namespace)
    if isinstance(host, str):
        return _by_hostname(store, local, dialled, host, port, client_namespace)
    if host != dialled:
        return _by_waypoint(store, local, host, port, dialled)
    return _guard(local, Admitted(address=host, port=port))


def _by_waypoint(
    store: Store, local: Workload, host: IPAddress, port: int, dialled: IPAddress
) -> Admitted | Refused:
    """Let another address through only if its service or workload names this workload as its waypoint."""
    service = store.find_service(host, local.namespace)
    gateway = service.waypoint if service is not None else None
    if gateway is None and (other := store.find_workload(host)) is not None:
        gateway = other.waypoint
    named = gateway is not None and (
        gateway.destination in local.services
        if isinstance(gateway.destination, NamespacedHostname)
        else gateway.destination == NetworkAddress(network=local.network, address=dialled)
    )
    if named:
        return _guard(local, Admitted(address=dialled, port=port, service=service))
    return Refused(
        status=400,
        reason=Reason.BAD_AUTHORITY,
        detail=f"authority {format_host_port(host, port)} is not the dialled address {dialled} "
        "and names no service of which this workload is the waypoint",
    )


def _to_application_tunnel(
    store: Store, local: Workload, dialled: IPAddress, host: IPAddress | str, port: int, client_namespace: str
) -> Admitted | Refused:
    """Hand everything to the port that a waypoint behind ztunnel takes its connections on."""
    tunnel = local.application_tunnel
    assert tunnel is not None
    proxied: tuple[IPAddress, int] | None = None
    if tunnel.protocol is ApplicationProtocol.PROXY:
        address = host
        if isinstance(address, str):
            # The header holds addresses only: a name stands for its service's first one.
            service = store.find_hostname(address, client_namespace)
            vips = [vip.address for vip in service.addresses] if service is not None else []
            if not vips:
                return Refused(
                    status=503,
                    reason=Reason.UNKNOWN_DESTINATION,
                    detail=f"no service with an address has the hostname {host}",
                )
            address = min(vips, key=lambda vip: vip.version)
        proxied = (address, port)
    name = host if isinstance(host, str) else ""
    return _guard(local, Admitted(address=dialled, port=tunnel.port or port, proxied=proxied, host=name))


def _by_hostname(
    store: Store, local: Workload, dialled: IPAddress, host: str, port: int, client_namespace: str
) -> Admitted | Refused:
    service = store.find_hostname(host, client_namespace)
    if service is None:
        return Refused(
            status=503, reason=Reason.UNKNOWN_DESTINATION, detail=f"no service has the hostname {host}"
        )
    for endpoint in store.endpoints(service.key):
        if endpoint.workload.uid == local.uid:
            target = target_port(service, endpoint, port)
            if target is None:
                break
            return _guard(local, Admitted(address=dialled, port=target, service=service))
    else:
        return Refused(
            status=503,
            reason=Reason.UNKNOWN_DESTINATION,
            detail=f"{local.uid} is no endpoint of {service.key}",
        )
    return Refused(
        status=503,
        reason=Reason.UNKNOWN_DESTINATION,
        detail=f"service {service.key} has no port {port} on {local.uid}",
    )


def _guard(local: Workload, admitted: Admitted) -> Admitted | Refused:
    if admitted.port in ZTUNNEL_PORTS:
        return Refused(
            status=503,
            reason=Reason.ILLEGAL_PORT,
            detail=f"port {admitted.port} of {local.uid} is ztunnel's own and leads back into it",
        )
    return admitted
