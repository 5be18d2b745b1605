# SPDX-License-Identifier: Apache-2.0
"""Choose one endpoint of a service: port, health, network, locality, then weighted random.

Pure: randomness comes in as a function. One draw per connection, no state between draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mesh.model.address import IPAddress
from mesh.model.service import (
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    Service,
)
from mesh.model.workload import NetworkMode, Workload
from mesh.state.store import Endpoint, Store

T = TypeVar("T")
Random = Callable[[], float]
"""Returns a float in [0, 1); `random.Random(seed).random` in tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A chosen endpoint and the port on it."""

    workload: Workload
    address: IPAddress | None
    """None: the workload has only a hostname, to be resolved when dialled."""
    port: int


def target_port(service: Service, endpoint: Endpoint, service_port: int) -> int | None:
    """Return the endpoint's port for a service port: its own map beats the service's.

    A target of 0 in the service stands for a named port: only endpoints that define it have it.
    """
    own = endpoint.ports.ports.get(service_port)
    if own:
        return own
    port = service.port(service_port)
    if port is None or port.target_port == 0:
        return None
    return port.target_port


def choose_address(
    workload: Workload, *, ipv6: bool, families: IpFamilies = IpFamilies.AUTOMATIC
) -> IPAddress | None:
    """Pick an address of the caller's family where the service allows it, else of the other."""
    allowed = {
        IpFamilies.IPV4_ONLY: (4,),
        IpFamilies.IPV6_ONLY: (6,),
    }.get(families, (6, 4) if ipv6 else (4, 6))
    for version in allowed:
        for address in workload.addresses:
            if address.version == version:
                return address
    return None


def locality_rank(preference: Sequence[LoadBalancingScope], source: Workload, other: Workload) -> int:
    """Count how many scopes of the preference match, from the first on, until one does not."""
    rank = 0
    for scope in preference:
        if not _matches(scope, source, other):
            break
        rank += 1
    return rank


def _matches(scope: LoadBalancingScope, a: Workload, b: Workload) -> bool:
    match scope:
        case LoadBalancingScope.REGION:
            return a.locality.region == b.locality.region
        case LoadBalancingScope.ZONE:
            return a.locality.zone == b.locality.zone
        case LoadBalancingScope.SUBZONE:
            return a.locality.subzone == b.locality.subzone
        case LoadBalancingScope.NODE:
            return a.node == b.node
        case LoadBalancingScope.CLUSTER:
            return a.cluster_id == b.cluster_id
        case LoadBalancingScope.NETWORK:
            return a.network == b.network


def weighted(options: Sequence[tuple[T, int]], random: Random) -> T | None:
    """Draw one option in proportion to its weight, never one of weight 0; None if there is none to draw."""
    total = sum(weight for _, weight in options)
    if total <= 0:
        return None
    point = random() * total
    for option, weight in options:
        point -= weight
        if point < 0:
            return option
    return [option for option, weight in options if weight > 0][-1]


def candidates(store: Store, service: Service, service_port: int | None, *, ipv6: bool) -> list[Target]:
    """List the endpoints that can take a connection to this port now, before locality and weight.

    No port (a waypoint, dialled on the port that its reference names): every endpoint, with port 0.
    """
    found = []
    for endpoint in store.endpoints(service.key):
        workload = endpoint.workload
        port = 0 if service_port is None else target_port(service, endpoint, service_port)
        if port is None or not _usable(store, service.load_balancing, workload):
            continue
        address = choose_address(workload, ipv6=ipv6, families=service.ip_families)
        if address is None and not (workload.hostname and not workload.addresses):
            continue
        found.append(Target(workload=workload, address=address, port=port))
    return found


def _usable(store: Store, balancing: LoadBalancing, workload: Workload) -> bool:
    healthy = workload.healthy or balancing.health_policy is HealthPolicy.ALLOW_ALL
    # A workload of another network is reached through its gateway only, which this version does not dial.
    reachable = workload.network == store.network or workload.network_mode is NetworkMode.HOST_NETWORK
    return healthy and reachable and workload.capacity > 0


def choose(
    store: Store, service: Service, service_port: int, source: Workload, *, ipv6: bool, random: Random
) -> Target | None:
    """Choose an endpoint for one connection of `source`, or None when no endpoint may be used."""
    targets = nearest(service.load_balancing, source, candidates(store, service, service_port, ipv6=ipv6))
    return weighted([(target, target.workload.capacity) for target in targets], random)


def nearest(balancing: LoadBalancing, source: Workload, targets: Iterable[Target]) -> list[Target]:
    """Keep the targets that locality allows: STRICT all scopes, FAILOVER the best rank there is."""
    targets = list(targets)
    preference = balancing.preference
    if not preference or balancing.mode not in (LoadBalancingMode.STRICT, LoadBalancingMode.FAILOVER):
        return targets
    ranked = [(locality_rank(preference, source, target.workload), target) for target in targets]
    wanted = len(preference)
    if balancing.mode is LoadBalancingMode.FAILOVER:
        wanted = max((rank for rank, _ in ranked), default=0)
    return [target for rank, target in ranked if rank == wanted]
