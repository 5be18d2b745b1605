# SPDX-License-Identifier: Apache-2.0
"""Requests judged by L7 policies: every attribute, its negation, and what is not known."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from mesh.authz.http import Asked, HttpPolicies, parse_text
from mesh.identity.spiffe import SpiffeId
from mesh.model.http_policy import (
    Condition,
    HttpAction,
    HttpAuthorization,
    HttpRule,
    Operation,
    Source,
    TextKind,
    TextMatch,
)

WEB = SpiffeId("cluster.local", "shop", "web")
ASKED = Asked(
    identity=WEB,
    source_ip=ipaddress.ip_address("10.1.0.5"),
    remote_ip=ipaddress.ip_address("192.0.2.7"),
    destination_ip=ipaddress.ip_address("10.96.0.10"),
    port=80,
    method="GET",
    host="Product:80",
    path="/api/v1/items",
    headers={"x-user": "ann", "x-multi": "a,b"},
    claims={
        "iss": "https://i.example",
        "sub": "ann",
        "aud": ["shop", "x"],
        "scope": "read write",
        "g": {"r": "admin"},
    },
    sni="product.example",
)
NOBODY = replace(ASKED, identity=None, claims={}, headers={})
TCP = replace(ASKED, method="", host="", path="", headers={}, claims={})


def policy(action: HttpAction, *rules: HttpRule, name: str = "p", **changes: object) -> HttpAuthorization:
    return HttpAuthorization(name=name, namespace="shop", action=action, rules=rules, **changes)  # type: ignore[arg-type]


def texts(*values: str) -> tuple[TextMatch, ...]:
    return tuple(parse_text(value) for value in values)


def blocks(*values: str) -> tuple[ipaddress.IPv4Network, ...]:
    return tuple(ipaddress.IPv4Network(value) for value in values)


def source(**fields: object) -> HttpRule:
    return HttpRule(sources=(Source(**fields),))  # type: ignore[arg-type]


def operation(**fields: object) -> HttpRule:
    return HttpRule(operations=(Operation(**fields),))  # type: ignore[arg-type]


def when(key: str, *values: str) -> HttpRule:
    return HttpRule(conditions=(Condition(key=key, values=values),))


def allowed(rule: HttpRule, asked: Asked = ASKED) -> bool:
    """Whether the rule matches: alone in an ALLOW policy."""
    return HttpPolicies([policy(HttpAction.ALLOW, rule)]).judge(asked).allowed


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (HttpRule(), True),
        (source(principals=texts("cluster.local/ns/shop/sa/web")), True),
        (source(principals=texts("cluster.local/ns/shop/sa/we")), False),
        (source(principals=texts("cluster.local/ns/shop/*")), True),
        (source(principals=texts("*/sa/web")), True),
        (source(not_principals=texts("cluster.local/ns/shop/sa/web")), False),
        (source(namespaces=texts("shop")), True),
        (source(not_namespaces=texts("shop")), False),
        (source(service_accounts=("shop/web",)), True),
        (source(not_service_accounts=("shop/web",)), False),
        (source(request_principals=texts("https://i.example/ann")), True),
        (source(request_principals=texts("*")), True),
        (source(not_request_principals=texts("*")), False),
        (source(ip_blocks=blocks("10.1.0.0/16")), True),
        (source(ip_blocks=blocks("192.0.2.0/24")), False),
        (source(remote_ip_blocks=blocks("192.0.2.0/24")), True),
        (source(not_remote_ip_blocks=blocks("192.0.2.0/24")), False),
        (source(principals=texts("*"), namespaces=texts("other")), False),
        (operation(methods=texts("GET", "HEAD")), True),
        (operation(not_methods=texts("GET")), False),
        (operation(paths=texts("/api/*")), True),
        (operation(paths=texts("/api")), False),
        (operation(not_paths=texts("*/items")), False),
        (operation(hosts=texts("PRODUCT:80")), True),
        (operation(hosts=texts("product")), False),
        (operation(not_hosts=texts("product:*")), False),
        (operation(ports=(80, 81)), True),
        (operation(not_ports=(80,)), False),
        (operation(methods=texts("GET"), paths=texts("/other")), False),
        (when("request.headers[X-User]", "ann"), True),
        (when("request.headers[x-user]", "bob"), False),
        (when("request.headers[x-none]", "*"), False),
        (when("request.auth.claims[sub]", "ann"), True),
        (when("request.auth.claims[g][r]", "admin"), True),
        (when("request.auth.claims[scope]", "write"), True),
        (when("request.auth.audiences", "shop"), True),
        (when("request.auth.principal", "https://i.example/*"), True),
        (when("source.ip", "10.1.0.0/16"), True),
        (when("remote.ip", "10.1.0.0/16"), False),
        (when("destination.ip", "10.96.0.10"), True),
        (when("destination.port", "80"), True),
        (when("source.namespace", "shop"), True),
        (when("source.serviceAccount", "shop/web"), True),
        (when("connection.sni", "*.example"), True),
    ],
)
def test_each_attribute(rule: HttpRule, holds: bool) -> None:
    assert allowed(rule) is holds


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (source(principals=texts("*")), False),
        (source(not_principals=texts("cluster.local/ns/shop/sa/web")), True),
        (source(namespaces=texts("*")), False),
        (source(service_accounts=("shop/web",)), False),
        (source(not_service_accounts=("shop/web",)), True),
        (source(request_principals=texts("*")), False),
        (source(not_request_principals=texts("*")), True),
        (when("request.auth.claims[sub]", "*"), False),
    ],
)
def test_a_peer_without_identity_or_token_matches_no_positive_attribute(rule: HttpRule, holds: bool) -> None:
    assert allowed(rule, NOBODY) is holds


@pytest.mark.parametrize(
    ("template", "path", "holds"),
    [
        ("/a/{*}/c", "/a/b/c", True),
        ("/a/{*}/c", "/a/b/b/c", False),
        ("/a/{*}/c", "/a//c", False),
        ("/a/{**}", "/a/b/c", True),
        ("/a.b/{*}", "/axb/c", False),
    ],
)
def test_path_templates(template: str, path: str, holds: bool) -> None:
    rule = operation(paths=(TextMatch(kind=TextKind.TEMPLATE, value=template),))
    assert allowed(rule, replace(ASKED, path=path)) is holds


def test_the_order_of_actions() -> None:
    everything = HttpRule()
    deny = policy(HttpAction.DENY, operation(methods=texts("POST")), name="deny")
    allow = policy(HttpAction.ALLOW, everything, name="allow")
    custom = policy(HttpAction.CUSTOM, everything, name="custom", provider="opa")
    policies = HttpPolicies([allow, deny, custom])
    assert policies.judge(ASKED).ask == "opa"
    denied = policies.judge(replace(ASKED, method="POST"))
    assert (denied.allowed, denied.policy, denied.ask) == (False, "shop/deny", "")
    assert HttpPolicies([]).judge(ASKED).allowed
    assert not HttpPolicies([policy(HttpAction.ALLOW)]).judge(ASKED).allowed
    assert HttpPolicies([policy(HttpAction.DENY)]).judge(ASKED).allowed


def test_a_denial_says_who_asked_what_and_which_policies_are_in_force() -> None:
    verdict = HttpPolicies([policy(HttpAction.ALLOW, operation(paths=texts("/x")))]).judge(ASKED)
    assert verdict.policy == "shop/p"
    for part in ("GET /api/v1/items", "spiffe://cluster.local/ns/shop/sa/web", "shop/p"):
        assert part in verdict.reason


def test_audit_and_dry_run_are_noted_and_never_enforced() -> None:
    noted = [
        policy(HttpAction.AUDIT, HttpRule(), name="audit"),
        policy(HttpAction.DENY, HttpRule(), name="try", dry_run=True),
        policy(HttpAction.AUDIT, operation(methods=texts("PUT")), name="other"),
    ]
    verdict = HttpPolicies(noted).judge(ASKED)
    assert verdict.allowed
    assert verdict.notes == ("AUDIT policy shop/audit matches", "dry-run DENY policy shop/try matches")


@pytest.mark.parametrize(
    "rule",
    [
        when("request.unknown", "x"),
        when("destination.port", "http"),
        when("source.ip", "x"),
        when("remote.ip"),
    ],
)
@pytest.mark.parametrize("action", [HttpAction.ALLOW, HttpAction.DENY, HttpAction.CUSTOM])
def test_what_cannot_be_judged_denies_by_name(rule: HttpRule, action: HttpAction) -> None:
    verdict = HttpPolicies([policy(action, rule), policy(HttpAction.ALLOW, HttpRule(), name="q")]).judge(
        ASKED
    )
    assert not verdict.allowed
    assert verdict.policy == "shop/p"
    assert "cannot be judged" in verdict.reason


def test_of_plain_tcp_an_allow_with_http_attributes_never_matches_and_a_deny_drops_them() -> None:
    rule = operation(methods=texts("GET"), ports=(80,))
    assert not HttpPolicies([policy(HttpAction.ALLOW, rule)]).judge(TCP).allowed
    assert HttpPolicies([policy(HttpAction.ALLOW, operation(ports=(80,)))]).judge(TCP).allowed
    assert not HttpPolicies([policy(HttpAction.DENY, rule)]).judge(TCP).allowed
    assert (
        HttpPolicies([policy(HttpAction.DENY, operation(methods=texts("GET"), ports=(81,)))])
        .judge(TCP)
        .allowed
    )


@pytest.mark.parametrize(
    "rule",
    [
        source(not_request_principals=texts("*")),
        HttpRule(conditions=(Condition(key="request.headers[x]", not_values=("1",)),)),
        operation(not_paths=texts("/admin")),
    ],
)
def test_what_http_alone_could_negate_opens_nothing_to_plain_tcp(rule: HttpRule) -> None:
    assert allowed(rule, NOBODY)
    assert not allowed(rule, TCP)
    assert not HttpPolicies([policy(HttpAction.DENY, rule)]).judge(TCP).allowed
