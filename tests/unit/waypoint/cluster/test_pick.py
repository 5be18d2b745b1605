# SPDX-License-Identifier: Apache-2.0
"""Balancers: distributions with seeds, load and latency."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.model.destination import Balancer
from tests.support.cluster_builders import NOW_S, host, seeded
from waypoint.cluster.host import Host
from waypoint.cluster.pick import LeastRequest, PeakEwma, RoundRobin, make_picker

DRAWS = 20_000


def weight(each: Host) -> float:
    return each.weight


def counts(picker: object, draws: int = DRAWS, seed: int = 7) -> Counter[str]:
    random = seeded(seed)
    return Counter(picker.pick(random, NOW_S).label for _ in range(draws))  # type: ignore[attr-defined]


@pytest.mark.parametrize("balancer", list(Balancer))
def test_idle_hosts_get_what_they_weigh(balancer: Balancer) -> None:
    hosts = [host(1, weight=70), host(2, weight=30)]
    found = counts(make_picker(balancer, hosts, weight))
    assert found["10.0.0.1:8080"] / DRAWS == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("balancer", list(Balancer))
def test_equal_idle_hosts_get_the_same(balancer: Balancer) -> None:
    found = counts(make_picker(balancer, [host(n) for n in range(1, 6)], weight))
    assert len(found) == 5
    assert all(count / DRAWS == pytest.approx(0.2, abs=0.02) for count in found.values())


@pytest.mark.parametrize("balancer", list(Balancer))
def test_one_host_gets_all(balancer: Balancer) -> None:
    assert counts(make_picker(balancer, [host(1)], weight), 10) == {"10.0.0.1:8080": 10}


def test_round_robin_is_exact_and_smooth() -> None:
    equal = RoundRobin([host(n) for n in range(1, 4)], weight)
    assert set(counts(equal, 3000).values()) == {1000}
    weighted = RoundRobin([host(1, weight=5), host(2), host(3)], weight)
    random = seeded(3)
    order = [weighted.pick(random, NOW_S).label[7] for _ in range(70)]
    assert Counter(order) == {"1": 50, "2": 10, "3": 10}
    # No burst: the light ones stand apart, the heavy one fills up.
    assert "23" not in "".join(order)
    assert "1" * 5 not in "".join(order)


def test_two_round_robins_do_not_march_in_step() -> None:
    firsts = {RoundRobin([host(n) for n in range(8)], weight).pick(seeded(n), 0).label for n in range(20)}
    assert len(firsts) > 3


def test_least_request_spares_a_busy_host() -> None:
    hosts = [host(n) for n in range(1, 5)]
    hosts[0].active = 10
    found = counts(LeastRequest(hosts, weight))
    # It is taken only where both draws are of it: never, as two draws differ.
    assert found["10.0.0.1:8080"] == 0


def test_peak_ewma_avoids_a_slow_host_and_finds_out_when_it_recovers() -> None:
    quick, slow = host(1), host(2)
    quick.observe(0.005, NOW_S)
    slow.observe(0.2, NOW_S)
    random = seeded(1)
    picker = PeakEwma([quick, slow], weight)
    assert {picker.pick(random, NOW_S + 1) for _ in range(100)} == {quick}
    # Nothing is heard of it; its average decays until it is worth another try.
    quick.observe(0.005, NOW_S + 60)
    assert slow.cost(NOW_S + 60) < quick.cost(NOW_S + 60)


def test_a_peak_counts_at_once_and_an_improvement_slowly() -> None:
    each = host(1)
    each.observe(0.01, NOW_S)
    each.observe(0.5, NOW_S + 1)
    assert each.latency_s == 0.5
    each.observe(0.01, NOW_S + 2)
    assert 0.4 < each.latency_s < 0.5


def test_peak_ewma_sends_a_slow_endpoint_less_than_a_tenth_within_two_seconds() -> None:
    """Ten hosts, 500 requests a second; one answers in 200 ms, the others in 5 ms."""
    hosts = [host(n) for n in range(1, 11)]
    slow = hosts[0]
    random = seeded(11)
    picker = PeakEwma(hosts, weight)
    open_: list[tuple[float, Host, float]] = []
    sent: Counter[Host] = Counter()
    for step in range(2000):
        now_s = NOW_S + step / 500
        for done in [entry for entry in open_ if entry[0] <= now_s]:
            open_.remove(done)
            done[1].active -= 1
            done[1].observe(done[2], now_s)
        chosen = picker.pick(random, now_s)
        chosen.active += 1
        took_s = 0.2 if chosen is slow else 0.005
        open_.append((now_s + took_s, chosen, took_s))
        if now_s >= NOW_S + 2:
            sent[chosen] += 1
    assert sent[slow] / sent.total() < 0.1
    assert min(sent[each] for each in hosts[1:]) > 0


def test_a_host_that_was_never_measured_is_tried_once_at_a_time() -> None:
    known, fresh = host(1), host(2)
    known.observe(0.02, NOW_S)
    assert fresh.cost(NOW_S) < known.cost(NOW_S)
    fresh.active = 1
    assert fresh.cost(NOW_S) > known.cost(NOW_S)
