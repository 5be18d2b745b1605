# SPDX-License-Identifier: Apache-2.0
"""Edges out of counters: both reporters made one, causes kept, requests of waypoints added."""

from __future__ import annotations

from cli.metrics import Series
from cli.traffic import Peer, edges, totals

BASE = {
    "source_workload": "web",
    "source_workload_namespace": "shop",
    "destination_workload": "cart",
    "destination_workload_namespace": "shop",
    "destination_service_name": "cart",
    "destination_service_namespace": "shop",
    "connection_security_policy": "mutual_tls",
    "response_flags": "-",
}


def one(name: str, value: float, **labels: str) -> Series:
    return Series(name, BASE | labels, value)


def opened(value: float, **labels: str) -> Series:
    return one("istio_tcp_connections_opened_total", value, **labels)


def failed(value: float, **labels: str) -> Series:
    return one("istio_tcp_connections_failed_total", value, **labels)


def test_a_connection_that_both_sides_report_counts_once() -> None:
    (edge,) = edges([opened(3, reporter="source"), opened(3, reporter="destination")])
    assert (edge.source, edge.destination, edge.service) == (
        Peer("shop", "web"),
        Peer("shop", "cart"),
        "shop/cart",
    )
    assert edge.tcp.opened == 3
    assert edge.tcp.success == 1.0
    assert (edge.mutual_tls, edge.plain) == (True, False)


def test_what_only_one_side_saw_counts_too() -> None:
    (edge,) = edges(
        [
            failed(5, reporter="source", response_flags="DENY"),
            failed(3, reporter="destination", response_flags="DENY"),
        ]
    )
    assert (edge.tcp.failed, edge.tcp.denied, edge.failures) == (5, 5, {"DENY": 3})
    assert edge.tcp.success == 0.0


def test_an_idle_edge_has_no_success() -> None:
    (edge,) = edges([opened(0, reporter="source")])
    assert edge.tcp.success is None


def test_plain_and_secured_traffic_of_one_pair_is_told_apart() -> None:
    (edge,) = edges(
        [opened(1, reporter="source"), opened(1, reporter="source", connection_security_policy="unknown")]
    )
    assert (edge.mutual_tls, edge.plain) == (True, True)


def test_unknown_peers_are_named_so() -> None:
    (edge,) = edges(
        [opened(1, reporter="destination", source_workload="unknown", source_workload_namespace="unknown")]
    )
    assert edge.source.key == "unknown"


def test_requests_of_a_waypoint() -> None:
    request = {"reporter": "waypoint"}
    latency = "istio_request_duration_milliseconds_bucket"
    (edge,) = edges(
        [
            one("istio_requests_total", 8, response_code="200", **request),
            one("istio_requests_total", 2, response_code="503", **request),
            one("istio_requests_total", 99, response_code="200", reporter="source"),
            one(latency, 5, le="10", **request),
            one(latency, 10, le="20", **request),
            one(latency, 10, le="+Inf", **request),
        ]
    )
    assert (edge.http.requests, edge.http.failed) == (10, 2)
    assert edge.http.latency_ms(0.5) == 10.0
    total = totals([edge], lambda e: e.service)["shop/cart"]
    assert total.success == 0.8


def test_edges_without_a_group_are_left_out() -> None:
    found = edges([opened(1, reporter="source", destination_service_name="unknown")])
    assert totals(found, lambda e: e.service) == {}
