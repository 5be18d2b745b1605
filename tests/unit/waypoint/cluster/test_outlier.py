# SPDX-License-Identifier: Apache-2.0
"""Outlier detection: what counts, how many may be out, and for how long."""

from __future__ import annotations

import math

import pytest

from mesh.model.destination import OutlierDetection
from tests.support.cluster_builders import NOW_S, host
from waypoint.cluster.outlier import Cause, Outliers


def test_errors_in_a_row_are_too_much_and_one_success_starts_again() -> None:
    outliers, each = Outliers(OutlierDetection(consecutive_5xx=3)), host(1)
    results = [outliers.answered(each, status) for status in (500, 502, 200, 500, 501, 503)]
    assert results == [None, None, None, None, None, Cause.ERRORS]
    assert outliers.answered(host(2), 404) is None


def test_gateway_errors_are_counted_by_themselves() -> None:
    policy = OutlierDetection(consecutive_5xx=0, consecutive_gateway_errors=2)
    outliers, each = Outliers(policy), host(1)
    results = [outliers.answered(each, status) for status in (502, 500, 503, 504)]
    assert results == [None, None, None, Cause.GATEWAY_ERRORS]


def test_failures_to_connect_are_errors_unless_they_are_split_off() -> None:
    outliers, each = Outliers(OutlierDetection(consecutive_5xx=2)), host(1)
    assert [outliers.failed(each), outliers.answered(each, 500)] == [None, Cause.ERRORS]
    policy = OutlierDetection(consecutive_5xx=2, split_local_errors=True, consecutive_local_failures=3)
    outliers, each = Outliers(policy), host(1)
    assert [outliers.failed(each) for _ in range(2)] == [None, None]
    assert outliers.answered(each, 500) is None  # An answer: the connection is good.
    assert [outliers.failed(each) for _ in range(3)] == [None, None, Cause.LOCAL_FAILURES]


def test_a_connection_without_http_counts_as_a_success() -> None:
    outliers, each = Outliers(OutlierDetection(consecutive_5xx=2)), host(1)
    outliers.failed(each)
    outliers.connected(each)
    assert outliers.failed(each) is None


def test_nobody_is_ejected_without_a_policy() -> None:
    outliers, each = Outliers(None), host(1)
    assert all(outliers.answered(each, 500) is None and outliers.failed(each) is None for _ in range(50))
    assert not outliers.eject(each, [each], NOW_S)


@pytest.mark.parametrize(("percent", "expected"), [(10, 1), (20, 2), (50, 5), (100, 10)])
def test_no_more_are_ejected_than_allowed_but_always_one(percent: int, expected: int) -> None:
    outliers = Outliers(OutlierDetection(max_ejection_percent=percent))
    hosts = [host(n) for n in range(10)]
    assert sum(outliers.eject(each, hosts, NOW_S) for each in hosts) == expected
    few = [host(n) for n in range(3)]
    outliers = Outliers(OutlierDetection(max_ejection_percent=percent))
    assert outliers.eject(few[0], few, NOW_S)


def test_a_host_comes_back_by_time_and_stays_away_longer_each_time() -> None:
    outliers, each = Outliers(OutlierDetection(base_ejection_s=30, interval_s=10)), host(1)
    now_s = NOW_S
    for times in (1, 2, 3):
        assert outliers.eject(each, [each], now_s)
        assert outliers.due() == now_s + 30 * times
        assert outliers.turn(now_s + 30 * times - 1) == []
        now_s += 30 * times
        assert outliers.turn(now_s) == [each]
        assert not each.ejected
    assert outliers.due() == math.inf
    # Each interval of good conduct takes one ejection off.
    outliers.eject(each, [each], now_s + 25)
    assert outliers.due() == now_s + 25 + 30 * 2


def test_an_ejection_is_bounded() -> None:
    outliers, each = Outliers(OutlierDetection(base_ejection_s=100, max_ejection_s=300)), host(1)
    for _ in range(5):
        outliers.eject(each, [each], NOW_S)
        outliers.turn(math.inf)
        each.back_s = NOW_S
    assert outliers.eject(each, [each], NOW_S)
    assert outliers.due() == NOW_S + 300


def test_a_host_that_is_out_is_not_counted_and_all_return_when_detection_ends() -> None:
    outliers, each = Outliers(OutlierDetection(consecutive_5xx=1)), host(1)
    outliers.eject(each, [each], NOW_S)
    assert outliers.answered(each, 500) is None
    outliers.policy = None
    assert outliers.turn(NOW_S) == [each]
