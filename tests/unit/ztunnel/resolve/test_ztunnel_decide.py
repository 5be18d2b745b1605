# SPDX-License-Identifier: Apache-2.0
"""The outbound decision table, row by row, and its two promises."""

from __future__ import annotations

import dataclasses
import random
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from mesh.model.service import LoadBalancing, LoadBalancingMode, WeightedWaypoint
from mesh.model.workload import GatewayAddress, NetworkAddress, TunnelProtocol
from mesh.telemetry.reasons import Reason
from tests.support.mesh_builders import key, member, service, store, workload
from ztunnel.resolve.decide import Kind, Reject, Upstream, decide_outbound

SOURCE = workload("web", "10.0.0.1", "fd00::1")
VIP = ip_address("10.96.0.1")


def zero() -> float:
    return 0.0


def decide(state, address="10.96.0.1", port=80, source=SOURCE, draw=zero):
    return decide_outbound(state, source, ip_address(address), port, draw)


def waypoint(name: str = "wp", port: int = 15008) -> GatewayAddress:
    return GatewayAddress(destination=key(name), hbone_mtls_port=port)


def test_an_unknown_address_passes_through() -> None:
    found = decide(store(SOURCE), "192.0.2.1", 443)
    assert found == Upstream(kind=Kind.PASSTHROUGH, address=ip_address("192.0.2.1"), port=443)


def test_a_meshed_pod_is_reached_through_hbone_with_its_exact_identity() -> None:
    peer = workload("cart", "10.0.0.2")
    found = decide(store(SOURCE, peer), "10.0.0.2", 9000)
    assert found.kind is Kind.HBONE
    assert (found.address, found.port, found.authority) == (ip_address("10.0.0.2"), 15008, "10.0.0.2:9000")
    assert found.identities == {"spiffe://cluster.local/ns/shop/sa/cart"}
    assert found.tunnelled


def test_ipv6_authorities_have_brackets() -> None:
    peer = workload("cart", "fd00::2")
    assert decide(store(SOURCE, peer), "fd00::2", 9000).authority == "[fd00::2]:9000"


def test_a_pod_outside_the_mesh_is_plain() -> None:
    peer = workload("old", "10.0.0.2", tunnel_protocol=TunnelProtocol.NONE)
    found = decide(store(SOURCE, peer), "10.0.0.2", 9000)
    assert (found.kind, found.port, found.tunnelled) == (Kind.PLAIN, 9000, False)


def test_a_service_goes_to_an_endpoints_target_port_with_its_alternative_names() -> None:
    state = store(
        SOURCE,
        workload("cart", "10.0.0.2", services=member("cart")),
        service("cart", "10.96.0.1", subject_alt_names=("spiffe://td/ns/x/sa/y", "dns.example")),
    )
    found = decide(state)
    assert (found.kind, found.authority) == (Kind.HBONE, "10.0.0.2:8080")
    assert found.identities == {"spiffe://cluster.local/ns/shop/sa/cart", "spiffe://td/ns/x/sa/y"}
    assert found.service is not None


def test_a_service_without_endpoint_or_port_says_so() -> None:
    state = store(SOURCE, service("cart", "10.96.0.1"))
    found = decide(state)
    assert isinstance(found, Reject)
    assert found.reason is Reason.NO_HEALTHY_UPSTREAM
    assert found.detail.startswith("no healthy upstream: 10.96.0.1:80 (shop/cart.shop.svc.cluster.local): ")
    assert "has no endpoints" in found.detail
    assert "has no port 81" in decide(state, port=81).detail
    state = store(
        SOURCE,
        service("cart", "10.96.0.1"),
        workload("cart", "10.0.0.2", healthy=False, services=member("cart")),
    )
    assert "1 endpoints, 1 not ready" in decide(state).detail


def test_a_pod_itself_and_its_own_service_are_dialled_directly() -> None:
    own = dataclasses.replace(SOURCE, services=member("web"))
    state = store(own, service("web", "10.96.0.1"))
    assert decide(state, "10.0.0.1", 8080, own).kind is Kind.DIRECT
    assert decide(state, source=own).kind is Kind.DIRECT


def test_ztunnels_ports_of_a_meshed_pod_are_no_destination() -> None:
    state = store(SOURCE, workload("cart", "10.0.0.2"))
    for port in (15001, 15006, 15008):
        assert decide(state, "10.0.0.2", port).reason is Reason.ILLEGAL_PORT


def test_a_service_waypoint_takes_its_traffic_with_the_virtual_address_as_authority() -> None:
    state = store(
        SOURCE,
        workload("wp-1", "10.0.0.9", services=member("wp")),
        service("wp", "10.96.0.9"),
        service("cart", "10.96.0.1", waypoint=waypoint()),
    )
    found = decide(state)
    assert (found.kind, found.address, found.port) == (Kind.WAYPOINT, ip_address("10.0.0.9"), 15008)
    assert found.authority == "10.96.0.1:80"
    assert found.identities == {"spiffe://cluster.local/ns/shop/sa/wp-1"}


