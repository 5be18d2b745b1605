# SPDX-License-Identifier: Apache-2.0
"""A cluster: choice among its hosts, through changes of endpoints, health and policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.model.destination import (
    Balancer,
    Balancing,
    ConnectionPool,
    ConsistentHash,
    HashAlgorithm,
    HashKind,
    LocalityPreference,
    LocalityShare,
    OutlierDetection,
    RetryBudget,
    TrafficPolicy,
    Warmup,
)
from mesh.model.locality import Locality
from tests.support.cluster_builders import NOW_S, cluster, member
from tests.support.mesh_builders import workload
from waypoint.cluster.budget import DEFAULT_BUDGET
from waypoint.cluster.cluster import Cluster, Settings
from waypoint.cluster.hashing import hash_text
from waypoint.cluster.host import Host
from waypoint.cluster.locality import Self

NOBODY: frozenset[str] = frozenset()
MEMBERS = [member(n) for n in range(1, 6)]


def chosen(made: Cluster, draws: int = 5000, now_s: float = NOW_S, key: int | None = None) -> Counter[str]:
    hosts = (made.pick(key, NOBODY, now_s) for _ in range(draws))
    return Counter(host.label for host in hosts if host is not None)


def host_of(made: Cluster, number: int) -> Host:
    return next(host for host in made.hosts.values() if host.label == f"10.0.0.{number}:8080")


def test_a_cluster_without_hosts_chooses_none() -> None:
    assert cluster().pick(None, NOBODY, NOW_S) is None


def test_hosts_keep_their_state_through_updates() -> None:
    made = cluster(*MEMBERS)
    kept = host_of(made, 1)
    kept.active = 3
    gone = made.update(MEMBERS[:2], Settings(), NOW_S + 1)
    assert sorted(host.label for host in gone) == [f"10.0.0.{n}:8080" for n in (3, 4, 5)]
    assert all(host.gone for host in gone)
    assert host_of(made, 1) is kept
    assert set(chosen(made)) == {"10.0.0.1:8080", "10.0.0.2:8080"} - {kept.label}


@pytest.mark.parametrize("key", [None, hash_text("a")])
def test_a_retry_goes_elsewhere_as_long_as_there_is_anybody_else(key: int | None) -> None:
    by = ConsistentHash(kind=HashKind.HEADER, name="x")
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(hash=by)))
    avoid: frozenset[str] = frozenset()
    for _ in range(5):
        host = made.pick(key, avoid, NOW_S)
        assert host is not None
        assert host.label not in avoid
        avoid |= {host.label}
    assert made.pick(key, avoid, NOW_S) is not None


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_a_key_finds_its_host_and_requests_without_one_are_balanced(algorithm: HashAlgorithm) -> None:
    by = ConsistentHash(kind=HashKind.HEADER, name="x", algorithm=algorithm, size=1031)
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(hash=by)))
    assert len(chosen(made, key=hash_text("a"))) == 1
    assert len(chosen(made)) == 5
    before = {n: chosen(made, 1, key=hash_text(str(n))) for n in range(300)}
    made.update([*MEMBERS, member(6)], made.settings, NOW_S)
    after = {n: chosen(made, 1, key=hash_text(str(n))) for n in range(300)}
    moved = [n for n in before if before[n] != after[n]]
    assert 20 < len(moved) < 90


def test_a_new_table_is_built_in_pieces_while_the_older_one_serves() -> None:
    steps: list[Callable[[], bool]] = []
    by = ConsistentHash(kind=HashKind.HEADER, name="x", algorithm=HashAlgorithm.MAGLEV, size=65537)
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(hash=by)))
    made._defer = steps.append
    keys = [hash_text(str(n)) for n in range(400)]
    before = [made.pick(key, NOBODY, NOW_S) for key in keys]
    assert steps == [], "the first table is there when it is needed"
    gone = host_of(made, 3)
    made.update([m for m in MEMBERS if m.address.label != gone.label], made.settings, NOW_S)
    meanwhile = [made.pick(key, NOBODY, NOW_S) for key in keys]
    assert gone not in meanwhile
    stayed = [n for n, host in enumerate(before) if host is not gone]
    assert all(meanwhile[n] is before[n] for n in stayed)
    assert meanwhile == [made.pick(key, NOBODY, NOW_S) for key in keys], "equal keys stay together"
    (step,) = steps
    assert sum(1 for _ in iter(step, False)) > 20
    after = [made.pick(key, NOBODY, NOW_S) for key in keys]
    fresh = cluster(*(m for m in MEMBERS if m.address.label != gone.label), policy=made.settings.policy)
    assert [h.label for h in after if h] == [h.label for k in keys if (h := fresh.pick(k, NOBODY, NOW_S))]
    assert len(steps) == 1


def test_building_ends_when_the_hosts_change_again() -> None:
    steps: list[Callable[[], bool]] = []
    by = ConsistentHash(kind=HashKind.HEADER, name="x", algorithm=HashAlgorithm.MAGLEV, size=65537)
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(hash=by)))
    made._defer = steps.append
    made.pick(1, NOBODY, NOW_S)
    for count in (4, 3):
        made.update(MEMBERS[:count], made.settings, NOW_S)
        made.pick(1, NOBODY, NOW_S)
    first, second = steps
    assert not first()
    assert second()


def test_places_share_keys_without_thinning_their_tables() -> None:
    shares = (("eu/*", 50), ("us/*", 50))
    balancing = Balancing(
        hash=ConsistentHash(kind=HashKind.HEADER, name="x"),
        locality=LocalityPreference(distribute=(LocalityShare(source="*", shares=shares),)),
    )
    own = Self(workload=workload("wp", "10.0.9.9", locality=Locality(region="eu")))
    places = [member(n, place="eu/a" if n <= 4 else "us/a") for n in range(1, 9)]
    made = cluster(*places, policy=TrafficPolicy(balancing=balancing), own=own)
    found = Counter(made.pick(hash_text(str(n)), NOBODY, NOW_S) for n in range(4000))
    assert len(found) == 8
    assert min(found.values()) > 250


def test_an_update_that_changes_nothing_keeps_the_tables() -> None:
    by = ConsistentHash(kind=HashKind.HEADER, name="x")
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(hash=by)))
    made.pick(1, NOBODY, NOW_S)
    table = made._shares[0].table
    assert table is not None
    made.update([member(n) for n in range(1, 6)], made.settings, NOW_S + 1)
    made.turn(NOW_S + 1)
    assert made._shares[0].table is table
    made.update([member(n, weight=2 if n == 1 else 1) for n in range(1, 6)], made.settings, NOW_S + 2)
    made.pick(1, NOBODY, NOW_S + 2)
    assert made._shares[0].table is not table


def test_a_failing_host_is_left_out_named_and_taken_back() -> None:
    events: list[str] = []
    policy = TrafficPolicy(outliers=OutlierDetection(consecutive_5xx=3, base_ejection_s=30))
    made = cluster(*MEMBERS, policy=policy)
    made._on_ejected = lambda _, host, cause: events.append(f"{host.label} {cause.value}")
    made._on_back = lambda _, host: events.append(f"{host.label} back")
    bad = host_of(made, 2)
    for _ in range(3):
        assert "10.0.0.2:8080" in chosen(made)
        made.rated(bad, 503, NOW_S)
    assert events == ["10.0.0.2:8080 consecutive_5xx"]
    assert "10.0.0.2:8080" not in chosen(made, now_s=NOW_S + 29)
    assert "10.0.0.2:8080" in chosen(made, now_s=NOW_S + 30)
    assert events[1:] == ["10.0.0.2:8080 back"]


def test_failures_to_connect_and_late_statuses_count() -> None:
    policy = TrafficPolicy(outliers=OutlierDetection(consecutive_5xx=2, max_ejection_percent=100))
    made = cluster(*MEMBERS, policy=policy)
    made.failed(host_of(made, 1), 0.0, NOW_S)
    made.failed(host_of(made, 1), 0.0, NOW_S)
    made.rated(host_of(made, 2), 503, NOW_S)
    made.rated(host_of(made, 2), 503, NOW_S)
    assert set(chosen(made)) == {f"10.0.0.{n}:8080" for n in (3, 4, 5)}


def test_a_host_that_fails_fast_does_not_look_quick() -> None:
    made = cluster(*MEMBERS, policy=TrafficPolicy(balancing=Balancing(balancer=Balancer.PEAK_EWMA)))
    for host in made.hosts.values():
        host.observe(0.02, NOW_S)
    bad = host_of(made, 1)
    bad.observe(0.001, NOW_S)
    for status in (503, 429):
        bad.latency_s = 0.0
        made.rated(bad, status, NOW_S)
        assert "10.0.0.1:8080" not in chosen(made)
    bad.latency_s = 0.0
    made.failed(bad, 0.001, NOW_S)
    assert "10.0.0.1:8080" not in chosen(made)


def test_near_hosts_fail_over_to_far_ones() -> None:
    own = Self(workload=workload("wp", "10.0.9.9", locality=Locality(region="eu", zone="a")))
    policy = TrafficPolicy(
        balancing=Balancing(locality=LocalityPreference()),
        outliers=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100),
    )
    made = cluster(member(1, place="eu/a"), member(2, place="us/b"), policy=policy, own=own)
    assert set(chosen(made)) == {"10.0.0.1:8080"}
    made.rated(host_of(made, 1), 500, NOW_S)
    assert set(chosen(made)) == {"10.0.0.2:8080"}


def test_a_new_host_warms_up() -> None:
    warmup = Warmup(duration_s=100, minimum_percent=10)
    for balancer in (Balancer.LEAST_REQUEST, Balancer.ROUND_ROBIN, Balancer.RANDOM):
        policy = TrafficPolicy(balancing=Balancing(balancer=balancer, warmup=warmup))
        made = cluster(member(1), policy=policy)
        made.update([member(1), member(2)], made.settings, NOW_S + 1000)
        for age_s, part in ((0, 0.1), (50, 0.5), (100, 1.0)):
            found = chosen(made, now_s=NOW_S + 1000 + age_s)["10.0.0.2:8080"] / 5000
            assert found == pytest.approx(part / (1 + part), abs=0.03), (balancer, age_s)


def test_aggression_lets_a_host_warm_up_sooner() -> None:
    policy = TrafficPolicy(balancing=Balancing(warmup=Warmup(duration_s=100, aggression=2.0)))
    made = cluster(member(1), policy=policy)
    made.update([member(1), member(2)], made.settings, NOW_S + 1000)
    found = chosen(made, now_s=NOW_S + 1025)["10.0.0.2:8080"] / 5000
    assert found == pytest.approx(0.5 / 1.5, abs=0.03)


def test_clients_choose_where_the_policy_passes_them_through() -> None:
    address = ip_address("10.0.0.3")
    assert cluster(*MEMBERS).find(address) is None
    policy = TrafficPolicy(balancing=Balancing(balancer=Balancer.PASSTHROUGH))
    made = cluster(*MEMBERS, policy=policy)
    found = made.find(address)
    assert found is not None
    assert found.label == "10.0.0.3:8080"
    assert made.find(ip_address("10.0.0.77")) is None
    assert len(chosen(made)) == 5


def test_the_policy_sets_bounds_and_budget_and_their_counts_stay() -> None:
    made = cluster(*MEMBERS)
    assert made.budget.policy == DEFAULT_BUDGET
    made.begin(host_of(made, 1))
    made.budget.begin(NOW_S)
    policy = TrafficPolicy(pool=ConnectionPool(max_requests=1), retry_budget=RetryBudget(percent=50))
    made.update(MEMBERS, Settings(policy=policy, sources=("DestinationRule/shop/web",)), NOW_S)
    assert made.circuit.requests_full
    assert (made.budget.active, made.budget.policy) == (1, RetryBudget(percent=50))
    made.end(host_of(made, 1))
    assert not made.circuit.requests_full
    counted = replace(policy, pool=ConnectionPool(max_retries=3), retry_budget=None)
    made.update(MEMBERS, Settings(policy=counted), NOW_S)
    assert made.budget.policy is None
