# SPDX-License-Identifier: Apache-2.0
"""Counting in workers, summing over them, and the bounds of both."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.metrics import (
    CONNECTIONS_OPENED,
    DNS_REQUESTS,
    DNS_UPSTREAM_SECONDS,
    SERIES_DROPPED,
    SOCKETS_OPEN,
    TCP_LABELS,
    Metric,
)
from mesh.telemetry.series import OVERFLOW, Delta, Recorder, Totals

LABELS = ("A", "udp", "web", "v1")


def value(totals: Totals, metric: Metric, labels: tuple[str, ...]) -> tuple[float, ...] | None:
    return next((v for m, lab, v in totals if (m, lab) == (metric, labels)), None)


def test_increments_are_summed_until_they_are_taken() -> None:
    recorder = Recorder()
    recorder.add(DNS_REQUESTS, LABELS)
    recorder.add(DNS_REQUESTS, LABELS, 2)
    assert recorder.take() == [Delta("istio_dns_requests", LABELS, (3.0,))]
    assert recorder.take() == []
    recorder.add(SOCKETS_OPEN, ("source",), 1)
    recorder.add(SOCKETS_OPEN, ("source",), -1)
    assert recorder.take() == []


def test_a_histogram_keeps_buckets_and_sum() -> None:
    recorder, totals = Recorder(), Totals(max_series=10)
    for seconds in (0.0004, 0.0005, 0.5, 9.0):
        recorder.observe(DNS_UPSTREAM_SECONDS, LABELS, seconds)
    totals.apply("w", recorder.take(), 0)
    assert value(totals, DNS_UPSTREAM_SECONDS, LABELS) == (2, 0, 0, 0, 1, 0, 1, 0.0004 + 0.0005 + 0.5 + 9.0)


def test_a_dead_workers_gauges_go_and_its_counters_stay() -> None:
    totals = Totals(max_series=10)
    for worker in ("w1", "w2"):
        totals.apply(worker, [Delta("istio_tcp_sockets_open", ("source",), (2.0,))], 0)
        totals.apply(worker, [Delta("istio_dns_requests", LABELS, (1.0,))], 0)
    totals.forget("w1")
    totals.forget("w1")
    assert value(totals, SOCKETS_OPEN, ("source",)) == (2,)
    assert value(totals, DNS_REQUESTS, LABELS) == (2,)


def test_what_exceeds_the_cap_is_counted_in_one_series_and_said() -> None:
    totals = Totals(max_series=3)
    for number in range(10):
        totals.apply("w", [Delta("istio_dns_requests", (str(number), "", "", ""), (1.0,))], 0)
    assert value(totals, DNS_REQUESTS, (OVERFLOW,) * 4) == (7,)
    assert value(totals, SERIES_DROPPED, ("istio_dns_requests",)) == (7,)
    assert sum(v[0] for m, _, v in totals if m is DNS_REQUESTS) == 10


def test_idle_series_are_evicted_and_gauges_never() -> None:
    totals = Totals(max_series=10)
    totals.apply("w", [Delta("istio_dns_requests", LABELS, (1.0,))], 100)
    totals.apply("w", [Delta("istio_tcp_sockets_open", ("source",), (1.0,))], 100)
    assert totals.evict(100) == 0
    assert totals.evict(101) == 1
    assert len(totals) == 1


def test_reports_that_do_not_fit_are_ignored() -> None:
    totals = Totals(max_series=10)
    totals.apply("w", [Delta("from_the_future", (), (1.0,)), Delta("istio_dns_requests", ("a",), (1.0,))], 0)
    totals.apply("w", [Delta("istio_dns_requests", LABELS, (1.0, 2.0))], 0)
    assert len(totals) == 0


@given(st.lists(st.tuples(st.sampled_from(["w1", "w2"]), st.integers(0, 5), st.integers(1, 9)), max_size=30))
def test_however_reports_are_cut_nothing_is_lost_or_counted_twice(adds: list[tuple[str, int, int]]) -> None:
    recorders = {"w1": Recorder(), "w2": Recorder()}
    totals = Totals(max_series=3)
    for position, (worker, series, amount) in enumerate(adds):
        recorders[worker].add(CONNECTIONS_OPENED, (str(series),) * len(TCP_LABELS), amount)
        if position % 3 == 0:
            totals.apply(worker, recorders[worker].take(), 0)
    for worker, recorder in recorders.items():
        totals.apply(worker, recorder.take(), 0)
    found = sum(values[0] for metric, _, values in totals if metric is CONNECTIONS_OPENED)
    assert found == sum(amount for _, _, amount in adds)


def test_a_declared_series_is_seen_at_zero_once() -> None:
    recorder = Recorder()
    recorder.declare(SOCKETS_OPEN, ("source",))
    (delta,) = recorder.take()
    assert (delta.labels, delta.values) == (("source",), (0.0,))
    assert recorder.take() == []
