# SPDX-License-Identifier: Apache-2.0
"""Which listener and which rules a name finds at an ingress gateway."""

from __future__ import annotations

import pytest

from mesh.model.gateway import GatewayListener, HostRules, IngressGateway, ListenerProtocol
from mesh.model.route import PathKind, PathMatch, RequestMatch, RouteRule
from waypoint.routing.front import Front, HostTable, host_of

TABLE = HostTable({"a.x": "exact", "*.x": "short", "*.b.x": "long", "*.y.z": "other"})


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("a.x", "exact"),
        ("c.x", "short"),
        ("a.a.x", "short"),
        ("b.x", "short"),
        ("a.b.x", "long"),
        ("a.c.b.x", "long"),
        ("x", None),
        (".x", None),
        ("y.z", None),
        ("ax", None),
        ("", None),
    ],
)
def test_the_most_specific_name_wins(host: str, found: str | None) -> None:
    assert TABLE.find(host) == found


def test_a_star_takes_what_nobody_else_does() -> None:
    table = HostTable({"a.x": 1, "*": 2})
    assert [table.find(host) for host in ("a.x", "b.x", "")] == [1, 2, 2]


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("Web.Example.com", "web.example.com"),
        ("web.example.com:8080", "web.example.com"),
        ("web.example.com.:80", "web.example.com"),
        ("web.example.com:", "web.example.com"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_the_host_of_an_authority(authority: str, host: str) -> None:
    assert host_of(authority) == host


def listener(name: str, port: int, hostname: str, secure: bool = False) -> GatewayListener:
    protocol = ListenerProtocol.HTTPS if secure else ListenerProtocol.HTTP
    rules = (RouteRule(source=f"HTTPRoute/shop/{name}#0"),)
    return GatewayListener(
        name=name,
        port=port,
        protocol=protocol,
        hostname=hostname,
        hosts=(HostRules(hostname=hostname, rules=rules),),
    )


def test_listeners_of_one_port_are_told_apart_by_name() -> None:
    listeners = (listener("one", 80, "a.x"), listener("rest", 80, "*"), listener("tls", 443, "a.x", True))
    front = Front(IngressGateway(namespace="shop", name="front", listeners=listeners))
    assert front.ports == {80: False, 443: True}
    names = [
        found.listener.name if (found := front.listener(port, host)) is not None else None
        for port, host in ((80, "a.x"), (80, "b.x"), (443, "a.x"), (443, "b.x"), (81, "a.x"))
    ]
    assert names == ["one", "rest", "tls", None, None]


def test_a_bad_expression_is_refused_by_its_rule() -> None:
    match = RequestMatch(path=PathMatch(kind=PathKind.REGEX, value="("))
    rules = (RouteRule(source="HTTPRoute/shop/bad#0", matches=(match,)),)
    bad = GatewayListener(
        name="http", port=80, protocol=ListenerProtocol.HTTP, hosts=(HostRules(hostname="*", rules=rules),)
    )
    with pytest.raises(ValueError, match="HTTPRoute/shop/bad#0"):
        Front(IngressGateway(namespace="shop", name="front", listeners=(bad,)))
