# SPDX-License-Identifier: Apache-2.0
"""Explanations: every outcome that real draws give, why an endpoint is not chosen, the same verdicts."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import Action, Scope
from mesh.model.service import LoadBalancing, LoadBalancingMode, LoadBalancingScope, WeightedWaypoint
from mesh.model.workload import GatewayAddress
from mesh.telemetry.reasons import Reason
from tests.support.mesh_builders import key, member, policy, service, store, workload
from ztunnel.resolve.decide import Kind, Reject, decide_outbound
from ztunnel.resolve.explain import explain_inbound, explain_outbound

SOURCE = workload("web", "10.0.0.1")
VIP = ip_address("10.96.0.1")


def endpoint(name: str, number: int, **values: object):
    return workload(name, f"10.0.1.{number}", services=member("cart"), **values)


def test_shares_are_those_of_the_weights() -> None:
    state = store(SOURCE, service("cart", "10.96.0.1"), endpoint("a", 1, capacity=3), endpoint("b", 2))
    view = explain_outbound(state, SOURCE, VIP, 80)
    shares = {o.result.workload.name: round(o.share, 2) for o in view.outcomes}
    assert shares == {"a": 0.75, "b": 0.25}
    assert [o.share for o in view.outcomes] == sorted((o.share for o in view.outcomes), reverse=True)


def test_endpoints_that_are_not_chosen_say_why() -> None:
    near = LoadBalancing(preference=(LoadBalancingScope.NODE,), mode=LoadBalancingMode.FAILOVER)
    state = store(
        SOURCE,
        service("cart", "10.96.0.1", load_balancing=near),
        endpoint("here", 1),
        endpoint("sick", 2, healthy=False),
        endpoint("far", 3, node="n2"),
        endpoint("idle", 4, capacity=0),
    )
    view = explain_outbound(state, SOURCE, VIP, 80)
    assert {e.workload.name: e.why_not for e in view.endpoints} == {
        "here": "",
        "sick": "it is not ready",
        "far": "others are nearer",
        "idle": "its weight is 0",
    }
    assert [o.result.workload.name for o in view.outcomes] == ["here"]


def test_a_port_that_the_service_lacks() -> None:
    state = store(SOURCE, service("cart", "10.96.0.1"), endpoint("a", 1))
    view = explain_outbound(state, SOURCE, VIP, 81)
    assert [e.why_not for e in view.endpoints] == ["it has no port for 81"]
    (outcome,) = view.outcomes
    assert isinstance(outcome.result, Reject)
    assert outcome.result.reason is Reason.NO_HEALTHY_UPSTREAM


def test_two_draws_of_one_decision_are_covered() -> None:
    def gateway(name: str) -> GatewayAddress:
        return GatewayAddress(destination=key(name), hbone_mtls_port=15008)

    both = tuple(WeightedWaypoint(destination=gateway(name), weight=1) for name in ("wp1", "wp2"))
    instances = [
        workload(f"{gate}-{n}", f"10.0.{gate[-1]}.{n}", services=member(gate, ports={}))
        for gate in ("wp1", "wp2")
        for n in (1, 2, 3)
    ]
    state = store(
        SOURCE,
        service("cart", "10.96.0.1", weighted_waypoints=both),
        service("wp1", "10.96.0.2"),
        service("wp2", "10.96.0.3"),
        *instances,
    )
    view = explain_outbound(state, SOURCE, VIP, 80)
    assert {o.result.workload.name for o in view.outcomes} == {w.name for w in instances}
    assert all(o.result.kind is Kind.WAYPOINT for o in view.outcomes)
    assert all(abs(o.share - 1 / 6) < 0.05 for o in view.outcomes)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8), st.randoms(use_true_random=False))
def test_whatever_happens_is_among_the_outcomes(
    members: list[tuple[int, bool]], draws: random.Random
) -> None:
    pods = [endpoint(f"e{i}", i + 1, capacity=c, healthy=h) for i, (c, h) in enumerate(members)]
    state = store(SOURCE, service("cart", "10.96.0.1"), *pods)
    view = explain_outbound(state, SOURCE, VIP, 80)
    assert sum(o.share for o in view.outcomes) == pytest.approx(1)
    told = [o.result for o in view.outcomes]
    for _ in range(20):
        assert decide_outbound(state, SOURCE, VIP, 80, draws.random) in told


def inbound(state, local, *, authority="", identity=None, port=8080):
    return explain_inbound(
        state,
        local,
        dialled=local.addresses[0],
        port=port,
        authority=authority,
        identity=identity,
        source_ip=ip_address("10.0.0.1"),
    )


def test_inbound_names_the_policies_in_force_and_the_one_that_decides() -> None:
    local = workload("cart", "10.0.1.1", authorization_policies=("shop/deny",))
    state = store(local, policy("deny", Action.DENY, scope=Scope.WORKLOAD_SELECTOR))
    view = inbound(state, local, authority="10.0.1.1:8080", identity=SpiffeId("cluster.local", "shop", "web"))
    assert (view.allowed, view.policy, view.policies) == (False, "shop/deny", ("shop/deny",))
    assert view.reason is Reason.POLICY_DENIED
    assert (str(view.address), view.port) == ("10.0.1.1", 8080)


def test_inbound_refuses_what_the_proxy_refuses() -> None:
    local = workload("cart", "10.0.1.1")
    state = store(local)
    assert inbound(state, local, authority="10.9.9.9:80").reason is Reason.BAD_AUTHORITY
    assert inbound(state, local, port=15006).reason is Reason.ILLEGAL_PORT
    assert inbound(state, local).allowed
