# SPDX-License-Identifier: Apache-2.0
"""Which hosts are near, and how much each place gets: priorities, shares, spill-over.

A level is taken when those before it cannot carry all requests. The arithmetic is Envoy's
(load balancing: priority levels, locality weighted, panic threshold), the order of places
Istio's (pilot/pkg/networking/core/loadbalancer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model.destination import LocalityPreference, LocalityShare
from mesh.model.locality import Locality
from mesh.model.service import LoadBalancing, LoadBalancingMode
from mesh.model.workload import Workload
from mesh.state.balance import locality_rank
from waypoint.cluster.host import Host

OVERPROVISIONING = 1.4
"""A level carries all its requests until fewer than 1/1.4 (71 %) of its hosts are usable. Source: Envoy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """The client whose nearness counts: this waypoint."""

    workload: Workload | None
    """None: not known yet; then no place is near."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> object:
        """What decides about nearness; equal where nothing of it differs."""
        own = self.workload
        labels = tuple(sorted(self.labels.items()))
        return None if own is None else (own.locality, own.node, own.cluster_id, own.network, labels)


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts of a level that share `share` parts of it."""

    hosts: tuple[Host, ...]
    share: float = 1.0


Level = tuple[Group, ...]
Levels = tuple[Level, ...]


def make_levels(
    hosts: Sequence[Host],
    own: Self,
    service: LoadBalancing,
    preference: LocalityPreference | None,
    *,
    failover: bool,
) -> Levels:
    """Order hosts into levels, nearest first; hosts that may not be used are in none.

    Args:
        hosts: all that are endpoints.
        own: whose nearness counts.
        service: the service's own preference, which holds where the policy has none.
        preference: the policy's.
        failover: whether endpoints are ejected: only then does Istio prefer near ones by itself.
    """
    source = own.workload
    if source is None or (preference is not None and not preference.enabled):
        return _levels({0: hosts})
    if preference is not None and preference.distribute:
        shares = _share_of(source.locality, preference.distribute)
        return _levels({0: hosts}) if shares is None else _distributed(hosts, shares)
    if preference is None and service.preference and service.mode in _PREFERRING:
        return _preferred(hosts, source, service)
    if not failover:
        return _levels({0: hosts})
    if preference is not None and preference.failover_priority:
        wanted = [_wanted(label, own) for label in preference.failover_priority]
        return _levels(_by(hosts, lambda host: len(wanted) - _shared(host, wanted)))
    targets = dict(preference.failover) if preference is not None else {}
    return _levels(_by(hosts, lambda host: _distance(source.locality, host.workload.locality, targets)))


_PREFERRING = (LoadBalancingMode.STRICT, LoadBalancingMode.FAILOVER)


def _levels(ranked: Mapping[int, Sequence[Host]]) -> Levels:
    return tuple((Group(tuple(ranked[rank])),) for rank in sorted(ranked) if ranked[rank])


def _by(hosts: Iterable[Host], rank: Callable[[Host], int]) -> dict[int, list[Host]]:
    found: dict[int, list[Host]] = {}
    for host in hosts:
        found.setdefault(rank(host), []).append(host)
    return found


def _preferred(hosts: Sequence[Host], source: Workload, service: LoadBalancing) -> Levels:
    wanted = len(service.preference)
    ranked = _by(hosts, lambda host: wanted - locality_rank(service.preference, source, host.workload))
    if service.mode is LoadBalancingMode.STRICT:
        ranked = {0: ranked.get(0, [])}
    return _levels(ranked)


def _distance(own: Locality, other: Locality, targets: Mapping[str, str]) -> int:
    if own.region != other.region:
        target = targets.get(own.region)
        return 3 if target is None or target == other.region else 4
    if own.zone != other.zone:
        return 2
    return 1 if own.subzone != other.subzone else 0


# --- labels

