# SPDX-License-Identifier: Apache-2.0
"""L4 authorisation: a table of the documented semantics, and a naive oracle for the rest."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.authz.evaluate import Connection, MalformedPolicyError, Verdict, evaluate, matching_rule
from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)

WEB = SpiffeId("cluster.local", "shop", "web")
CONNECTION = Connection(
    source_identity=WEB,
    source_ip=IPv4Address("10.1.0.7"),
    destination_ip=IPv4Address("10.2.0.9"),
    destination_port=8080,
)
PLAINTEXT = replace(CONNECTION, source_identity=None)


def exact(value: str) -> StringMatch:
    return StringMatch(kind=StringMatchKind.EXACT, value=value)


def prefix(value: str) -> StringMatch:
    return StringMatch(kind=StringMatchKind.PREFIX, value=value)


def suffix(value: str) -> StringMatch:
    return StringMatch(kind=StringMatchKind.SUFFIX, value=value)


PRESENCE = StringMatch(kind=StringMatchKind.PRESENCE)


def policy(action: Action, *rules: Any, name: str = "p", **fields: Any) -> Authorization:
    fields = {"namespace": "shop", "scope": Scope.NAMESPACE, **fields}
    return Authorization(name=name, action=action, rules=rules, **fields)


def allow(*rules: Any, **fields: Any) -> Authorization:
    return policy(Action.ALLOW, *rules, **fields)


def deny(*rules: Any, **fields: Any) -> Authorization:
    return policy(Action.DENY, *rules, **fields)


def rule(**attributes: Any) -> Any:
    """One rule of one clause of one match."""
    return ((Match(**attributes),),)


EVERYTHING: Any = ()
NEVER: Any = rule()


def judge(*policies: Authorization, connection: Connection = CONNECTION) -> Verdict:
    return evaluate(policies, connection)


# --- actions and their order


@pytest.mark.parametrize(
    ("policies", "allowed", "decided_by"),
    [
        ([], True, None),
        ([deny(NEVER)], True, None),
        ([deny(EVERYTHING)], False, "shop/p"),
        ([deny()], True, None),
        ([allow(EVERYTHING)], True, "shop/p"),
        ([allow(NEVER)], False, "shop/p"),
        ([allow()], False, "shop/p"),
        ([allow(name="a"), allow(EVERYTHING, name="b")], True, "shop/b"),
        ([allow(EVERYTHING, name="a"), deny(EVERYTHING, name="z")], False, "shop/z"),
        ([deny(NEVER, name="d"), allow(NEVER, name="a")], False, "shop/a"),
        ([deny(NEVER, name="d"), allow(EVERYTHING, name="a")], True, "shop/a"),
    ],
)
def test_deny_comes_first_then_allow_is_needed_where_one_exists(
    policies: list[Authorization], allowed: bool, decided_by: str | None
) -> None:
    for order in (policies, policies[::-1]):
        verdict = judge(*order)
        assert (verdict.allowed, verdict.policy) == (allowed, decided_by)


def test_the_reason_names_policy_and_rule() -> None:
    assert judge(deny(NEVER, EVERYTHING)).reason == "DENY policy shop/p matches (rule 1)"
    assert judge(allow(EVERYTHING)).reason == "ALLOW policy shop/p matches (rule 0)"
    assert judge().reason == "no ALLOW policy applies and no DENY policy matches"
    assert judge(allow(NEVER)).reason == (
        "no ALLOW policy matches spiffe://cluster.local/ns/shop/sa/web from 10.1.0.7 to port 8080; "
        "ALLOW policies in force: shop/p"
    )
    assert "a peer without identity" in judge(allow(), connection=PLAINTEXT).reason
    five = [allow(name=f"p{index}") for index in range(5)]
    assert judge(*five).reason.endswith("shop/p3, shop/p4")
    many = [*five, allow(name="p5")]
    assert judge(*many).reason.endswith("shop/p0, shop/p1, shop/p2, shop/p3, shop/p4, ...")


def test_the_policy_named_is_the_widest_then_the_first_by_name() -> None:
    wide = deny(EVERYTHING, name="z", namespace="istio-system", scope=Scope.GLOBAL)
    middle = deny(EVERYTHING, name="y")
    narrow = deny(EVERYTHING, name="a", scope=Scope.WORKLOAD_SELECTOR)
    assert judge(narrow, middle, wide).policy == "istio-system/z"
    assert judge(narrow, middle).policy == "shop/y"
    assert judge(deny(EVERYTHING, name="b"), deny(EVERYTHING, name="a")).policy == "shop/a"


# --- rules, clauses, matches


def test_rules_are_alternatives() -> None:
    assert not judge(deny(NEVER, rule(destination_ports=(8080,)))).allowed


def test_clauses_of_a_rule_must_all_hold() -> None:
    here, elsewhere = Match(destination_ports=(8080,)), Match(destination_ports=(1,))
    assert not judge(deny(((here,), (here,)))).allowed
    assert judge(deny(((here,), (elsewhere,)))).allowed


def test_matches_of_a_clause_are_alternatives() -> None:
    here, elsewhere = Match(destination_ports=(8080,)), Match(destination_ports=(1,))
    assert not judge(deny(((elsewhere, here),))).allowed
    assert judge(deny(((elsewhere, elsewhere),))).allowed


def test_attributes_of_a_match_must_all_hold() -> None:
    assert not judge(deny(rule(destination_ports=(8080,), namespaces=(exact("shop"),)))).allowed
    assert judge(deny(rule(destination_ports=(8080,), namespaces=(exact("bank"),)))).allowed


def test_an_empty_rule_or_clause_restricts_nothing_and_an_empty_match_never_holds() -> None:
    """As in Istio's ztunnel: rbac.rs at 00c8b17, Authorization::matches."""
    assert not judge(deny(EVERYTHING), connection=PLAINTEXT).allowed
    assert judge(deny(NEVER)).allowed
    assert not judge(deny(((),))).allowed
    assert not judge(deny(((), (Match(destination_ports=(8080,)),)))).allowed
    assert judge(deny(((), (Match(destination_ports=(1,)),)))).allowed
    assert judge(deny(((Match(),), (Match(destination_ports=(8080,)),)))).allowed


