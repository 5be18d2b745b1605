# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicy to L4: scopes, the algebra of rules, and failing closed."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import make_object
from mesh.model.address import parse_network
from mesh.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)


def exact(value: str) -> StringMatch:
    return StringMatch(kind=StringMatchKind.EXACT, value=value)


def pod(name: str, namespace: str = "shop", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "status": {"podIP": "10.0.0.1"},
    }


def mesh_of(spec: Any, *more: dict[str, Any], namespace: str = "shop", dry_run: str = "") -> Mesh:
    metadata: dict[str, Any] = {"name": "p", "namespace": namespace}
    if dry_run:
        metadata["annotations"] = {"istio.io/dry-run": dry_run}
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata,
        "spec": spec,
    }
    objects = [make_object(data) for data in (policy, *more)]
    return translate({obj.key: obj for obj in objects}, Options())


def policy_of(spec: Any, **options: Any) -> Authorization:
    (found,) = mesh_of(spec, **options).policies.values()
    return found


@pytest.mark.parametrize(
    ("namespace", "selector", "scope"),
    [
        ("istio-system", {}, Scope.GLOBAL),
        ("shop", {}, Scope.NAMESPACE),
        ("shop", {"matchLabels": {"app": "a"}}, Scope.WORKLOAD_SELECTOR),
        ("istio-system", {"matchLabels": {"app": "a"}}, Scope.WORKLOAD_SELECTOR),
    ],
)
def test_scope(namespace: str, selector: Any, scope: Scope) -> None:
    assert policy_of({"selector": selector}, namespace=namespace).scope is scope


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        ("shop", {"a": ("shop/p",), "b": (), "c": ()}),
        ("istio-system", {"a": ("istio-system/p",), "b": (), "c": ("istio-system/p",)}),
    ],
)
def test_selected_workloads_list_the_policy(namespace: str, expected: Any) -> None:
    pods = (pod("a", app="x"), pod("b", app="y"), pod("c", "other", app="x"))
    found = mesh_of({"selector": {"matchLabels": {"app": "x"}}}, *pods, namespace=namespace)
    assert {w.name: w.authorization_policies for w in found.workloads.values()} == expected


@pytest.mark.parametrize("spec", [{}, {"action": "ALLOW"}, {"rules": []}])
def test_policy_without_rules_allows_nothing(spec: Any) -> None:
    found = policy_of(spec)
    assert (found.action, found.rules) == (Action.ALLOW, ())


def test_empty_rule_matches_everything() -> None:
    assert policy_of({"action": "DENY", "rules": [{}]}).rules == ((),)


@pytest.mark.parametrize(("text", "dry"), [("true", True), ("false", False), ("", False)])
def test_dry_run(text: str, dry: bool) -> None:
    assert policy_of({}, dry_run=text).dry_run is dry


def test_rule_is_a_conjunction_of_disjunctions() -> None:
    rule = {
        "from": [
            {"source": {"namespaces": ["a"], "ipBlocks": ["10.0.0.0/8"]}},
            {"source": {"principals": ["*"]}},
        ],
        "to": [{"operation": {"ports": ["80", "81"], "notPorts": ["82"]}}],
        "when": [{"key": "source.serviceAccount", "values": ["web", "o/db"], "notValues": ["x"]}],
    }
    found = policy_of({"rules": [rule, {"to": [{"operation": {"ports": ["9"]}}]}]})
    assert found.rules == (
        (
            (
                Match(namespaces=(exact("a"),), source_ips=(parse_network("10.0.0.0/8"),)),
                Match(principals=(StringMatch(kind=StringMatchKind.PRESENCE),)),
            ),
            (Match(destination_ports=(80, 81), not_destination_ports=(82,)),),
            (
                Match(
                    service_accounts=(
                        ServiceAccountMatch(namespace="shop", service_account="web"),
                        ServiceAccountMatch(namespace="o", service_account="db"),
                    ),
                    not_service_accounts=(ServiceAccountMatch(namespace="shop", service_account="x"),),
                ),
            ),
        ),
        ((Match(destination_ports=(9,)),),),
    )


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("abc", StringMatchKind.EXACT, "abc"),
        ("abc*", StringMatchKind.PREFIX, "abc"),
        ("*abc", StringMatchKind.SUFFIX, "abc"),
        ("*", StringMatchKind.PRESENCE, ""),
    ],
)
def test_string_match(text: str, kind: StringMatchKind, value: str) -> None:
    found = policy_of({"rules": [{"from": [{"source": {"notNamespaces": [text]}}]}]})
    assert found.rules == (((Match(not_namespaces=(StringMatch(kind=kind, value=value),)),),),)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("source.ip", "10.1.2.3", Match(source_ips=(parse_network("10.1.2.3/32"),))),
        ("source.namespace", "a", Match(namespaces=(exact("a"),))),
        ("source.principal", "td/ns/a/sa/b", Match(principals=(exact("td/ns/a/sa/b"),))),
        ("destination.ip", "fd00::/8", Match(destination_ips=(parse_network("fd00::/8"),))),
        ("destination.port", "80", Match(destination_ports=(80,))),
    ],
)
def test_condition(key: str, value: str, match: Match) -> None:
    found = mesh_of({"rules": [{"when": [{"key": key, "values": [value]}]}]})
    assert found.policies["shop/p"].rules == (((match,),),)
    assert not found.problems


