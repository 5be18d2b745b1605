# SPDX-License-Identifier: Apache-2.0
"""Clusters from tables: policies by namespace, port and subset; ways; what is reported and forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.model.destination import (
    ClientTls,
    ConnectionPool,
    DestinationPolicy,
    EndpointLabels,
    OutlierDetection,
    PortPolicy,
    RetryBudget,
    Subset,
    TlsMode,
    TrafficPolicy,
)
from mesh.model.locality import Locality
from mesh.model.route import RouteRule, RouteTable
from mesh.model.service import Service, ServicePort
from mesh.model.workload import TunnelProtocol, Workload
from mesh.net.sockets import Peer
from mesh.telemetry.series import Recorder
from mesh.xds.destinations import (
    DESTINATION_TYPE,
    ENDPOINT_LABELS_TYPE,
    destination_policy_name,
    encode_destination_policy,
    encode_endpoint_labels,
)
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE, Resource, Update
from mesh.xds.routes import ROUTE_TABLE_TYPE, encode_route_table, route_table_name
from tests.support.cluster_builders import NOW_S, seeded
from tests.support.mesh_builders import key, member, service, workload
from waypoint.cluster.cluster import Cluster
from waypoint.tables import Tables
from waypoint.upstreams import UNUSED_S, Upstreams, why_none

WEB = key("web")
SOURCE = "DestinationRule/shop/web"
OUTLIERS = OutlierDetection(consecutive_5xx=1, base_ejection_s=30, max_ejection_percent=100)


class Bench:
    def __init__(self) -> None:
        self.now_s = NOW_S
        self.own: Workload | None = None
        self.tables = Tables(namespace="shop", gateway="wp", network="", root_namespace="istio-system")
        self.recorder = Recorder()
        self.closed: list[Sequence[object]] = []
        self.upstreams = Upstreams(
            self.tables,
            own=lambda: self.own,
            recorder=self.recorder,
            now=lambda: self.now_s,
            random=seeded(1),
            close_idle=self.closed.append,
        )
        self.web: Service = service(
            "web",
            ports=(
                ServicePort(service_port=80, target_port=8080),
                ServicePort(service_port=81, target_port=8081),
            ),
        )
        self.pods(1, 2)

    def take(self, type_url: str, values: dict[str, bytes], removed: tuple[str, ...] = ()) -> None:
        upserted = tuple(Resource(name, "1", value) for name, value in values.items())
        assert self.tables.apply(Update(type_url=type_url, upserted=upserted, removed=removed)) == ()
        self.upstreams.forget()

    def pods(self, *numbers: int) -> None:
        pods = [
            workload(
                f"web-{n}",
                f"10.0.0.{n}",
                services=member("web", ports={}),
                tunnel_protocol=TunnelProtocol.NONE,
            )
            for n in numbers
        ]
        gone = set(self.tables.store.workloads) - {pod.uid for pod in pods}
        objects: list[Workload | Service] = [self.web, *pods]
        values = {resource_name(each): encode_address(each) for each in objects}
        self.take(ADDRESS_TYPE, values, tuple(gone))

    def policy(self, policy: DestinationPolicy) -> None:
        self.take(DESTINATION_TYPE, {destination_policy_name(policy): encode_destination_policy(policy)})

    def cluster(self, port: int = 80, subset: str = "") -> Cluster:
        found = self.upstreams.cluster(self.web, port, subset)
        assert found is not None
        return found

    def series(self) -> dict[tuple[str, ...], float]:
        self.upstreams.tick()
        return {(delta.metric, *delta.labels): delta.values[0] for delta in self.recorder.take()}


def requests(bound: int | None) -> TrafficPolicy:
    return TrafficPolicy(pool=ConnectionPool(max_requests=bound))


def test_a_service_without_a_policy_has_the_defaults() -> None:
    b = Bench()
    assert b.cluster().settings.policy == TrafficPolicy()
    assert sorted(host.label for host in b.cluster().hosts.values()) == ["10.0.0.1:8080", "10.0.0.2:8080"]
    assert b.upstreams.cluster(b.web, 80, "v1") is None


def test_ports_and_subsets_have_policies_and_endpoints_of_their_own() -> None:
    b = Bench()
    subset = Subset(name="v2", labels=(("version", "v2"),), policy=requests(3))
    b.policy(
        DestinationPolicy(
            service=WEB,
            sources=(SOURCE,),
            policy=requests(1),
            ports=(PortPolicy(port=81, policy=requests(2)),),
            subsets=(subset, Subset(name="all")),
        )
    )
    uid = next(iter(b.tables.store.workloads))
    b.take(
        ENDPOINT_LABELS_TYPE,
        {uid: encode_endpoint_labels(EndpointLabels(uid=uid, labels=(("version", "v2"),)))},
    )
    bounds = [b.cluster(*place).circuit.policy.max_requests for place in ((80,), (81,), (80, "v2"))]
    assert bounds == [1, 2, 3]
    assert len(b.cluster(80, "v2").hosts) == 1
    assert len(b.cluster(80, "all").hosts) == 2
    assert b.upstreams.cluster(b.web, 80, "v3") is None
    b.take(ENDPOINT_LABELS_TYPE, {}, (uid,))
    assert not b.cluster(80, "v2").hosts
    assert why_none(b.tables, b.web, 80, b.cluster(80, "v2")).endswith(f"the subset's labels ({SOURCE})")


def test_the_policy_for_the_waypoints_namespace_comes_first() -> None:
    b = Bench()
    everywhere = DestinationPolicy(service=WEB, policy=requests(1))
    b.policy(everywhere)
    b.policy(replace(everywhere, policy=requests(2), client_namespace="shop"))
    b.policy(replace(everywhere, policy=requests(3), client_namespace="other"))
    assert b.cluster().circuit.policy.max_requests == 2
    b.take(DESTINATION_TYPE, {}, (f"{WEB}@shop",))
    assert b.cluster().circuit.policy.max_requests == 1
    b.take(DESTINATION_TYPE, {}, (str(WEB),))
    assert b.cluster().circuit.policy.max_requests is None


def test_a_cluster_is_looked_at_again_only_after_a_change() -> None:
    b = Bench()
    first = b.cluster()
    assert b.cluster() is first
    b.pods(1, 3)
    assert b.cluster() is first
    assert sorted(host.label for host in first.hosts.values()) == ["10.0.0.1:8080", "10.0.0.3:8080"]
    ((gone,),) = b.closed
    assert "10.0.0.2:8080" in str(gone)


def test_changes_elsewhere_cost_a_cluster_nothing() -> None:
    b = Bench()
    cluster = b.cluster()
    other = workload("db-1", "10.0.1.1", services=member("db"))
    b.take(ADDRESS_TYPE, {other.uid: encode_address(other)})
    assert not cluster.stale
    b.policy(DestinationPolicy(service=key("db")))
    assert not cluster.stale
    # A pod that becomes one of its endpoints, and one that was.
    for services in (member("db", "web", ports={}), member("db")):
        b.take(ADDRESS_TYPE, {other.uid: encode_address(replace(other, services=services))})
        assert cluster.stale
        b.cluster()
    uid = next(iter(b.tables.store.workloads))
    b.take(ENDPOINT_LABELS_TYPE, {uid: encode_endpoint_labels(EndpointLabels(uid=uid, labels=(("a", "b"),)))})
    assert cluster.stale
    b.cluster()
    b.own = workload("wp", "10.0.9.9", locality=Locality(region="eu"))
    b.upstreams.forget()
    assert cluster.stale


def test_connections_are_not_shared_where_the_way_differs() -> None:
    b = Bench()
    before = b.upstreams.choose(b.web, 80, frozenset({"10.0.0.2:8080"}))
    tls = ClientTls(mode=TlsMode.SIMPLE)
    b.policy(DestinationPolicy(service=WEB, policy=TrafficPolicy(tls=tls)))
    cluster = b.cluster()
    host = next(host for host in cluster.hosts.values() if host.label == "10.0.0.1:8080")
    address = b.upstreams.address(host, "a.example:443")
    assert (address.way.tls, address.way.sni) == (tls, "a.example")
    assert before is not None
    assert len({before.key, host.address.key, address.key}) == 3
    assert b.upstreams.address(host, "a.example").key == address.key
    assert b.upstreams.address(host, "[fd00::1]:443").way.sni == "fd00::1"
    b.policy(DestinationPolicy(service=WEB, policy=TrafficPolicy(proxy_protocol=1)))
    host = next(iter(b.cluster().hosts.values()))
    one, two = (Peer(ip_address("10.0.0.9"), port) for port in (1, 2))
    assert b.upstreams.address(host, "x", one).key != b.upstreams.address(host, "x", two).key
    assert b.upstreams.address(host, "x", one, two).way.target == (two.address, two.port)


def test_ejections_are_counted_and_taken_back_by_the_tick() -> None:
    b = Bench()
    b.policy(DestinationPolicy(service=WEB, sources=(SOURCE,), policy=TrafficPolicy(outliers=OUTLIERS)))
    cluster = b.cluster()
    for host in cluster.hosts.values():
        cluster.rated(host, 500, b.now_s)
    place = (WEB.hostname, "shop", "80", "")
    assert b.series() == {
        ("ambit_endpoint_ejections", *place, "consecutive_5xx"): 2,
        ("ambit_endpoints_ejected", *place): 2,
    }
    assert cluster.pick(None, frozenset(), b.now_s) is None
    why = why_none(b.tables, b.web, 80, cluster)
    assert why.endswith(f"2 endpoints, 2 left out by outlier detection ({SOURCE})")
    b.now_s += 30
    assert b.series() == {("ambit_endpoints_ejected", *place): -2}


@pytest.mark.parametrize("reason", ["unused", "removed"])
def test_a_cluster_that_is_not_needed_is_forgotten_with_its_gauges(reason: str) -> None:
    b = Bench()
    policy = TrafficPolicy(outliers=OUTLIERS, pool=ConnectionPool(max_requests=1))
    b.policy(DestinationPolicy(service=WEB, policy=policy))
    cluster = b.cluster()
    host = next(iter(cluster.hosts.values()))
    cluster.begin(host)
    cluster.rated(host, 500, b.now_s)
    b.series()
    if reason == "unused":
        b.now_s += UNUSED_S
        cluster.outliers.ejected.add(host)
        host.ejected, host.back_s = True, math.inf
        b.recorder.take()
    else:
        b.take(ADDRESS_TYPE, {}, (str(WEB),))
    assert len(b.upstreams.clusters()) == 1
    b.upstreams.tick()
    assert len(b.upstreams.clusters()) == 1, "a request runs"
    cluster.end(host)
    found = b.series()
    assert b.upstreams.clusters() == []
    place = (WEB.hostname, "shop", "80", "")
    assert found["ambit_endpoints_ejected", *place] == -1
    assert found["ambit_circuit_open", *place, "http2MaxRequests"] == -1
    assert len(b.closed[-1]) == 2


def test_the_admin_view_describes_endpoints_and_bounds() -> None:
    b = Bench()
    b.policy(DestinationPolicy(service=WEB, sources=(SOURCE,), policy=requests(4)))
    cluster = b.cluster()
    cluster.begin(next(iter(cluster.hosts.values())))
    (view,) = b.upstreams.clusters()
    assert view["cluster"] == f"{WEB}:80"
    assert view["policy"] == [SOURCE]
    assert view["bounds"]["http2MaxRequests"] == {"open": 1, "limit": 4}  # type: ignore[index]
    assert [each["requests"] for each in view["endpoints"]] == [1, 0]  # type: ignore[attr-defined]


def test_the_budget_of_a_route_keeps_its_counts_until_it_changes() -> None:
    b = Bench()

    def put(budget: RetryBudget | None) -> None:
        rules = (RouteRule(source="HTTPRoute/shop/r#0"),)
        table = RouteTable(service=WEB, port=80, rules=rules, retry_budget=budget)
        b.take(ROUTE_TABLE_TYPE, {route_table_name(table): encode_route_table(table)})

    put(RetryBudget(percent=10))
    first = b.tables.route_budget(WEB, 80, "")
    assert first is not None
    assert first.policy == RetryBudget(percent=10)
    put(RetryBudget(percent=10))
    assert b.tables.route_budget(WEB, 80, "client") is first
    assert b.tables.route_budget(WEB, 81, "") is None
    put(RetryBudget(percent=11))
    assert b.tables.route_budget(WEB, 80, "") is not first
    put(None)
    assert b.tables.route_budget(WEB, 80, "") is None
