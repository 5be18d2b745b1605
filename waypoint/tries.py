# SPDX-License-Identifier: Apache-2.0
"""The tries of one request: each within its cluster's bounds, at the endpoint that the cluster chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mesh.model.address import format_host_port
from mesh.model.destination import HttpUpgrade
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import Workload
from waypoint.cluster.attempt import Attempt
from waypoint.cluster.budget import Budget
from waypoint.cluster.circuit import Bound
from waypoint.cluster.cluster import Cluster
from waypoint.cluster.keys import request_key
from waypoint.http.message import Headers, RequestHead
from waypoint.proxy.pool import Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import CallLater, Failure, Upstream, UpstreamEvents
from waypoint.routing.plan import Forward
from waypoint.tables import Tables
from waypoint.telemetry import Client, Destination
from waypoint.upstreams import Upstreams, make_address, protocol_of, why_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all requests share."""

    tables: Tables
    upstreams: Upstreams
    pool: Pool
    pool2: Http2Pool
    call_later: CallLater


class Tries:
    """Begins the tries of one request and of its mirrors; `finish` is called once."""

    __slots__ = (
        "_budgets",
        "_client",
        "_cluster",
        "_cookie",
        "_destination",
        "_grpc",
        "_http2",
        "_key",
        "_retrying",
        "_shared",
        "_started_s",
        "reached",
    )

    def __init__(
        self, shared: Shared, client: Client, destination: Destination, *, grpc: bool, http2: bool
    ) -> None:
        self._shared = shared
        self._client = client
        self._destination = destination
        self._grpc = grpc
        self._http2 = http2
        self._cluster: Cluster | None = None
        self._budgets: tuple[Budget, ...] = ()
        self._key: int | None = None
        self._cookie = ""
        self._retrying = False
        self._started_s = 0.0
        self.reached: Workload | None = None
        """Who got the last try."""

    def connect(self, plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Upstream:
        """Begin a try: the `Connect` of an exchange."""
        shared, destination = self._shared, self._destination
        if destination.workload is not None:
            peer = destination.peer
            self.reached = destination.workload
            address = make_address(destination.workload, peer.address, peer.port, "")
            return self._pool(self._http2 and not plan.head.upgrade).open(address, "", events)
        service = shared.tables.service(plan.service)
        if service is None:
            return self._refuse(
                events, Failure.NO_CLUSTER, f"{_who(plan)}: service {plan.service} is not known"
            )
        front = shared.tables.front
        if front is not None and service.key in front.through_waypoint:
            return self._through_waypoint(service, plan, events, avoid)
        cluster = shared.upstreams.cluster(service, plan.port, plan.subset)
        if cluster is None:
            why = f"{_who(plan)}: no DestinationRule defines subset {plan.subset} of {plan.service}"
            return self._refuse(events, Failure.NO_CLUSTER, why)
        now_s = shared.upstreams.now()
        if self._cluster is None and not plan.copied:
            self._first(cluster, plan, now_s)
        if cluster.circuit.requests_full:
            return self._refuse(events, Failure.OVERFLOW, cluster.circuit.overflow(Bound.REQUESTS))
        host = cluster.find(destination.peer.address)
        if host is None or host.label in avoid:
            host = cluster.pick(None if plan.copied else self._key, avoid, now_s)
        if host is None:
            why = why_none(shared.tables, service, plan.port, cluster)
            return self._refuse(events, Failure.NO_HOST, why)
        if not plan.copied:
            self.reached = host.workload
        attempt = Attempt(
            cluster,
            host,
            shared.upstreams.now,
            now_s,
            grpc=self._grpc,
            deadline_s=self._deadline(plan, now_s),
            cookie="" if plan.copied else self._cookie,
        )
        address = shared.upstreams.address(host, plan.head.authority, self._client.peer, destination.peer)
        return self._pool(self._speaks_http2(cluster, plan.head)).open(address, "", events, attempt)

    def _through_waypoint(
        self, service: Service, plan: Forward, events: UpstreamEvents, avoid: frozenset[str]
    ) -> Upstream:
        """Lead a gateway's request through the service's own waypoint, which decides the rest."""
        shared = self._shared
        waypoint = shared.tables.waypoint_of(service)
        if waypoint is None or service.waypoint is None:
            return self._refuse(
                events, Failure.NO_CLUSTER, f"{_who(plan)}: the waypoint of {service.key} is not known"
            )
        address = shared.upstreams.choose(waypoint, service.waypoint.hbone_mtls_port, avoid)
        if address is None:
            why = why_none(shared.tables, waypoint, service.waypoint.hbone_mtls_port)
            return self._refuse(events, Failure.NO_HOST, f"waypoint: {why}")
        if not plan.copied:
            self.reached = address.workload
        asked = f"{service.hostname}:{plan.port}"
        if service.addresses:
            asked = format_host_port(service.addresses[0].address, plan.port)
        # Connections to the waypoint are for one service and port each.
        behind = replace(address, asked=asked, key=f"{address.key} {asked}")
        declared = protocol_of(service, plan.port)
        http2 = declared in (AppProtocol.HTTP2, AppProtocol.GRPC)
        http2 = http2 or (self._http2 and declared is AppProtocol.UNKNOWN)
        return self._pool(http2 and not plan.head.upgrade).open(behind, "", events)

    def _first(self, cluster: Cluster, plan: Forward, now_s: float) -> None:
        """Take note of the request's own cluster: it has the key and the budget."""
        self._cluster = cluster
        self._started_s = now_s
        by = cluster.settings.policy.balancing.hash
        if by is not None:
            source, random = str(self._client.peer.address), self._shared.upstreams.random
            self._key, self._cookie = request_key(by, plan.head.headers, plan.head.target, source, random)
        table = self._shared.tables.route_budget(plan.service, plan.port, self._client.namespace)
        self._budgets = (cluster.budget,) if table is None else (cluster.budget, table)
        for budget in self._budgets:
            budget.begin(now_s)

    def _deadline(self, plan: Forward, now_s: float) -> float:
        found = math.inf if plan.try_timeout_s is None else now_s + plan.try_timeout_s
        if plan.request_timeout_s is not None:
            found = min(found, self._started_s + plan.request_timeout_s)
        return found

    def admit_retry(self) -> str:
        """Count a retry in; return why there may be none, or an empty text."""
        cluster, now_s = self._cluster, self._shared.upstreams.now()
        if cluster is None:
            return ""
        circuit = cluster.circuit
        if not self._retrying and circuit.retries_full:
            return circuit.overflow(Bound.RETRIES)
        if not all(budget.allows(now_s) for budget in self._budgets):
            return circuit.overflow(Bound.BUDGET)
        for budget in self._budgets:
            if self._retrying:
                budget.end_retry()
            budget.begin_retry(now_s)
        if not self._retrying:
            self._retrying = True
            circuit.retries += 1
        return ""

    def finish(self) -> None:
        """Count the request out."""
        if self._cluster is None:
            return
        for budget in self._budgets:
            budget.end()
            if self._retrying:
                budget.end_retry()
        if self._retrying:
            self._cluster.circuit.retries -= 1

    def _speaks_http2(self, cluster: Cluster, head: RequestHead) -> bool:
        if head.upgrade:
            return False  # Upgrades are a thing of HTTP/1.1.
        declared, pool = cluster.settings.declared, cluster.settings.policy.pool
        if pool.use_client_protocol:
            return self._http2
        if declared in (AppProtocol.HTTP2, AppProtocol.GRPC) or pool.http_upgrade is HttpUpgrade.ALWAYS:
            return True
        return self._http2 and declared is AppProtocol.UNKNOWN and pool.http_upgrade is HttpUpgrade.DEFAULT

    def _pool(self, http2: bool) -> Pool | Http2Pool:
        return self._shared.pool2 if http2 else self._shared.pool

    def _refuse(self, events: UpstreamEvents, failure: Failure, detail: str) -> Upstream:
        refused = Refused()

        def fail() -> None:
            if not refused.over:
                refused.over = True
                events.on_failure(failure, detail)

        self._shared.call_later(0, fail)
        return refused


def _who(plan: Forward) -> str:
    return plan.source or "the request"


class Refused:
    """A try that nobody takes: an `Upstream` that fails on the loop's next turn."""

    __slots__ = ("endpoint", "over", "reused")

    def __init__(self) -> None:
        self.endpoint = ""
        self.reused = False
        self.over = False

    def send_head(self, head: RequestHead) -> None:
        """Drop it."""

    def send_data(self, data: bytes) -> None:
        """Drop it."""

    def send_end(self, trailers: Headers) -> None:
        """Drop it."""

    def cancel(self) -> None:
        """Say nothing any more."""
        self.over = True

    def pause_response(self) -> None:
        """There is none."""

    def resume_response(self) -> None:
        """There is none."""
