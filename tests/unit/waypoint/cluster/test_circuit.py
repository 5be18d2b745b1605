# SPDX-License-Identifier: Apache-2.0
"""Circuit breaking: full exactly at the bound, and words that name who set it."""

from __future__ import annotations

import pytest

from mesh.model.destination import ConnectionPool
from waypoint.cluster.circuit import Bound, Circuit

POOL = ConnectionPool(max_connections=2, max_pending_requests=2, max_requests=2, max_retries=2)


@pytest.mark.parametrize("name", ["connections", "pending", "requests", "retries"])
def test_a_bound_is_reached_at_its_number(name: str) -> None:
    circuit, unbounded = Circuit("web", POOL), Circuit("web")
    for used, full in ((0, False), (1, False), (2, True), (3, True)):
        setattr(circuit, name, used)
        setattr(unbounded, name, used)
        assert getattr(circuit, f"{name}_full") is full
        assert not getattr(unbounded, f"{name}_full")


def test_a_refusal_names_the_cluster_the_number_and_the_object() -> None:
    circuit = Circuit("shop/web:80", POOL, "DestinationRule/shop/web")
    circuit.requests = 2
    words = circuit.overflow(Bound.REQUESTS)
    assert words == "shop/web:80: 2 of 2 requests under way (http2MaxRequests of DestinationRule/shop/web)"
    assert circuit.overflow(Bound.BUDGET) == "shop/web:80: the retry budget is spent"
    assert circuit.overflows == {Bound.REQUESTS: 1, Bound.BUDGET: 1}
