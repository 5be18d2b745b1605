# SPDX-License-Identifier: Apache-2.0
"""Nearness: order of levels, distribution, spill-over and panic."""

from __future__ import annotations

import pytest

from mesh.model.destination import LocalityPreference, LocalityShare
from mesh.model.locality import Locality
from mesh.model.service import LoadBalancing, LoadBalancingMode, LoadBalancingScope
from tests.support.cluster_builders import host
from tests.support.mesh_builders import workload
from waypoint.cluster.host import Host
from waypoint.cluster.locality import Levels, Self, make_levels, spread

OWN = Self(workload=workload("wp", "10.0.9.9", locality=Locality(region="eu", zone="a", subzone="r1")))
HOSTS = [
    host(1, place="eu/a/r1"),
    host(2, place="eu/a/r2"),
    host(3, place="eu/b/r1"),
    host(4, place="us/a/r1"),
]
HOSTS.append(host(5, place="asia/a/r1"))


def levels(
    preference: LocalityPreference | None = None,
    service: LoadBalancing | None = None,
    *,
    failover: bool = True,
    own: Self = OWN,
) -> list[list[int]]:
    made = make_levels(HOSTS, own, service or LoadBalancing(), preference, failover=failover)
    return [[number(each) for group in level for each in group.hosts] for level in made]


def number(each: Host) -> int:
    return int(each.label.split(":")[0].rpartition(".")[2])


def test_failover_takes_the_nearest_first() -> None:
    assert levels() == [[1], [2], [3], [4, 5]]


def test_without_ejection_and_preference_all_are_alike() -> None:
    assert levels(failover=False) == [[1, 2, 3, 4, 5]]
    assert levels(LocalityPreference(enabled=False)) == [[1, 2, 3, 4, 5]]
    assert levels(own=Self(workload=None)) == [[1, 2, 3, 4, 5]]


def test_a_region_may_be_named_to_take_over() -> None:
    assert levels(LocalityPreference(failover=(("eu", "asia"),))) == [[1], [2], [3], [5], [4]]


def test_the_services_own_preference_holds_without_ejection() -> None:
    zone = (LoadBalancingScope.REGION, LoadBalancingScope.ZONE)
    near = LoadBalancing(preference=zone, mode=LoadBalancingMode.FAILOVER)
    assert levels(None, near, failover=False) == [[1, 2], [3], [4, 5]]
    strict = LoadBalancing(preference=zone, mode=LoadBalancingMode.STRICT)
    assert levels(None, strict, failover=False) == [[1, 2]]


def test_labels_order_hosts_by_how_many_they_share() -> None:
    HOSTS[4].labels = {"version": "v2"}
    own = Self(workload=OWN.workload, labels={"version": "v2"})
    found = levels(
        LocalityPreference(failover_priority=("version", "topology.kubernetes.io/region")), own=own
    )
    assert found == [[5], [1, 2, 3, 4]]
    named = LocalityPreference(failover_priority=("topology.kubernetes.io/region=us",))
    assert levels(named, own=own) == [[4], [1, 2, 3, 5]]


def test_distribution_gives_each_place_its_share_and_others_nothing() -> None:
    shares = (("eu/a/*", 70), ("us/*", 30))
    preference = LocalityPreference(distribute=(LocalityShare(source="eu/*", shares=shares),))
    made = make_levels(HOSTS, OWN, LoadBalancing(), preference, failover=False)
    found = {tuple(map(number, hosts)): part for part, hosts in spread(made, lambda _: True, 0)}
    assert found == {(1, 2): pytest.approx(0.7), (4,): pytest.approx(0.3)}
    elsewhere = LocalityPreference(distribute=(LocalityShare(source="us/*", shares=shares),))
    assert levels(elsewhere) == [[1, 2, 3, 4, 5]]


def two_levels() -> tuple[list[Host], Levels]:
    hosts = [host(n, place="eu/a/r1") for n in range(1, 11)] + [
        host(n, place="us/a/a") for n in range(11, 16)
    ]
    return hosts, make_levels(hosts, OWN, LoadBalancing(), None, failover=True)


def first_share(hosts: list[Host], made: Levels, *, down: int, panic: float = 0) -> list[float]:
    bad = set(hosts[:down])
    return [part for part, _ in spread(made, lambda each: each not in bad, panic)]


@pytest.mark.parametrize(
    ("down", "shares"), [(0, [1.0]), (2, [1.0]), (5, [0.7, 0.3]), (9, [0.14, 0.86]), (10, [1.0])]
)
def test_a_level_spills_over_once_it_cannot_carry_all(down: int, shares: list[float]) -> None:
    hosts, made = two_levels()
    assert first_share(hosts, made, down=down) == pytest.approx(shares)


def test_nobody_is_chosen_when_all_are_out_and_no_panic_is_configured() -> None:
    hosts, made = two_levels()
    assert first_share(hosts, made, down=15) == []


def test_below_the_panic_threshold_all_hosts_are_used_again() -> None:
    hosts = [host(n) for n in range(1, 11)]
    made = make_levels(hosts, OWN, LoadBalancing(), None, failover=False)
    for down, panic, used in ((5, 50, 5), (6, 50, 10), (10, 1, 10), (9, 10, 1)):
        bad = set(hosts[:down])
        found = spread(made, lambda each, bad=bad: each not in bad, panic)  # type: ignore[misc]
        assert [len(members) for _, members in found] == [used], (down, panic)
