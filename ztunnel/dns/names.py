# SPDX-License-Identifier: Apache-2.0
"""Which addresses a name of the mesh has, as one client sees it. Pure.

Source: behaviour of Istio's ztunnel (short names by the client's namespace, search-domain
stripping, wildcards, VIPs of the client's network, endpoints of headless services).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mesh.model.address import IPAddress
from mesh.model.service import HealthPolicy, IpFamilies, Service
from mesh.model.workload import Workload
from mesh.state.store import Store

MAX_NAME_CHARS = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A name that the mesh knows."""

    service: Service
    canonical: str
    """The name that has the addresses; differs from the asked one when a search domain was stripped."""
    addresses: tuple[IPAddress, ...]
    """All families; empty: the name exists and has none."""


def resolve_name(store: Store, client: Workload, name: str, cluster_domain: str) -> Found | None:
    """Find a name (lower case, no final dot) for a client; None: not the mesh's, ask elsewhere."""
    if not name or len(name) > MAX_NAME_CHARS:
        return None
    for candidate, alias in _candidates(name, client.namespace, cluster_domain):
        service = _find(store, candidate, client.namespace)
        if service is None:
            continue
        addresses = tuple(_addresses(store, service, client))
        kubernetes = service.hostname.endswith(f".svc.{cluster_domain}")
        if not addresses and not kubernetes:
            return None
        return Found(service=service, canonical=candidate if alias else name, addresses=addresses)
    return None


def _candidates(name: str, namespace: str, domain: str) -> Iterator[tuple[str, bool]]:
    """Yield the hostnames that a name may stand for, each with whether it is another name (CNAME)."""
    yield name, False
    labels = name.count(".") + 1
    if labels == 1:
        yield f"{name}.{namespace}.svc.{domain}", False
    elif labels == 2:
        yield f"{name}.svc.{domain}", False
    if name.endswith(".svc"):
        yield f"{name}.{domain}", False
    for suffix in (f".{namespace}.svc.{domain}", f".svc.{domain}", f".{domain}"):
        if name.endswith(suffix):
            yield name.removesuffix(suffix), True


def _find(store: Store, host: str, namespace: str) -> Service | None:
    service = store.find_hostname(host, namespace)
    while service is None and "." in host:
        host = host.partition(".")[2]
        service = store.find_hostname(f"*.{host}", namespace)
    return service


def _addresses(store: Store, service: Service, client: Workload) -> Iterator[IPAddress]:
    if service.addresses:
        for vip in service.addresses:
            if vip.network == client.network and _offered(service, vip.address):
                yield vip.address
        return
    for endpoint in store.endpoints(service.key):
        workload = endpoint.workload
        ready = workload.healthy or service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
        if ready and workload.network == client.network:
            for address in workload.addresses:
                if _offered(service, address):
                    yield address


def _offered(service: Service, address: IPAddress) -> bool:
    allowed = {IpFamilies.IPV4_ONLY: 4, IpFamilies.IPV6_ONLY: 6}.get(service.ip_families)
    return allowed is None or address.version == allowed
