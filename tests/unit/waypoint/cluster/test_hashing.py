# SPDX-License-Identifier: Apache-2.0
"""Consistent hashing: shares, stability under change, further attempts."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.model.destination import ConsistentHash, HashAlgorithm, HashKind
from tests.support.cluster_builders import host
from waypoint.cluster.hashing import MAX_RING_SIZE, Ring, hash_text, make_table
from waypoint.cluster.host import Host

KEYS = [hash_text(f"user-{n}") for n in range(10_000)]
RING = ConsistentHash(kind=HashKind.HEADER, name="x", algorithm=HashAlgorithm.RING, size=1024)
MAGLEV = ConsistentHash(kind=HashKind.HEADER, name="x", algorithm=HashAlgorithm.MAGLEV, size=65537)
both = pytest.mark.parametrize("by", [RING, MAGLEV], ids=["ring", "maglev"])


def weight(each: Host) -> float:
    return each.weight


def placed(by: ConsistentHash, hosts: list[Host]) -> list[str]:
    table = make_table(by, hosts, weight)
    return [table.find(key, 0).label for key in KEYS]


@both
def test_a_key_stays_where_it_is_whatever_the_order_of_hosts(by: ConsistentHash) -> None:
    hosts = [host(n) for n in range(1, 8)]
    assert placed(by, hosts) == placed(by, hosts[::-1])


@both
def test_hosts_get_about_what_they_weigh(by: ConsistentHash) -> None:
    found = Counter(placed(by, [host(n) for n in range(1, 9)]))
    assert all(count / len(KEYS) == pytest.approx(1 / 8, abs=0.025) for count in found.values())
    found = Counter(placed(by, [host(1, weight=3), host(2, weight=1)]))
    assert found["10.0.0.1:8080"] / len(KEYS) == pytest.approx(0.75, abs=0.04)


def test_on_a_ring_only_the_share_of_a_changed_host_moves() -> None:
    hosts = [host(n) for n in range(1, 11)]
    before, after = placed(RING, hosts[:9]), placed(RING, hosts)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {hosts[9].label}
    assert len(moved) / len(KEYS) == pytest.approx(0.1, abs=0.03)
    gone = placed(RING, hosts[1:])
    assert {old for old, new in zip(after, gone, strict=True) if old != new} == {hosts[0].label}


def test_with_maglev_little_more_than_the_share_of_a_changed_host_moves() -> None:
    hosts = [host(n) for n in range(1, 11)]
    before, after = placed(MAGLEV, hosts[:9]), placed(MAGLEV, hosts)
    moved = sum(1 for old, new in zip(before, after, strict=True) if old != new)
    # Section 5.3 of the paper: a few percent beyond the tenth that has to.
    assert 0.08 < moved / len(KEYS) < 0.15


@both
def test_further_attempts_find_other_hosts(by: ConsistentHash) -> None:
    table = make_table(by, [host(n) for n in range(1, 6)], weight)
    reached = [{table.find(key, attempt).label for attempt in range(8)} for key in KEYS[:200]]
    assert all(len(labels) >= 2 for labels in reached)


def test_on_a_ring_each_attempt_finds_another_host_until_there_are_none() -> None:
    table = make_table(RING, [host(n) for n in range(1, 4)], weight)
    for key in KEYS[:50]:
        assert len({table.find(key, attempt).label for attempt in range(3)}) == 3
        assert table.find(key, 9)


def test_a_ring_of_many_hosts_keeps_within_its_bound() -> None:
    hosts = [host(n) for n in range(1, 400)]
    ring = Ring(hosts, weight, 8_000_000)
    assert len(ring._points) <= MAX_RING_SIZE
    assert len({ring.find(key, 0) for key in KEYS}) == len(hosts)