L7 = [
    {"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]},
    {"to": [{"operation": {"paths": ["/a"]}}], "from": [{"source": {"namespaces": ["a"]}}]},
    {"from": [{"source": {"requestPrincipals": ["*"]}}]},
    {"when": [{"key": "request.headers[x]", "values": ["1"]}]},
]


@pytest.mark.parametrize("rule", L7)
def test_allow_with_l7_is_omitted(rule: Any) -> None:
    found = mesh_of({"rules": [rule]})
    assert found.policies["shop/p"].rules == ()
    assert [p.severity for p in found.problems] == ["warning"]


@pytest.mark.parametrize(
    ("rule", "expected", "severity"),
    [
        (L7[0], ((Match(destination_ports=(80,)),),), "warning"),
        (L7[1], ((Match(namespaces=(exact("a"),)),), (Match(),)), "error"),
        (L7[2], ((Match(),),), "error"),
        (L7[3], ((Match(),),), "error"),
    ],
)
def test_deny_with_l7_is_stripped_and_never_opens_a_clause(rule: Any, expected: Any, severity: str) -> None:
    found = mesh_of({"action": "DENY", "rules": [rule]})
    assert sorted(found.policies["shop/p"].rules[0], key=str) == sorted(expected, key=str)
    assert all(clause for clause in found.policies["shop/p"].rules[0])
    assert [p.severity for p in found.problems] == [severity]


@pytest.mark.parametrize(
    ("spec", "severity"),
    [
        ({"action": "CUSTOM", "provider": {"name": "x"}}, "error"),
        ({"action": "AUDIT"}, "warning"),
        ({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"}]}, "error"),
    ],
)
def test_policy_that_ztunnel_does_not_enforce(spec: Any, severity: str) -> None:
    found = mesh_of(spec)
    assert not found.policies
    assert [p.severity for p in found.problems] == [severity]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"action": "Deny"}, ("spec", "action")),
        ({"action": 1}, ("spec", "action")),
        ({"rule": []}, ("spec", "rule")),
        ({"rules": {}}, ("spec", "rules")),
        ({"rules": [None]}, ("spec", "rules", 0)),
        ({"rules": [{"form": []}]}, ("spec", "rules", 0, "form")),
        ({"rules": [{"from": []}]}, ("spec", "rules", 0, "from")),
        ({"rules": [{"from": [{}]}]}, ("spec", "rules", 0, "from", 0, "source")),
        (
            {"rules": [{"from": [{"source": {"principal": ["a"]}}]}]},
            ("spec", "rules", 0, "from", 0, "source", "principal"),
        ),
        (
            {"rules": [{"from": [{"source": {"principals": ["spiffe://a"]}}]}]},
            ("spec", "rules", 0, "from", 0, "source", "principals"),
        ),
        (
            {"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]},
            ("spec", "rules", 0, "from", 0, "source", "ipBlocks", 0),
        ),
        (
            {"rules": [{"to": [{"operation": {"ports": ["0"]}}]}]},
            ("spec", "rules", 0, "to", 0, "operation", "ports"),
        ),
        (
            {"rules": [{"to": [{"operation": {"ports": ["65536"]}}]}]},
            ("spec", "rules", 0, "to", 0, "operation", "ports"),
        ),
        (
            {"rules": [{"to": [{"operation": {"ports": [80]}}]}]},
            ("spec", "rules", 0, "to", 0, "operation", "ports", 0),
        ),
        (
            {"rules": [{"when": [{"key": "source.ipp", "values": ["a"]}]}]},
            ("spec", "rules", 0, "when", 0, "key"),
        ),
        ({"rules": [{"when": [{"key": "source.ip"}]}]}, ("spec", "rules", 0, "when", 0)),
        ({"selector": {}, "targetRefs": []}, ("spec", "selector")),
    ],
)
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_unclear_policy_allows_nothing_in_its_scope(spec: Any, path: Any, action: str) -> None:
    found = mesh_of({"action": action, **spec})
    assert [(p.path, p.severity) for p in found.problems] == [(path, "error")]
    policy = found.policies["shop/p"]
    assert (policy.scope, policy.action, policy.rules) == (Scope.NAMESPACE, Action.ALLOW, ())


def test_unclear_policy_keeps_its_selector() -> None:
    spec = {"selector": {"matchLabels": {"app": "x"}}, "rules": 3}
    found = mesh_of(spec, pod("a", app="x"), pod("b", app="y"))
    assert found.policies["shop/p"].scope is Scope.WORKLOAD_SELECTOR
    assert [w.authorization_policies for w in found.workloads.values()] == [("shop/p",), ()]


def test_highest_port_is_one() -> None:
    found = policy_of({"rules": [{"to": [{"operation": {"ports": ["65535"]}}]}]})
    assert found.rules == (((Match(destination_ports=(65535,)),),),)