# --- attributes


@pytest.mark.parametrize(
    ("attributes", "holds"),
    [
        ({"namespaces": (exact("shop"),)}, True),
        ({"namespaces": (exact("sho"),)}, False),
        ({"namespaces": (exact("Shop"),)}, False),
        ({"namespaces": (prefix("sh"),)}, True),
        ({"namespaces": (suffix("op"),)}, True),
        ({"namespaces": (suffix("sh"),)}, False),
        ({"namespaces": (PRESENCE,)}, True),
        ({"namespaces": (exact("bank"), exact("shop"))}, True),
        ({"not_namespaces": (exact("shop"),)}, False),
        ({"not_namespaces": (exact("bank"),)}, True),
        ({"not_namespaces": (exact("bank"), exact("shop"))}, False),
        ({"principals": (exact("cluster.local/ns/shop/sa/web"),)}, True),
        ({"principals": (exact("spiffe://cluster.local/ns/shop/sa/web"),)}, False),
        ({"principals": (prefix("cluster.local/"),)}, True),
        ({"principals": (suffix("/sa/web"),)}, True),
        ({"principals": (suffix("/sa/we"),)}, False),
        ({"principals": (PRESENCE,)}, True),
        ({"not_principals": (PRESENCE,)}, False),
        ({"not_principals": (exact("cluster.local/ns/shop/sa/web2"),)}, True),
        ({"service_accounts": (ServiceAccountMatch(namespace="shop", service_account="web"),)}, True),
        ({"service_accounts": (ServiceAccountMatch(namespace="bank", service_account="web"),)}, False),
        (
            {
                "service_accounts": (
                    ServiceAccountMatch(namespace="bank", service_account="web"),
                    ServiceAccountMatch(namespace="shop", service_account="web"),
                )
            },
            True,
        ),
        ({"service_accounts": (ServiceAccountMatch(namespace="shop", service_account="we"),)}, False),
        ({"not_service_accounts": (ServiceAccountMatch(namespace="shop", service_account="web"),)}, False),
        ({"not_service_accounts": (ServiceAccountMatch(namespace="bank", service_account="web"),)}, True),
        ({"source_ips": (ip_network("10.1.0.0/24"),)}, True),
        ({"source_ips": (ip_network("10.1.1.0/24"),)}, False),
        ({"source_ips": (ip_network("10.1.0.7/32"),)}, True),
        ({"source_ips": (ip_network("0.0.0.0/0"),)}, True),
        ({"source_ips": (ip_network("::/0"),)}, False),
        ({"not_source_ips": (ip_network("10.1.0.0/24"),)}, False),
        ({"not_source_ips": (ip_network("::/0"),)}, True),
        ({"destination_ips": (ip_network("10.2.0.9"), ip_network("10.9.0.0/16"))}, True),
        ({"destination_ips": (ip_network("10.1.0.7"),)}, False),
        ({"not_destination_ips": (ip_network("10.2.0.9"),)}, False),
        ({"destination_ports": (80, 8080)}, True),
        ({"destination_ports": (80,)}, False),
        ({"not_destination_ports": (8080,)}, False),
        ({"not_destination_ports": (80,)}, True),
        ({"namespaces": (exact("shop"),), "not_namespaces": (exact("shop"),)}, False),
    ],
)
def test_an_attribute_of_an_identified_peer(attributes: dict[str, Any], holds: bool) -> None:
    assert judge(deny(rule(**attributes))).allowed is not holds


