# SPDX-License-Identifier: Apache-2.0
"""The endpoint of one connection that is not HTTP: chosen, counted, judged by whether it was reached."""

from __future__ import annotations

from mesh.model.destination import HashKind
from mesh.model.service import Service
from mesh.net.sockets import DialError
from mesh.telemetry.reasons import Reason
from waypoint.cluster.circuit import Bound
from waypoint.cluster.cluster import Cluster
from waypoint.cluster.hashing import hash_text
from waypoint.cluster.host import Address, Host
from waypoint.routing.plan import draw_backend
from waypoint.telemetry import Client, Destination
from waypoint.tries import Shared
from waypoint.upstreams import make_address, why_none


class Passage:
    """Counts one connection of its cluster, from its choice until `close`."""

    __slots__ = ("_cluster", "_host", "address")

    def __init__(self, address: Address, cluster: Cluster | None = None, host: Host | None = None) -> None:
        self.address = address
        self._cluster = cluster
        self._host = host
        if cluster is not None and host is not None:
            cluster.circuit.connections += 1
            host.active += 1

    @property
    def idle_s(self) -> float | None:
        """How long no byte may flow; None: for ever."""
        return None if self._cluster is None else self._cluster.circuit.policy.tcp_idle_timeout_s

    @property
    def age_s(self) -> float | None:
        """How long it may last; None: for ever."""
        return None if self._cluster is None else self._cluster.circuit.policy.max_connection_age_s

    def connected(self) -> None:
        """The endpoint took it."""
        if self._cluster is not None and self._host is not None:
            self._cluster.outliers.connected(self._host)

    def failed(self, now_s: float) -> None:
        """The endpoint was not reached: count it against it."""
        if self._cluster is not None and self._host is not None:
            self._cluster.failed(self._host, 0.0, now_s)
        self.close()

    def close(self) -> None:
        """Count the connection out; harmless when it is."""
        if self._cluster is not None and self._host is not None:
            self._cluster.circuit.connections -= 1
            self._host.active -= 1
        self._cluster = None


def open_passage(shared: Shared, client: Client, destination: Destination, avoid: frozenset[str]) -> Passage:
    """Choose where a connection goes.

    Raises:
        DialError: there is no endpoint, or no further connection is allowed; says why.
    """
    peer = destination.peer
    if destination.service is None:
        assert destination.workload is not None
        return Passage(make_address(destination.workload, peer.address, peer.port, ""))
    upstreams = shared.upstreams
    service, port, subset = _target(shared, client, destination.service, peer.port)
    cluster = upstreams.cluster(service, port, subset)
    if cluster is None:
        why = f"no DestinationRule defines subset {subset} of {service.key}" if subset else ""
        raise DialError(Reason.NO_HEALTHY_UPSTREAM, why or why_none(shared.tables, service, port))
    if cluster.circuit.connections_full:
        raise DialError(Reason.LIMIT_EXCEEDED, cluster.circuit.overflow(Bound.CONNECTIONS))
    by = cluster.settings.policy.balancing.hash
    hashed = by is not None and by.kind is HashKind.SOURCE_IP
    key = hash_text(str(client.peer.address)) if hashed else None
    host = cluster.find(peer.address)
    if host is None or host.label in avoid:
        host = cluster.pick(key, avoid, upstreams.now())
    if host is None:
        raise DialError(Reason.NO_HEALTHY_UPSTREAM, why_none(shared.tables, service, port, cluster))
    return Passage(upstreams.address(host, service.hostname, client.peer, peer), cluster, host)


def _target(shared: Shared, client: Client, asked: Service, port: int) -> tuple[Service, int, str]:
    """Return the service, port and subset that a connection goes to: those asked for, or a route's.

    Raises:
        DialError: the route leads nowhere; says why.
    """
    tables = shared.tables
    table = tables.stream(asked.key, port, client.namespace)
    if table is None:
        return tables.service(asked.key) or asked, port, ""
    backend = draw_backend(table.backends, shared.upstreams.random)
    if backend is None or backend.service is None:
        why = "no backend has a weight" if backend is None else backend.problem
        raise DialError(Reason.NO_HEALTHY_UPSTREAM, f"{table.source}: {why}")
    service = tables.service(backend.service)
    if service is None:
        why = f"{table.source}: service {backend.service} is not known"
        raise DialError(Reason.NO_HEALTHY_UPSTREAM, why)
    return service, backend.port, backend.subset
