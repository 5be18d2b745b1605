# SPDX-License-Identifier: Apache-2.0
"""The clusters of a waypoint: made from its tables when first asked for, kept up to date, reported.

Which of a cluster's endpoints takes a request is decided in `waypoint.cluster`, the way
there is `waypoint.ways`, connections are kept by `waypoint.proxy`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from mesh.model.destination import DestinationPolicy, TlsMode, TrafficPolicy
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import NamespacedHostname, Workload
from mesh.net.sockets import Peer
from mesh.state.balance import Random, candidates
from mesh.telemetry.logging import Bare, FieldValue, fields
from mesh.telemetry.metrics import (
    CIRCUIT_OPEN,
    CIRCUIT_OVERFLOWS,
    ENDPOINT_EJECTIONS,
    ENDPOINTS_EJECTED,
    Labels,
)
from mesh.telemetry.series import Recorder
from waypoint.cluster.circuit import Bound
from waypoint.cluster.cluster import Cluster, ClusterKey, Member, Settings
from waypoint.cluster.host import PLAIN, Address, Host, Way, make_address
from waypoint.cluster.locality import Self
from waypoint.cluster.outlier import Cause
from waypoint.tables import Tables

__all__ = ["Address", "Upstreams", "make_address", "protocol_of", "why_none"]

_log = logging.getLogger("waypoint.upstreams")
UNUSED_S = 600.0
"""A cluster that nobody asked for in this time is forgotten; so is what it had learned."""


class Upstreams:
    """All clusters; loop thread only."""

    def __init__(
        self,
        tables: Tables,
        *,
        own: Callable[[], Workload | None],
        recorder: Recorder,
        now: Callable[[], float],
        random: Random,
        close_idle: Callable[[Sequence[Hashable]], None],
        defer: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        """Build it.

        Args:
            tables: services, their endpoints and policies.
            own: this waypoint's workload, once it is known.
            recorder: takes the metrics.
            now: monotonic time.
            random: draws from [0, 1).
            close_idle: told the keys of addresses that are no endpoints any more.
            defer: runs long work in pieces (`Cluster`); None: at once.
        """
        self._tables = tables
        self._own = own
        self._recorder = recorder
        self.now = now
        self.random = random
        self._close_idle = close_idle
        self._defer = defer
        self._clusters: dict[tuple[NamespacedHostname, int, str], Cluster] = {}
        self._here = Self(workload=None)
        self._ways: dict[Cluster, tuple[Way, str]] = {}
        self._pools = 0
        self._open: set[Labels] = set()
        self._bounded: set[Labels] = set()

    def forget(self) -> None:
        """Look at the tables again: services, workloads or policies changed."""
        own = self._own()
        here = Self(workload=own, labels=self._tables.labels(own.uid) if own is not None else {})
        touched = self._tables.take_touched()
        moved = here.place != self._here.place
        self._here = here
        for (service, _, _), cluster in self._clusters.items():
            if moved or service in touched:
                cluster.stale = True

    # --- choice

    def cluster(self, service: Service, port: int, subset: str = "") -> Cluster | None:
        """Find the cluster of a service port and subset; None: the subset is not defined."""
        made = self._clusters.get((service.key, port, subset))
        if made is not None and not made.stale:
            return made
        destination = self._tables.destination(service.key)
        policy = TrafficPolicy() if destination is None else destination.find(port, subset)
        if policy is None or (subset and destination is None):
            return None
        if made is None:
            key = ClusterKey(service=service.key, port=port, subset=subset)
            made = Cluster(key, self.random, on_ejected=self._ejected, on_back=self._back, defer=self._defer)
            made.used_s = self.now()
            self._clusters[service.key, port, subset] = made
        self._update(made, service, destination, policy)
        return made

    def _update(
        self, cluster: Cluster, service: Service, destination: DestinationPolicy | None, policy: TrafficPolicy
    ) -> None:
        cluster.stale = False
        key, tables = cluster.key, self._tables
        way, pool = self._way(cluster, policy)
        chosen = destination.subset(key.subset) if destination is not None and key.subset else None
        wanted = chosen.labels if chosen is not None else ()
        members = []
        for target in candidates(tables.store, service, key.port, ipv6=False):
            labels = tables.labels(target.workload.uid)
            if all(labels.get(name) == value for name, value in wanted):
                address = make_address(
                    target.workload, target.address, target.port, service.hostname, pool=pool, way=way
                )
                members.append(Member(address, target.workload.capacity, labels))
        settings = Settings(
            policy=policy,
            sources=destination.sources if destination is not None else (),
            service=service.load_balancing,
            own=self._here,
            declared=protocol_of(service, key.port),
        )
        gone = cluster.update(members, settings, self.now())
        if gone:
            self._close_idle([host.address.key for host in gone])

    def _way(self, cluster: Cluster, policy: TrafficPolicy) -> tuple[Way, str]:
        """Return the way to a cluster's endpoints, and a text that changes whenever the way does."""
        tls = policy.tls if policy.tls is not None and policy.tls.mode is not TlsMode.DISABLE else None
        # The process's own bound holds where nobody wrote a policy.
        written = policy != TrafficPolicy()
        way = Way(
            tls=tls,
            sni=tls.sni if tls is not None else "",
            proxy_protocol=policy.proxy_protocol,
            connect_timeout_s=policy.pool.connect_timeout_s if written else None,
            keepalive=policy.pool.keepalive,
        )
        known = self._ways.get(cluster)
        if known is None or known[0] != way:
            self._pools += 1
            known = self._ways[cluster] = (way if way != Way() else PLAIN, str(self._pools))
        return known

    def choose(self, service: Service, port: int, avoid: frozenset[str]) -> Address | None:
        """Choose an endpoint for a request of the waypoint's own; None: there is none."""
        cluster = self.cluster(service, port)
        host = cluster.pick(None, avoid, self.now()) if cluster is not None else None
        if host is None:
            return None
        address = self.address(host, service.hostname)
        # Such calls are not within the service's bounds, and so have connections of their own.
        return replace(address, key=f"{address.key} own")

    def address(
        self, host: Host, authority: str, client: Peer | None = None, target: Peer | None = None
    ) -> Address:
        """Return the address of a host for one request, as far as the request decides the way."""
        address = host.address
        way = address.way
        if way is PLAIN:
            return address
        if way.tls is not None and not way.sni:
            name = _host_of(authority) or address.service
            way = replace(way, sni=name)
        if way.proxy_protocol and client is not None:
            asked = target or client
            way = replace(way, client=(client.address, client.port), target=(asked.address, asked.port))
        if way is address.way:
            return address
        return replace(address, way=way, key=f"{address.key} {way.sni} {way.client} {way.target}")

    # --- reports

    def tick(self) -> None:
        """Bring metrics up to date and forget what is not used; call about once a second."""
        now_s = self.now()
        for place, cluster in tuple(self._clusters.items()):
            if now_s >= cluster.outliers.due():
                cluster.turn(now_s)
            self._report(cluster)
            circuit = cluster.circuit
            unused = now_s - cluster.used_s >= UNUSED_S and not circuit.connections
            removed = place[0] not in self._tables.store.services
            if (unused or removed) and not circuit.requests and not circuit.pending:
                self._drop(place, cluster)

    def _report(self, cluster: Cluster) -> None:
        circuit, labels = cluster.circuit, _labels(cluster)
        for bound, count in circuit.overflows.items():
            self._recorder.add(CIRCUIT_OVERFLOWS, (*labels, bound.value), count)
        circuit.overflows.clear()
        for bound, used, limit in circuit.usage():
            place = (*labels, bound.value)
            if limit is not None and place not in self._bounded:
                # A bound can be watched before it is reached.
                self._bounded.add(place)
                self._recorder.declare(CIRCUIT_OPEN, place)
            self._show(bound, labels, limit is not None and used >= limit)

    def _show(self, bound: Bound, labels: Labels, is_open: bool) -> None:
        place = (*labels, bound.value)
        if is_open != (place in self._open):
            self._recorder.add(CIRCUIT_OPEN, place, 1 if is_open else -1)
            (self._open.add if is_open else self._open.discard)(place)

    def _drop(self, place: tuple[NamespacedHostname, int, str], cluster: Cluster) -> None:
        del self._clusters[place]
        self._ways.pop(cluster, None)
        for bound in Bound:
            self._show(bound, _labels(cluster), False)
        for host in cluster.hosts.values():
            host.gone = True
        for host in cluster.outliers.turn(self.now()):
            self._back(cluster, host)
        self._close_idle([host.address.key for host in cluster.hosts.values()])

    def _ejected(self, cluster: Cluster, host: Host, cause: Cause) -> None:
        labels = _labels(cluster)
        self._recorder.add(ENDPOINT_EJECTIONS, (*labels, cause.value))
        self._recorder.add(ENDPOINTS_EJECTED, labels)
        values = _named(cluster, host) | {
            "cause": Bare(cause.value),
            "duration": Bare(f"{host.back_s - self.now():.0f}s"),
            "policy": ", ".join(cluster.settings.sources),
        }
        _log.warning("endpoint left out", extra=fields(values))

    def _back(self, cluster: Cluster, host: Host) -> None:
        self._recorder.add(ENDPOINTS_EJECTED, _labels(cluster), -1)
        if not host.gone:
            _log.info("endpoint taken back", extra=fields(_named(cluster, host)))

    def clusters(self) -> list[dict[str, object]]:
        """Describe the clusters in use, for the admin port."""
        now_s = self.now()
        return [_described(cluster, now_s) for cluster in self._clusters.values()]