@pytest.mark.parametrize("value", [exact(""), prefix(""), suffix(""), PRESENCE, exact("shop")])
@pytest.mark.parametrize("attribute", ["namespaces", "principals"])
def test_a_peer_without_identity_matches_no_name_and_every_negation(
    attribute: str, value: StringMatch
) -> None:
    assert judge(deny(rule(**{attribute: (value,)})), connection=PLAINTEXT).allowed
    assert not judge(deny(rule(**{f"not_{attribute}": (value,)})), connection=PLAINTEXT).allowed


def test_a_peer_without_identity_has_no_service_account() -> None:
    account = (ServiceAccountMatch(namespace="shop", service_account="web"),)
    assert judge(deny(rule(service_accounts=account)), connection=PLAINTEXT).allowed
    assert not judge(deny(rule(not_service_accounts=account)), connection=PLAINTEXT).allowed


def test_strict_refuses_plaintext_only() -> None:
    strict = deny(rule(not_principals=(PRESENCE,)), name="istio_converted_static_strict")
    assert judge(strict).allowed
    assert not judge(strict, connection=PLAINTEXT).allowed


def test_a_v4_mapped_peer_is_the_v4_peer() -> None:
    mapped = replace(CONNECTION, source_ip=IPv6Address("::ffff:10.1.0.7"))
    by_ip = deny(rule(source_ips=(ip_network("10.1.0.0/24"),)))
    assert not judge(by_ip, connection=mapped).allowed


def test_ipv6_ranges() -> None:
    connection = replace(CONNECTION, source_ip=ip_address("fd00:1::7"))
    assert not judge(deny(rule(source_ips=(ip_network("fd00:1::/64"),))), connection=connection).allowed
    assert judge(deny(rule(source_ips=(ip_network("0.0.0.0/0"),))), connection=connection).allowed


# --- what cannot be judged


ODD_KIND = StringMatch(kind=cast("StringMatchKind", "regex"), value="x")


@pytest.mark.parametrize(
    "broken",
    [
        deny(rule(namespaces=(ODD_KIND,))),
        allow(rule(namespaces=(ODD_KIND,))),
        deny(rule(not_principals=(exact("x"), ODD_KIND))),
        deny(rule(destination_ports=(8080, 65_536))),
        allow(rule(not_destination_ports=(-1,))),
        allow(EVERYTHING, rule(principals=(ODD_KIND,))),
        deny(((Match(destination_ports=(1,)),), (Match(namespaces=(ODD_KIND,)),))),
        deny(((Match(destination_ports=(8080,)), Match(namespaces=(ODD_KIND,))),)),
        policy(cast("Action", "audit"), EVERYTHING),
    ],
)
def test_what_is_not_understood_denies_by_name(broken: Authorization) -> None:
    for connection in (CONNECTION, PLAINTEXT):
        verdict = judge(broken, allow(EVERYTHING, name="a"), connection=connection)
        assert not verdict.allowed
        assert verdict.policy == "shop/p"
        assert verdict.reason.startswith("policy shop/p cannot be judged, so it denies: ")
        with pytest.raises(MalformedPolicyError):
            matching_rule(broken, connection)


