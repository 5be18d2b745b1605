# SPDX-License-Identifier: Apache-2.0
"""Matches of VirtualServices, judged by the waypoint's matcher.

Expectations: istio pilot/pkg/networking/core/route route_test.go, listener_waypoint.go.
"""

from __future__ import annotations

from typing import Any

import pytest

from mesh.xds.routes import route_table_name
from tests.support.dialects import (
    REVIEWS,
    ROUTE,
    TO,
    ask,
    forward,
    key,
    table,
    taken,
    virtual,
)
from tests.support.dialects import (
    translated_virtual as translated,
)


@pytest.mark.parametrize(
    ("match", "request_", "expected"),
    [
        ("uri: {exact: /v2}", ("/v2", {}), True),
        ("uri: {exact: /v2}", ("/v2/", {}), False),
        ("uri: {exact: /v2}", ("/v2?a=b", {}), True),
        # A prefix is plain text, not whole segments.
        ("uri: {prefix: /v2}", ("/v2example", {}), True),
        ("uri: {prefix: /v2}", ("/V2", {}), False),
        ("uri: {prefix: /v2}, ignoreUriCase: true", ("/V2/x", {}), True),
        ("uri: {exact: /Ab}, ignoreUriCase: true", ("/aB", {}), True),
        # Expressions match the whole path, and keep their case.
        ("uri: {regex: '/v[0-9]'}", ("/v2", {}), True),
        ("uri: {regex: '/v[0-9]'}", ("/v22", {}), False),
        ("uri: {regex: '/v[0-9]'}, ignoreUriCase: true", ("/V2", {}), False),
        ("method: {exact: POST}", ("/", {"method": "POST"}), True),
        ("method: {exact: POST}", ("/", {}), False),
        ("method: {regex: 'GET|HEAD'}", ("/", {}), True),
        ("authority: {exact: Reviews}", ("/", {}), True),
        ("authority: {prefix: rat}", ("/", {}), False),
        ("authority: {regex: 're.*'}", ("/", {}), True),
        ("scheme: {exact: http}", ("/", {}), True),
        ("headers: {X-User: {exact: jason}}", ("/", {"headers": [("x-user", "jason")]}), True),
        ("headers: {x-user: {exact: jason}}", ("/", {"headers": [("x-user", "Jason")]}), False),
        ("headers: {x-user: {prefix: ja}}", ("/", {"headers": [("x-user", "jason")]}), True),
        ("headers: {x-user: {regex: 'j.*n'}}", ("/", {"headers": [("x-user", "jason")]}), True),
        ("headers: {x-user: {}}", ("/", {"headers": [("x-user", "")]}), True),
        ("headers: {x-user: }", ("/", {"headers": [("x-user", "")]}), True),
        ("headers: {x-user: {regex: '*'}}", ("/", {"headers": [("x-user", "a")]}), True),
        ("headers: {x-user: {}}", ("/", {}), False),
        ("headers: {':method': {exact: GET}}", ("/", {}), True),
        ("headers: {':method': {exact: PUT}}", ("/", {}), False),
        ("headers: {':authority': {exact: reviews}}", ("/", {}), True),
        ("withoutHeaders: {x-user: {}}", ("/", {}), True),
        ("withoutHeaders: {x-user: {}}", ("/", {"headers": [("x-user", "a")]}), False),
        ("withoutHeaders: {x-user: {exact: a}}", ("/", {"headers": [("x-user", "a")]}), False),
        ("withoutHeaders: {x-user: {exact: a}}", ("/", {"headers": [("x-user", "b")]}), True),
        ("withoutHeaders: {x-user: {exact: a}}", ("/", {}), True),
        # A missing field counts as an empty one, which this expression takes.
        ("withoutHeaders: {x-user: {regex: '.*'}}", ("/", {}), False),
        ("queryParams: {q: {exact: a}}", ("/?q=a", {}), True),
        ("queryParams: {q: {exact: a}}", ("/?Q=a", {}), False),
        ("queryParams: {q: {prefix: a}}", ("/?q=ab", {}), True),
        ("queryParams: {q: {regex: 'a+'}}", ("/?q=aaa", {}), True),
        ("queryParams: {q: {}}", ("/?q=", {}), True),
        ("queryParams: {q: {}}", ("/", {}), False),
        ("port: 80", ("/", {}), True),
        ("gateways: [mesh]", ("/", {}), True),
        ("uri: {prefix: /}, headers: {a: {exact: b}}", ("/", {}), False),
    ],
)
def test_matches(match: str, request_: tuple[str, dict[str, Any]], expected: bool) -> None:
    made = table(virtual(f"http: [{{match: [{{{match}}}], {TO}}}, {{{ROUTE}}}]"))
    target, rest = request_
    plan = ask(made, target, *rest.pop("headers", ()), **rest)
    assert taken(plan) == ("ratings" if expected else "reviews")


