# SPDX-License-Identifier: Apache-2.0
"""Retry budgets: at the bound, above it, and over time."""

from __future__ import annotations

from mesh.model.destination import RetryBudget
from tests.support.cluster_builders import NOW_S
from waypoint.cluster.budget import DEFAULT_BUDGET, Budget


def test_a_budget_of_open_requests_allows_its_percentage_or_the_minimum() -> None:
    budget = Budget(RetryBudget(percent=20, min_concurrent=3))
    for _ in range(3):
        assert budget.allows(NOW_S)
        budget.begin_retry(NOW_S)
    assert not budget.allows(NOW_S)
    for _ in range(20):
        budget.begin(NOW_S)
    assert budget.allows(NOW_S)  # 20 % of 20 are 4.
    budget.begin_retry(NOW_S)
    assert not budget.allows(NOW_S)
    budget.end_retry()
    assert budget.allows(NOW_S)


def test_by_default_an_outage_costs_no_more_than_a_fifth_on_top() -> None:
    """1000 requests a second for 30 s; every one fails and would be tried twice more."""
    budget, tries = Budget(DEFAULT_BUDGET), 0
    for step in range(30_000):
        now_s = NOW_S + step / 1000
        budget.begin(now_s)
        tries += 1
        for _ in range(2):
            if not budget.allows(now_s):
                break
            budget.begin_retry(now_s)
            tries += 1
            budget.end_retry()
        budget.end()
    assert 1.15 < tries / 30_000 <= 1.2


def test_few_requests_may_always_be_tried_again() -> None:
    budget = Budget(DEFAULT_BUDGET)
    allowed = 0
    for step in range(1000):
        now_s = NOW_S + step / 1000
        if step < 100:
            budget.begin(now_s)
        if budget.allows(now_s):
            allowed += 1
            budget.begin_retry(now_s)
            budget.end_retry()
    # A fifth of 100 requests would be 20; ten a second over the interval are more.
    assert allowed == 100
    assert budget.allows(NOW_S + 60)


def test_a_quiet_interval_is_forgotten() -> None:
    budget = Budget(RetryBudget(percent=10, interval_s=10))
    for _ in range(100):
        budget.begin(NOW_S)
    for _ in range(10):
        assert budget.allows(NOW_S)
        budget.begin_retry(NOW_S)
    assert not budget.allows(NOW_S + 8)
    budget.begin(NOW_S + 20)
    assert budget.allows(NOW_S + 20)


def test_no_budget_bounds_nothing() -> None:
    budget = Budget(None)
    for _ in range(100):
        budget.begin_retry(NOW_S)
    assert budget.allows(NOW_S)
