# SPDX-License-Identifier: Apache-2.0
"""What a try tells of its host: status, gRPC status, failure, timeout."""

from __future__ import annotations

import math

import pytest

from mesh.model.destination import OutlierDetection, TrafficPolicy
from tests.support.cluster_builders import NOW_S, cluster, member
from waypoint.cluster.attempt import Attempt
from waypoint.cluster.cluster import Cluster
from waypoint.cluster.host import Host
from waypoint.http.message import Framing, Headers, ResponseHead
from waypoint.proxy.streams import Failure


class Bench:
    def __init__(self) -> None:
        self.now_s = NOW_S
        policy = TrafficPolicy(outliers=OutlierDetection(consecutive_5xx=100))
        self.cluster: Cluster = cluster(member(1), policy=policy)
        self.host: Host = next(iter(self.cluster.hosts.values()))

    def attempt(self, *, grpc: bool = False, deadline_s: float = math.inf, cookie: str = "") -> Attempt:
        return Attempt(
            self.cluster,
            self.host,
            lambda: self.now_s,
            self.now_s,
            grpc=grpc,
            deadline_s=deadline_s,
            cookie=cookie,
        )


def head(status: int, *headers: tuple[str, str]) -> ResponseHead:
    return ResponseHead(status=status, reason="", headers=list(headers), framing=Framing.NONE)


def test_a_try_is_counted_while_it_runs() -> None:
    b = Bench()
    attempt = b.attempt()
    assert (b.host.active, b.cluster.circuit.requests) == (1, 1)
    attempt.on_over(None)
    assert (b.host.active, b.cluster.circuit.requests) == (0, 0)


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (404, 0), (500, 1), (503, 1)])
def test_the_status_is_counted_once(status: int, errors: int) -> None:
    b = Bench()
    attempt = b.attempt()
    b.now_s += 0.25
    attempt.on_response(head(100))
    attempt.on_response(head(status))
    attempt.on_end([])
    attempt.on_over(None)
    assert b.host.errors == errors
    assert b.host.latency_s == (0.25 if status < 500 else 5.0)


@pytest.mark.parametrize(
    ("fields", "trailers", "errors"),
    [
        ([], [("grpc-status", "0")], 0),
        ([], [("grpc-status", "14")], 1),
        ([], [("grpc-status", "5")], 0),
        ([("grpc-status", "13")], [], 1),
        ([], [("grpc-status", "99")], 1),
        ([], [("grpc-status", "none")], 1),
        ([], [], 0),
    ],
)
def test_of_grpc_its_own_status_is_counted(fields: Headers, trailers: Headers, errors: int) -> None:
    b = Bench()
    attempt = b.attempt(grpc=True)
    attempt.on_response(head(200, *fields))
    attempt.on_end(trailers)
    attempt.on_over(None)
    assert b.host.errors == errors


@pytest.mark.parametrize(
    ("failure", "errors"),
    [
        *((failure, 1) for failure in (Failure.CONNECT, Failure.REFUSED, Failure.RESET, Failure.PROTOCOL)),
        *((failure, 0) for failure in (Failure.OVERFLOW, None)),
    ],
)
def test_failures_of_the_host_are_counted_and_no_others(failure: Failure | None, errors: int) -> None:
    b = Bench()
    b.attempt().on_over(failure)
    assert b.host.errors == errors


@pytest.mark.parametrize(("late_s", "answered", "errors"), [(0.9, False, 0), (1.0, False, 1), (1.5, True, 0)])
def test_one_given_up_at_its_deadline_without_an_answer_timed_out(
    late_s: float, answered: bool, errors: int
) -> None:
    b = Bench()
    attempt = b.attempt(deadline_s=NOW_S + 1)
    if answered:
        attempt.on_response(head(200))
    b.now_s += late_s
    attempt.on_over(None)
    assert b.host.errors == errors


def test_a_cookie_goes_with_the_response() -> None:
    b = Bench()
    response = head(200, ("x", "y"))
    b.attempt(cookie="user=1").on_response(response)
    assert response.headers == [("x", "y"), ("set-cookie", "user=1")]