def test_entries_are_alternatives_and_the_first_route_that_matches_wins() -> None:
    made = table(
        virtual(
            "http:\n"
            f"- {{match: [{{uri: {{exact: /a}}}}, {{uri: {{exact: /b}}}}], {TO}}}\n"
            "- {match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}"
        )
    )
    assert [taken(ask(made, path)) for path in ("/a", "/b", "/ab", "/c")] == [
        "ratings",
        "ratings",
        "reviews",
        404,
    ]


def test_a_match_on_another_port_or_gateway_takes_nothing() -> None:
    spec = f"http: [{{match: [{{port: 9}}, {{gateways: [ingress]}}], {TO}}}]"
    assert translated(virtual(spec)) == ({}, [])


def test_each_port_has_a_table_of_what_is_for_it() -> None:
    found, problems = translated(
        virtual(
            "hosts: [ratings]\n"
            "http: [{match: [{port: 81}], redirect: {uri: /81}}, {route: [{destination: {host: ratings}}]}]"
        )
    )
    assert problems == []
    assert taken(ask(found[f"{key('ratings')}:80"], "/")) == "ratings"
    assert taken(ask(found[f"{key('ratings')}:81"], "/")) == 301
    # A destination without a port has the port that was asked for.
    assert [forward(ask(found[f"{key('ratings')}:80"], "/")).port] == [80]


def test_a_namespace_of_clients_has_a_table_of_its_own() -> None:
    found, _ = translated(virtual(f"http: [{{match: [{{sourceNamespace: shop}}], {TO}}}, {{{ROUTE}}}]"))
    assert {name: taken(ask(made, "/")) for name, made in found.items()} == {
        REVIEWS: "reviews",
        f"{REVIEWS}@shop": "ratings",
    }
    assert [route_table_name(made) for made in found.values()] == list(found)


@pytest.mark.parametrize(
    ("match", "path", "reason"),
    [
        ("sourceLabels: {app: a}", "sourceLabels", "do not know labels"),
        ("scheme: {exact: https}", "scheme", "never holds"),
        ("headers: {'@request.auth.claims.sub': {exact: a}}", "headers.@request.auth.claims.sub", "claims"),
        ("headers: {':path': {exact: /}}", "headers.:path", "use uri"),
        ("uri: {exact: /a, prefix: /b}", "uri.prefix", "one of them"),
        ("uri: {regex: '('}", "uri.regex", "regular expression"),
        ("uri: {regex: '(?!a)'}", "uri.regex", "RE2"),
        ("uri: {regex: '(a)\\1'}", "uri.regex", "RE2"),
        ("uri: 5", "uri", "mapping"),
        ("headers: {x: {exact: 5}}", "headers.x.exact", "text"),
        ("withoutHeaders: {':method': {}}", "withoutHeaders.:method", "absent"),
        ("port: 70000", "port", "whole number"),
    ],
)
def test_an_entry_that_cannot_be_judged_takes_nothing_and_is_reported(
    match: str, path: str, reason: str
) -> None:
    spec = f"http: [{{match: [{{{match}}}], {TO}}}, {{{ROUTE}}}]"
    found, problems = translated(virtual(spec))
    assert taken(ask(found[REVIEWS], "/")) == "reviews"
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.http.0.match.0.{path}: ")
    assert reason in problems[0]