_PLACES: Mapping[str, Callable[[Workload], str]] = {
    "topology.kubernetes.io/region": lambda workload: workload.locality.region,
    "topology.kubernetes.io/zone": lambda workload: workload.locality.zone,
    "topology.istio.io/subzone": lambda workload: workload.locality.subzone,
    "topology.istio.io/cluster": lambda workload: workload.cluster_id,
    "topology.istio.io/network": lambda workload: workload.network,
    "kubernetes.io/hostname": lambda workload: workload.node,
}
"""Labels that istiod gives every endpoint from what it knows of it."""


def _label(workload: Workload | None, labels: Mapping[str, str], key: str) -> str | None:
    place = _PLACES.get(key)
    return place(workload) if place is not None and workload is not None else labels.get(key)


def _wanted(label: str, own: Self) -> tuple[str, str | None]:
    key, given, value = label.partition("=")
    return key, value if given else _label(own.workload, own.labels, key)


def _shared(host: Host, wanted: Sequence[tuple[str, str | None]]) -> int:
    """Count the labels that hold, from the first on, until one does not."""
    for index, (key, value) in enumerate(wanted):
        if value is None or _label(host.workload, host.labels, key) != value:
            return index
    return len(wanted)


# --- distribution


def _share_of(own: Locality, distribute: Iterable[LocalityShare]) -> Sequence[tuple[str, int]] | None:
    return next((entry.shares for entry in distribute if _within(own, entry.source)), None)


def _within(locality: Locality, place: str) -> bool:
    """Whether a locality is in a place `region/zone/subzone`; what it leaves out or `*` is any."""
    parts = (locality.region, locality.zone, locality.subzone)
    wanted = place.split("/")
    return all(each == "*" or each == part for each, part in zip(wanted, parts, strict=False))


def _distributed(hosts: Sequence[Host], shares: Sequence[tuple[str, int]]) -> Levels:
    left = list(hosts)
    groups = []
    # The more exact place takes its hosts first.
    for place, percent in sorted(shares, key=lambda share: -_exactness(share[0])):
        members = [host for host in left if _within(host.workload.locality, place)]
        left = [host for host in left if not _within(host.workload.locality, place)]
        if members and percent > 0:
            groups.append(Group(tuple(members), percent))
    return (tuple(groups),) if groups else ()


def _exactness(place: str) -> int:
    return sum(1 for part in place.split("/") if part != "*")


# --- health


def spread(
    levels: Levels, usable: Callable[[Host], bool], panic_percent: float
) -> list[tuple[float, tuple[Host, ...]]]:
    """Return who takes which share of the requests now; empty: nobody may.

    With fewer usable hosts than `panic_percent` in a level, and too few in all levels
    together, its unusable ones are used as well.
    """
    counts = [_count(level, usable) for level in levels]
    carried = [min(1.0, OVERPROVISIONING * good / total) for good, total in counts]
    whole = sum(carried)
    panic = [whole < 1 and 100 * good < panic_percent * total for good, total in counts]
    if any(panic):
        # Panicking levels carry by their size; Envoy, too, gives all of them a part.
        carried = [1.0 if panicking else part for panicking, part in zip(panic, carried, strict=True)]
        whole = sum(carried)
    if whole <= 0:
        return []
    found: list[tuple[float, tuple[Host, ...]]] = []
    left = 1.0
    for level, part, panicking in zip(levels, carried, panic, strict=True):
        load = min(left, part / min(1.0, whole))
        left -= load
        if load > 0:
            found += _spread_level(level, load, (lambda _: True) if panicking else usable)
    return found


def _count(level: Level, usable: Callable[[Host], bool]) -> tuple[int, int]:
    hosts = [host for group in level for host in group.hosts]
    return sum(1 for host in hosts if usable(host)), len(hosts)


def _spread_level(
    level: Level, load: float, usable: Callable[[Host], bool]
) -> list[tuple[float, tuple[Host, ...]]]:
    parts = []
    for group in level:
        members = tuple(host for host in group.hosts if usable(host))
        if members:
            whole = min(1.0, OVERPROVISIONING * len(members) / len(group.hosts))
            parts.append((group.share * whole, members))
    total = sum(share for share, _ in parts)
    return [(load * share / total, members) for share, members in parts]
