# SPDX-License-Identifier: Apache-2.0
"""Policy is judged on what the store holds now, and closes on what it cannot judge."""

from __future__ import annotations

from ipaddress import ip_address

from mesh.authz.evaluate import Connection
from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import Action, Match, Scope, StringMatch, StringMatchKind
from mesh.state.store import StateUpdate
from mesh.telemetry.reasons import Reason
from tests.support.mesh_builders import policy, store, workload
from ztunnel.resolve.judge import judge

LOCAL = workload("cart", "10.0.0.2")
CALLER = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")


def connection(identity: SpiffeId | None = CALLER, port: int = 8080) -> Connection:
    return Connection(
        source_identity=identity,
        source_ip=ip_address("10.0.0.1"),
        destination_ip=ip_address("10.0.0.2"),
        destination_port=port,
    )


def test_without_policies_everything_is_allowed() -> None:
    verdict = judge(store(LOCAL), LOCAL, connection())
    assert verdict.allowed
    assert verdict.reason is Reason.COMPLETE


def test_a_denial_names_policy_peer_destination_and_port() -> None:
    state = store(LOCAL, policy("no-8080", Action.DENY, Match(destination_ports=(8080,))))
    verdict = judge(state, LOCAL, connection())
    assert (verdict.allowed, verdict.reason, verdict.policy) == (False, Reason.POLICY_DENIED, "shop/no-8080")
    for part in (str(CALLER), "10.0.0.1", "shop/cart:8080", "shop/no-8080"):
        assert part in verdict.detail
    assert judge(state, LOCAL, connection(port=8081)).allowed


def test_strict_denies_nobody_but_those_without_identity() -> None:
    anyone = StringMatch(kind=StringMatchKind.PRESENCE)
    strict = policy(
        "strict", Action.DENY, Match(not_principals=(anyone,)), scope=Scope.GLOBAL, namespace="istio-system"
    )
    state = store(LOCAL, strict)
    assert judge(state, LOCAL, connection()).allowed
    assert not judge(state, LOCAL, connection(None)).allowed


def test_an_unknown_or_malformed_policy_closes() -> None:
    local = workload("cart", "10.0.0.2", authorization_policies=("shop/late",))
    state = store(local)
    verdict = judge(state, local, connection())
    assert (verdict.allowed, verdict.reason) == (False, Reason.POLICY_UNKNOWN)
    assert "shop/late" in verdict.detail
    state.apply(StateUpdate(policies=(policy("late", Action.DENY, Match(destination_ports=(9,))),)))
    assert judge(state, local, connection()).allowed
    state.apply(StateUpdate(broken_policies={"shop/other": "an address of 3 bytes"}))
    verdict = judge(state, local, connection())
    assert verdict.reason is Reason.POLICY_UNKNOWN
    assert "an address of 3 bytes" in verdict.detail


def test_dry_run_policies_are_told_and_deny_nothing() -> None:
    state = store(LOCAL, policy("try", Action.DENY, dry_run=True))
    verdict = judge(state, LOCAL, connection())
    assert verdict.allowed
    assert any("shop/try" in note for note in verdict.dry_run)