def test_ports_at_the_limits_are_ports() -> None:
    assert judge(deny(rule(destination_ports=(0, 65_535)))).allowed


# --- dry run


@pytest.mark.parametrize(
    ("policies", "allowed", "said"),
    [
        ([deny(EVERYTHING, dry_run=True)], True, ["dry-run DENY policy shop/p matches (rule 0)"]),
        ([deny(NEVER, dry_run=True)], True, []),
        ([allow(EVERYTHING, dry_run=True)], True, ["dry-run ALLOW policy shop/p matches (rule 0)"]),
        ([allow(dry_run=True)], True, ["dry-run ALLOW policy shop/p does not match and would deny"]),
        ([allow(dry_run=True), allow(EVERYTHING, name="real")], True, []),
        (
            [allow(dry_run=True), allow(EVERYTHING, dry_run=True, name="q")],
            True,
            ["dry-run ALLOW policy shop/q matches (rule 0)"],
        ),
        (
            [deny(EVERYTHING, name="real"), deny(EVERYTHING, dry_run=True)],
            False,
            ["dry-run DENY policy shop/p matches (rule 0)"],
        ),
        (
            [deny(rule(namespaces=(ODD_KIND,)), dry_run=True)],
            True,
            ["dry-run policy shop/p cannot be judged and would deny: comparison 'regex' is not known"],
        ),
    ],
)
def test_dry_run_is_said_and_never_enforced(
    policies: list[Authorization], allowed: bool, said: list[str]
) -> None:
    verdict = judge(*policies)
    assert verdict.allowed is allowed
    assert list(verdict.dry_run) == said


# --- against an oracle that shares no code with the evaluator

NAMES = st.sampled_from(["", "shop", "sho", "bank", "web", "cluster.local/ns/shop/sa/web", "/sa/web"])
STRINGS = st.lists(
    st.builds(StringMatch, kind=st.sampled_from(StringMatchKind), value=NAMES), max_size=2
).map(tuple)
ACCOUNTS = st.lists(
    st.builds(
        ServiceAccountMatch,
        namespace=st.sampled_from(["shop", "bank"]),
        service_account=st.sampled_from(["web", "cart"]),
    ),
    max_size=2,
).map(tuple)
NETWORKS = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.1.0.0/24", "10.1.0.7/32", "0.0.0.0/0", "fd00::/16", "::/0"]).map(
        ip_network
    ),
    max_size=2,
).map(tuple)
PORTS = st.lists(st.sampled_from([0, 80, 8080, 65_535]), max_size=2).map(tuple)
MATCHES = st.builds(
    Match,
    namespaces=STRINGS,
    not_namespaces=STRINGS,
    principals=STRINGS,
    not_principals=STRINGS,
    service_accounts=ACCOUNTS,
    not_service_accounts=ACCOUNTS,
    source_ips=NETWORKS,
    not_source_ips=NETWORKS,
    destination_ips=NETWORKS,
    not_destination_ips=NETWORKS,
    destination_ports=PORTS,
    not_destination_ports=PORTS,
)
# One attribute alone holds often; all of them almost never.
ATTRIBUTES = {
    "namespaces": STRINGS,
    "not_namespaces": STRINGS,
    "principals": STRINGS,
    "not_principals": STRINGS,
    "service_accounts": ACCOUNTS,
    "source_ips": NETWORKS,
    "not_source_ips": NETWORKS,
    "destination_ports": PORTS,
    "not_destination_ports": PORTS,
}
NARROW = st.sampled_from(sorted(ATTRIBUTES)).flatmap(
    lambda name: ATTRIBUTES[name].map(lambda values: Match(**cast("Any", {name: values})))
)
CLAUSES = st.lists(NARROW | MATCHES, max_size=2).map(tuple)
RULES = st.lists(st.lists(CLAUSES, max_size=2).map(tuple), max_size=2).map(tuple)
POLICIES = st.lists(
    st.builds(
        Authorization,
        name=st.sampled_from("abcdef"),
        namespace=st.just("shop"),
        scope=st.sampled_from(Scope),
        action=st.sampled_from(Action),
        rules=RULES,
        dry_run=st.booleans(),
    ),
    max_size=4,
)
CONNECTIONS = st.builds(
    Connection,
    source_identity=st.none()
    | st.builds(
        SpiffeId,
        st.just("cluster.local"),
        st.sampled_from(["shop", "bank"]),
        st.sampled_from(["web", "cart"]),
    ),
    source_ip=st.sampled_from(["10.1.0.7", "10.2.0.1", "192.0.2.1", "fd00::7", "::ffff:10.1.0.7"]).map(
        ip_address
    ),
    destination_ip=st.sampled_from(["10.1.0.7", "fd01::1"]).map(ip_address),
    destination_port=st.sampled_from([80, 8080, 65_535]),
)