def _labels(cluster: Cluster) -> Labels:
    key = cluster.key
    return (key.service.hostname, key.service.namespace, str(key.port), key.subset)


def _named(cluster: Cluster, host: Host) -> dict[str, FieldValue]:
    return {
        "dst.addr": Bare(host.label),
        "dst.workload": host.workload.name,
        "dst.namespace": host.workload.namespace,
        "cluster": str(cluster.key),
    }


def _described(cluster: Cluster, now_s: float) -> dict[str, object]:
    return {
        "cluster": str(cluster.key),
        "policy": list(cluster.settings.sources),
        "bounds": {
            bound.value: {"open": used, "limit": most} for bound, used, most in cluster.circuit.usage()
        },
        "endpoints": [
            {
                "address": host.label,
                "workload": host.workload.uid,
                "weight": host.weight,
                "requests": host.active,
                "latency_ms": round(host.latency_s * 1000, 3),
                "ejected_for_s": round(host.back_s - now_s, 1) if host.ejected else 0,
                "ejections": host.ejections,
            }
            for host in cluster.hosts.values()
        ],
    }


def _host_of(authority: str) -> str:
    """Return the host of an authority, without its port and brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def protocol_of(service: Service | None, port: int) -> AppProtocol:
    """Return what a port is declared to speak."""
    declared = service.port(port) if service is not None else None
    return declared.app_protocol if declared is not None else AppProtocol.UNKNOWN


def why_none(tables: Tables, service: Service, port: int, cluster: Cluster | None = None) -> str:
    """Say why a service has no endpoint for a request."""
    endpoints = tables.store.endpoints(service.key)
    if service.port(port) is None and not any(e.ports.ports.get(port) for e in endpoints):
        return f"{service.key} has no port {port}"
    if not endpoints:
        return f"{service.key} has no endpoints"
    if cluster is not None and cluster.hosts and cluster.outliers.ejected:
        sources = ", ".join(cluster.settings.sources)
        ejected = f"{len(cluster.outliers.ejected)} left out by outlier detection"
        return f"{cluster.key}: {len(cluster.hosts)} endpoints, {ejected} ({sources})"
    if cluster is not None and cluster.key.subset:
        sources = ", ".join(cluster.settings.sources)
        return f"{cluster.key}: no endpoint has the subset's labels ({sources})"
    unhealthy = sum(1 for e in endpoints if not e.workload.healthy)
    return f"{service.key}: {len(endpoints)} endpoints, {unhealthy} not ready, none usable for port {port}"