def test_a_waypoint_without_a_ready_instance_closes() -> None:
    state = store(SOURCE, service("wp", "10.96.0.9"), service("cart", "10.96.0.1", waypoint=waypoint()))
    assert decide(state).reason is Reason.WAYPOINT_UNAVAILABLE
    state = store(SOURCE, service("cart", "10.96.0.1", waypoint=waypoint("never-heard-of")))
    assert decide(state).reason is Reason.WAYPOINT_UNAVAILABLE


def test_row_17_a_workload_waypoint_takes_pod_traffic_only() -> None:
    state = store(
        SOURCE,
        workload("wp-1", "10.0.0.9", services=member("wp")),
        service("wp", "10.96.0.9"),
        workload("cart", "10.0.0.2", waypoint=waypoint(), services=member("cart")),
        service("cart", "10.96.0.1"),
    )
    assert decide(state, "10.0.0.2", 8080).kind is Kind.WAYPOINT
    assert decide(state).kind is Kind.HBONE


def test_a_waypoint_reaches_its_own_destinations_directly() -> None:
    instance = workload("wp-1", "10.0.0.9", services=member("wp"))
    state = store(
        instance,
        service("wp", "10.96.0.9"),
        workload("cart", "10.0.0.2", waypoint=waypoint(), services=member("cart")),
        service("cart", "10.96.0.1", waypoint=waypoint()),
    )
    assert decide(state, "10.0.0.2", 8080, instance).kind is Kind.HBONE
    assert decide(state, source=instance).kind is Kind.HBONE


def test_a_waypoint_may_be_named_by_address() -> None:
    gateway = GatewayAddress(
        destination=NetworkAddress(network="", address=ip_address("10.0.0.9")), hbone_mtls_port=15009
    )
    state = store(SOURCE, workload("wp-1", "10.0.0.9"), service("cart", "10.96.0.1", waypoint=gateway))
    found = decide(state)
    assert (found.kind, found.address, found.port) == (Kind.WAYPOINT, ip_address("10.0.0.9"), 15009)


def test_row_18_weighted_waypoints_share_by_weight_and_zero_is_never_drawn() -> None:
    weights = (
        WeightedWaypoint(destination=waypoint("old"), weight=3),
        WeightedWaypoint(destination=waypoint("new"), weight=1),
        WeightedWaypoint(destination=waypoint("off"), weight=0),
    )
    instances = [
        workload(f"{n}-1", f"10.0.1.{i}", services=member(n)) for i, n in enumerate(("old", "new", "off"))
    ]
    services = [service(n, f"10.96.1.{i}") for i, n in enumerate(("old", "new", "off"))]
    state = store(SOURCE, *instances, *services, service("cart", "10.96.0.1", weighted_waypoints=weights))
    draw = random.Random(7).random
    counts = {"old-1": 0, "new-1": 0}
    for _ in range(400):
        found = decide(state, draw=draw)
        counts[found.workload.name] += 1
    assert 260 < counts["old-1"] < 340


def test_passthrough_balancing_keeps_the_original_address() -> None:
    state = store(
        SOURCE,
        service("cart", "10.96.0.1", load_balancing=LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH)),
    )
    found = decide(state)
    assert (found.kind, found.address, found.port) == (Kind.PASSTHROUGH, VIP, 80)


@given(
    meshed=st.booleans(),
    healthy=st.booleans(),
    addressed=st.sampled_from([(), ("10.0.0.2",), ("fd00::2",), ("10.0.0.2", "fd00::2")]),
    hostname=st.sampled_from(["", "cart.example"]),
    asked=st.sampled_from(["10.96.0.1", "10.0.0.2", "fd00::2", "fd96::1", "192.0.2.9"]),
    port=st.integers(1, 65535),
    through=st.booleans(),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_it_never_raises_and_never_answers_plaintext_for_a_meshed_destination(
    meshed: bool,
    healthy: bool,
    addressed: tuple[str, ...],
    hostname: str,
    asked: str,
    port: int,
    through: bool,
    draw: float,
) -> None:
    protocol = TunnelProtocol.HBONE if meshed else TunnelProtocol.NONE
    state = store(
        SOURCE,
        workload(
            "cart",
            *addressed,
            hostname=hostname,
            tunnel_protocol=protocol,
            healthy=healthy,
            services=member("cart"),
        ),
        service("cart", "10.96.0.1", "fd96::1", waypoint=waypoint() if through else None),
    )
    found = decide(state, asked, port, draw=lambda: draw)
    if isinstance(found, Upstream) and found.workload is not None and meshed:
        assert found.tunnelled
        assert found.identities
        assert found.authority
