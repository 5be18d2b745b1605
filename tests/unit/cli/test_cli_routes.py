# SPDX-License-Identifier: Apache-2.0
"""Rules as sentences, of tables as a waypoint's admin port writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import __main__ as main
from cli import routes
from cli.route_text import action_text, match_text
from cli.target import Part
from mesh.model.route import (
    Backend,
    DirectResponse,
    Fault,
    Mirror,
    PathKind,
    PathMatch,
    PathRewrite,
    Redirect,
    RequestMatch,
    Retry,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.workload import NamespacedHostname
from mesh.runtime.surfaces import plain
from tests.support.fake_target import FakeTarget


def service(name: str) -> NamespacedHostname:
    return NamespacedHostname(namespace="shop", hostname=f"{name}.shop.svc.cluster.local")


def backend(name: str, weight: int = 1, **more: Any) -> Backend:
    return Backend(service=service(name), port=80, weight=weight, **more)


def value(name: str, text: str, kind: ValueKind = ValueKind.EXACT, **more: Any) -> ValueMatch:
    return ValueMatch(name=name, kind=kind, value=text, **more)


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (RequestMatch(), "all"),
        (RequestMatch(path=PathMatch(kind=PathKind.EXACT, value="/a")), "/a"),
        (RequestMatch(path=PathMatch(kind=PathKind.PREFIX, value="/a")), "/a*"),
        (RequestMatch(path=PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/")), "/*"),
        (RequestMatch(path=PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/a")), "/a/*"),
        (RequestMatch(path=PathMatch(kind=PathKind.REGEX, value="/[ab]", invert=True)), "not ~/[ab]"),
        (RequestMatch(method=value("", "GET"), authority=value("", "x.y")), "GET host x.y"),
        (
            RequestMatch(
                headers=(value("x-a", "", ValueKind.PRESENT), value("x-b", "1", invert=True)),
                query=(value("q", "z", ValueKind.PREFIX),),
            ),
            "x-a: * x-b: not 1 ?q=z*",
        ),
    ],
)
def test_which_requests(match: RequestMatch, text: str) -> None:
    assert match_text([plain(match)]) == text  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"backends": (backend("web"),)}, "shop/web:80"),
        (
            {"backends": (backend("a", 90), backend("b", 10, subset="v2"), backend("c", 0))},
            "90% shop/a:80, 10% shop/b:80 subset v2",
        ),
        ({}, "no backend: answered with 500"),
        ({"backends": (Backend(service=None, problem="unknown"),)}, "nowhere (unknown): answered with 500"),
        ({"direct": DirectResponse(status=418)}, "answered with 418"),
        (
            {"redirect": Redirect(scheme="https", hostname="x", path=PathRewrite(full="/y"), status=301)},
            "redirected with 301 to https://x/y",
        ),
        (
            {
                "backends": (backend("web"),),
                "request_timeout_s": 1.5,
                "retry": Retry(attempts=2),
                "fault": Fault(delay_s=1, delay_percent=10, abort_status=503, abort_percent=5),
                "mirrors": (Mirror(service=service("shadow"), port=80, percent=50),),
            },
            "shop/web:80; timeout 1.5 s; 2 retries; 10% delayed by 1 s; 5% answered with 503; "
            "50% copied to shop/shadow",
        ),
    ],
)
def test_what_becomes_of_them(rule: dict[str, Any], text: str) -> None:
    assert action_text(plain(RouteRule(source="x", **rule))) == text  # type: ignore[arg-type]


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    table = RouteTable(
        service=service("web"),
        port=0,
        rules=(RouteRule(source="HTTPRoute/shop/r#0", backends=(backend("web"),)),),
    )
    target = FakeTarget(answers={("waypoint/shop/wp", "/routes"): [plain(table)]})
    monkeypatch.setattr(target, "metric_parts", lambda: [Part("waypoint-metrics", "shop/wp")])
    monkeypatch.setattr(routes, "open_target", lambda _: target)
    return target


def test_the_table(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["routes", "--no-headers"]) == 0
    assert capsys.readouterr().out.split() == ["shop/web", "all", "all", "shop/web:80", "HTTPRoute/shop/r#0"]
    assert main.main(["routes", "web", "-o", "json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert (item["service"], item["source"]) == ("shop/web", "HTTPRoute/shop/r#0")


def test_nothing_to_show(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["routes", "other"]) == 4
    assert main.main(["routes", "-n", "other"]) == 4
    del mesh.answers["waypoint/shop/wp", "/routes"]
    assert main.main(["routes"]) == 4
    assert "left out: waypoint of shop/wp does not answer" in capsys.readouterr().err
