# SPDX-License-Identifier: Apache-2.0
"""Endpoint choice: ports, health, families, locality, weights."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.locality import Locality
from mesh.model.service import (
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    ServicePort,
)
from mesh.model.workload import PortMap
from mesh.state.balance import (
    candidates,
    choose,
    choose_address,
    locality_rank,
    nearest,
    target_port,
    weighted,
)
from mesh.state.store import Endpoint
from tests.support.mesh_builders import key, member, service, store, workload

ALL = tuple(LoadBalancingScope)


def test_an_endpoints_port_beats_the_services_and_named_ports_need_one() -> None:
    plain = Endpoint(workload=workload("a"), ports=PortMap(ports={}))
    own = Endpoint(workload=workload("a"), ports=PortMap(ports={80: 9090}))
    made = service("cart")
    assert (target_port(made, plain, 80), target_port(made, own, 80)) == (8080, 9090)
    assert target_port(made, plain, 81) is None
    named = service("cart", ports=(ServicePort(service_port=80, target_port=0),))
    assert (target_port(named, plain, 80), target_port(named, own, 80)) == (None, 9090)


@pytest.mark.parametrize(
    ("families", "ipv6", "chosen"),
    [
        (IpFamilies.AUTOMATIC, False, "10.0.0.1"),
        (IpFamilies.AUTOMATIC, True, "fd00::1"),
        (IpFamilies.DUAL, True, "fd00::1"),
        (IpFamilies.IPV4_ONLY, True, "10.0.0.1"),
        (IpFamilies.IPV6_ONLY, False, "fd00::1"),
    ],
)
def test_the_callers_family_comes_first_where_the_service_offers_it(
    families: IpFamilies, ipv6: bool, chosen: str
) -> None:
    both = workload("a", "10.0.0.1", "fd00::1")
    assert str(choose_address(both, ipv6=ipv6, families=families)) == chosen


def test_the_other_family_is_better_than_none() -> None:
    only = workload("a", "10.0.0.1")
    assert str(choose_address(only, ipv6=True)) == "10.0.0.1"
    assert choose_address(only, ipv6=True, families=IpFamilies.IPV6_ONLY) is None


def test_unready_other_network_and_drained_endpoints_are_no_candidates() -> None:
    state = store(
        service("cart", "10.96.0.1"),
        workload("ok", "10.0.0.1", services=member("cart")),
        workload("sick", "10.0.0.2", services=member("cart"), healthy=False),
        workload("far", "10.0.0.3", services=member("cart"), network="other"),
        workload("off", "10.0.0.4", services=member("cart"), capacity=0),
        workload("bare", services=member("cart")),
        workload("named", services=member("cart"), hostname="x.example"),
    )
    made = state.services[key("cart")]
    names = {target.workload.name for target in candidates(state, made, 80, ipv6=False)}
    assert names == {"ok", "named"}
    everyone = service(
        "cart", "10.96.0.1", load_balancing=LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL)
    )
    names = {target.workload.name for target in candidates(state, everyone, 80, ipv6=False)}
    assert names == {"ok", "sick", "named"}


def test_row_21_locality_is_compared_in_order_and_stops_at_the_first_difference() -> None:
    here = workload("a", locality=Locality(region="r", zone="z", subzone="s"), node="n1")
    assert locality_rank(ALL, here, here) == len(ALL)
    other_zone = workload("b", locality=Locality(region="r", zone="y", subzone="s"), node="n1")
    assert locality_rank(ALL, here, other_zone) == 1
    nowhere = workload("c", node="n2", cluster_id="east", network="far")
    assert locality_rank((LoadBalancingScope.NODE,), here, nowhere) == 0
    assert locality_rank((LoadBalancingScope.CLUSTER,), here, nowhere) == 0
    assert locality_rank((LoadBalancingScope.NETWORK,), here, nowhere) == 0


def test_failover_keeps_the_best_rank_there_is_and_strict_only_the_full_one() -> None:
    here = workload("a", locality=Locality(region="r", zone="z"))
    near = workload("near", "10.0.0.1", services=member("cart"), locality=Locality(region="r", zone="y"))
    far = workload("far", "10.0.0.2", services=member("cart"), locality=Locality(region="q"))
    state = store(service("cart", "10.96.0.1"), near, far)
    targets = candidates(state, state.services[key("cart")], 80, ipv6=False)
    scopes = (LoadBalancingScope.REGION, LoadBalancingScope.ZONE)

    def kept(mode: LoadBalancingMode, preference: tuple[LoadBalancingScope, ...] = scopes) -> set[str]:
        chosen = nearest(LoadBalancing(preference=preference, mode=mode), here, targets)
        return {target.workload.name for target in chosen}

    assert kept(LoadBalancingMode.FAILOVER) == {"near"}
    assert kept(LoadBalancingMode.STRICT) == set()
    assert kept(LoadBalancingMode.UNSPECIFIED) == {"near", "far"}
    assert kept(LoadBalancingMode.STRICT, ()) == {"near", "far"}


def test_row_20_draws_follow_the_capacity() -> None:
    state = store(
        service("cart", "10.96.0.1"),
        workload("big", "10.0.0.1", services=member("cart"), capacity=3),
        workload("small", "10.0.0.2", services=member("cart")),
    )
    draw = random.Random(1).random
    counts: Counter[str] = Counter()
    for _ in range(1000):
        target = choose(state, state.services[key("cart")], 80, workload("x"), ipv6=False, random=draw)
        assert target is not None
        counts[target.workload.name] += 1
    assert 690 < counts["big"] < 810


@given(st.lists(st.integers(0, 5), max_size=6), st.floats(0, 1))
def test_a_draw_is_an_option_with_weight_or_nothing(weights: list[int], point: float) -> None:
    drawn = weighted(list(enumerate(weights)), lambda: point)
    if not any(weights):
        assert drawn is None
    else:
        assert drawn is not None
        assert weights[drawn] > 0