def facts_of(connection: Connection) -> dict[str, Any]:
    who = connection.source_identity
    text = str(who).replace("spiffe://", "", 1) if who else ""
    return {
        "namespaces": text.split("/")[2] if text else "",
        "principals": text,
        "service_accounts": (text.split("/")[2], text.split("/")[4]) if text else None,
        "source_ips": connection.source_ip,
        "destination_ips": connection.destination_ip,
        "destination_ports": connection.destination_port,
    }


def one_holds(attribute: str, fact: Any, wanted: Any) -> bool:
    if attribute in ("namespaces", "principals"):
        if not fact:
            return False
        value = wanted.value
        return {
            "exact": fact == value,
            "prefix": fact[: len(value)] == value,
            "suffix": value == "" or fact[-len(value) :] == value,
            "presence": True,
        }[wanted.kind.value]
    if attribute == "service_accounts":
        return bool(fact == (wanted.namespace, wanted.service_account))
    if attribute == "destination_ports":
        return bool(fact == wanted)
    raw = int(fact)
    version = fact.version
    if version == 6 and raw >> 32 == 0xFFFF:
        version, raw = 4, raw & 0xFFFFFFFF
    low, high = int(wanted.network_address), int(wanted.broadcast_address)
    return bool(version == wanted.version and low <= raw <= high)


def match_holds(match: Match, facts: dict[str, Any]) -> bool:
    given_any = False
    for attribute, fact in facts.items():
        positive, negative = getattr(match, attribute), getattr(match, f"not_{attribute}")
        given_any = given_any or bool(positive) or bool(negative)
        if positive and not any(one_holds(attribute, fact, wanted) for wanted in positive):
            return False
        if negative and any(one_holds(attribute, fact, wanted) for wanted in negative):
            return False
    return given_any


def oracle(policies: list[Authorization], connection: Connection) -> bool:
    facts = facts_of(connection)

    def hit(candidate: Authorization) -> bool:
        for a_rule in candidate.rules:
            good = True
            for clause in a_rule:
                good = good and (clause == () or any(match_holds(match, facts) for match in clause))
            if good:
                return True
        return False

    real = [candidate for candidate in policies if not candidate.dry_run]
    if any(hit(candidate) for candidate in real if candidate.action is Action.DENY):
        return False
    allows = [candidate for candidate in real if candidate.action is Action.ALLOW]
    return not allows or any(hit(candidate) for candidate in allows)


@given(POLICIES, CONNECTIONS)
def test_the_evaluator_agrees_with_the_oracle(policies: list[Authorization], connection: Connection) -> None:
    assert evaluate(policies, connection).allowed is oracle(policies, connection)


@given(POLICIES, CONNECTIONS, st.randoms(use_true_random=False))
def test_order_never_changes_a_verdict(
    policies: list[Authorization], connection: Connection, random: Any
) -> None:
    unique = list({candidate.name: candidate for candidate in policies}.values())
    shuffled = unique.copy()
    random.shuffle(shuffled)
    assert evaluate(unique, connection) == evaluate(shuffled, connection)


@given(POLICIES, CONNECTIONS)
def test_another_deny_never_opens(policies: list[Authorization], connection: Connection) -> None:
    before = evaluate(policies, connection)
    after = evaluate([*policies, deny(EVERYTHING, name="zz")], connection)
    assert not after.allowed
    without = evaluate([p for p in policies if p.action is Action.ALLOW], connection)
    assert without.allowed or not before.allowed
