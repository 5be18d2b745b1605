# SPDX-License-Identifier: Apache-2.0
"""HTTPRoutes of services: the conformance suite's cases as tables, routed by the waypoint's matcher."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.gateway_route import GatewayRoutes
from controller.translate.http_route import translate_http_routes
from mesh.config.objects import RawObject, make_object
from mesh.model.route import RouteTable
from mesh.model.service import Service, ServicePort
from mesh.model.workload import NamespacedHostname
from mesh.xds.routes import encode_route_table, route_table_name
from waypoint.http.message import Framing, RequestHead
from waypoint.routing.match import RouteMatcher
from waypoint.routing.plan import Answer, Forward, plan_request


def host(name: str, namespace: str = "mesh") -> NamespacedHostname:
    return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local")


SERVICES = {
    host(name): Service(
        name=name,
        namespace="mesh",
        hostname=host(name).hostname,
        ports=(
            ServicePort(service_port=80, target_port=8080),
            ServicePort(service_port=8080, target_port=8080),
        ),
    )
    for name in ("echo", "echo-v1", "echo-v2")
}


def route(
    spec: str, name: str = "r", namespace: str = "mesh", created: str = "2026-01-01T00:00:00Z"
) -> RawObject:
    data = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "echo", "namespace": "mesh"}]}
        | yaml.safe_load(spec),
    }
    return make_object(data)


def translated(*routes: RawObject) -> GatewayRoutes:
    return translate_http_routes(routes, SERVICES, "cluster.local")


def table(*routes: RawObject, port: int = 0, scope: str = "") -> RouteTable:
    return translated(*routes).tables[f"{host('echo')}:{port}{scope}"]


def ask(made: RouteTable, target: str, *headers: tuple[str, str], method: str = "GET") -> Forward | Answer:
    head = RequestHead(
        method=method,
        target=target,
        authority="echo",
        headers=list(headers),
        framing=Framing.NONE,
    )
    return plan_request(head, service=host("echo"), port=80, matcher=RouteMatcher(made), random=lambda: 0.0)


def backend(plan: Forward | Answer) -> str | int:
    return plan.service.hostname.partition(".")[0] if isinstance(plan, Forward) else plan.status


MATCHING = route("""
rules:
- matches:
  - path: {type: PathPrefix, value: /}
  - headers: [{name: Version, value: one}]
  backendRefs: [{name: echo-v1, port: 8080}]
- matches:
  - path: {type: PathPrefix, value: /v2}
  - headers: [{name: version, value: two}]
  backendRefs: [{name: echo-v2, port: 8080}]
""")


@pytest.mark.parametrize(
    ("target", "headers", "expected"),
    [
        ("/", (), "echo-v1"),
        ("/example", (), "echo-v1"),
        ("/", (("version", "one"),), "echo-v1"),
        ("/v2", (), "echo-v2"),
        ("/v2/", (), "echo-v2"),
        ("/v2/example", (), "echo-v2"),
        ("/", (("version", "two"),), "echo-v2"),
        ("/v2example", (), "echo-v1"),
        ("/foo/v2/example", (), "echo-v1"),
    ],
)
def test_matching_as_the_conformance_suite_has_it(
    target: str, headers: tuple[tuple[str, str], ...], expected: str
) -> None:
    assert backend(ask(table(MATCHING), target, *headers)) == expected


PRECEDENCE = route("""
rules:
- matches: [{path: {type: PathPrefix, value: /a}}]
  backendRefs: [{name: echo, port: 80}]
- matches: [{path: {type: PathPrefix, value: /a/b}}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: Exact, value: /a}}]
  backendRefs: [{name: echo-v2, port: 80}]
- matches: [{path: {type: PathPrefix, value: /a}, method: POST}]
  backendRefs: [{name: echo-v1, port: 80}]
- matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x, value: "1"}]}]
  backendRefs: [{name: echo-v2, port: 80}]
""")


@pytest.mark.parametrize(
    ("target", "method", "headers", "expected"),
    [
        ("/a/x", "GET", (), "echo"),
        ("/a/b/c", "GET", (), "echo-v1"),
        ("/a", "POST", (), "echo-v2"),
        ("/a/x", "POST", (("x", "1"),), "echo-v1"),
        ("/a/x", "GET", (("x", "1"),), "echo-v2"),
        ("/", "GET", (), 404),
    ],
)
def test_the_most_specific_rule_wins(
    target: str, method: str, headers: tuple[tuple[str, str], ...], expected: str | int
) -> None:
    assert backend(ask(table(PRECEDENCE), target, *headers, method=method)) == expected


def test_the_older_route_wins_a_tie_then_the_name() -> None:
    spec = "rules: [{{backendRefs: [{{name: {}, port: 80}}]}}]"
    young = route(spec.format("echo-v1"), "a", created="2026-02-01T00:00:00Z")
    old = route(spec.format("echo-v2"), "b", created="2026-01-01T00:00:00Z")
    assert backend(ask(table(young, old), "/")) == "echo-v2"
    twin = route(spec.format("echo-v1"), "a", created="2026-01-01T00:00:00Z")
    assert backend(ask(table(old, twin), "/")) == "echo-v1"


def test_a_port_of_the_parent_makes_a_table_of_its_own() -> None:
    made = translated(
        route(
            "parentRefs: [{group: '', kind: Service, name: echo, port: 80}]\n"
            "rules: [{backendRefs: [{name: echo-v1, port: 80}]}]"
        )
    )
    assert list(made.tables) == [f"{host('echo')}:80"]
    assert [route_table_name(t) for t in made.tables.values()] == list(made.tables)


def test_a_route_of_every_port_is_in_the_table_of_a_port_too() -> None:
    of_port = route(
        "parentRefs: [{group: '', kind: Service, name: echo, port: 80}]\n"
        "rules: [{matches: [{path: {value: /v2}}], backendRefs: [{name: echo-v2, port: 80}]}]",
        "port",
    )
    of_all = route("rules: [{backendRefs: [{name: echo-v1, port: 80}]}]", "all")
    assert [backend(ask(table(of_port, of_all, port=80), path)) for path in ("/v2", "/")] == [
        "echo-v2",
        "echo-v1",
    ]
    assert [backend(ask(table(of_port, of_all), path)) for path in ("/v2", "/")] == ["echo-v1", "echo-v1"]


def test_a_consumer_route_is_for_clients_of_its_own_namespace() -> None:
    consumer = route(
        "rules: [{backendRefs: [{name: echo-v1, namespace: mesh, port: 80}]}]", namespace="client"
    )
    made = table(consumer, scope="@client")
    assert made.client_namespace == "client"
    assert backend(ask(made, "/")) == "echo-v1"


@pytest.mark.parametrize(
    ("filters", "target", "location", "status"),
    [
        ("{hostname: example.org}", "/x", "http://example.org/x", 302),
        ("{hostname: example.org, statusCode: 301}", "/x", "http://example.org/x", 301),
        ("{scheme: https}", "/x", "https://echo/x", 302),
        ("{port: 8083}", "/x?q=1", "http://echo:8083/x?q=1", 302),
        (
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}",
            "/old/lemon",
            "http://echo/new/lemon",
            302,
        ),
        ("{path: {type: ReplaceFullPath, replaceFullPath: /full}}", "/old/x", "http://echo/full", 302),
    ],
)
def test_redirects_with_their_location(filters: str, target: str, location: str, status: int) -> None:
    made = table(
        route(
            "rules: [{matches: [{path: {type: PathPrefix, value: /old}},"
            " {path: {type: PathPrefix, value: /x}}],"
            f" filters: [{{type: RequestRedirect, requestRedirect: {filters}}}]}}]"
        )
    )
    plan = ask(made, target)
    assert isinstance(plan, Answer)
    assert (plan.status, dict(plan.headers)["location"]) == (status, location)


def test_filters_weights_timeouts_and_retries_arrive() -> None:
    made = table(
        route("""
rules:
- matches: [{path: {type: PathPrefix, value: /p}}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: a}], remove: [X-B]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: X-R, value: r}]}}
  - {type: URLRewrite, urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 80}, percent: 10}}
  timeouts: {request: 2s, backendRequest: 500ms}
  retry: {codes: [503], attempts: 3, backoff: 100ms}
  backendRefs:
  - {name: echo-v1, port: 80, weight: 9}
  - {name: echo-v2, port: 80, weight: 1}
""")
    )
    (rule,) = made.rules
    assert [b.weight for b in rule.backends] == [9, 1]
    assert (rule.request_timeout_s, rule.try_timeout_s) == (2.0, 0.5)
    assert rule.retry is not None
    assert (rule.retry.attempts, rule.retry.status_codes, rule.retry.backoff_s) == (3, (503,), 0.1)
    assert rule.mirrors[0].percent == 10
    plan = ask(made, "/p/q", ("x-b", "1"))
    assert isinstance(plan, Forward)
    assert (plan.head.target, plan.head.authority, plan.head.headers) == ("/q", "h", [("x-a", "a")])


def test_a_backend_may_be_named_by_its_host() -> None:
    name = host("echo-v2").hostname
    made = table(
        route(
            "rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname,"
            f" name: {name}, port: 80}}]}}]"
        )
    )
    assert backend(ask(made, "/")) == "echo-v2"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("{name: nothing, port: 80}", "BackendNotFound"),
        ("{name: echo-v1, port: 81}", "BackendNotFound"),
        ("{name: echo-v1}", "UnsupportedValue"),
        ("{name: echo-v1, port: 80, kind: Secret}", "InvalidKind"),
        ("{name: other.example, port: 80, group: networking.istio.io, kind: Hostname}", "BackendNotFound"),
        ("{name: echo-v1, port: 80, weight: -1}", "whole number"),
        ("{name: echo-v1, port: 80, filters: [{type: RequestMirror}]}", "not supported"),
    ],
)
def test_a_backend_that_cannot_be_answers_500_and_is_reported(reference: str, reason: str) -> None:
    made = translated(route(f"rules: [{{backendRefs: [{reference}]}}]"))
    assert backend(ask(next(iter(made.tables.values())), "/")) == 500
    assert reason in made.findings[0].reason
    assert made.findings[0].path[:3] == ("spec", "rules", 0)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("matches: [{path: {type: RegularExpression, value: '('}}]", "regular expression"),
        ("matches: [{path: {type: Prefix, value: /}}]", "not supported"),
        ("matches: [{path: {value: x}}]", "begin with /"),
        ("filters: [{type: Unknown}]", "not supported"),
        ("filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]", "one of"),
        ("filters: [{type: RequestRedirect, requestRedirect: {hostname: 5}}]", "must be text"),
        ("filters: [{type: RequestRedirect, requestRedirect: {port: 0}}]", "port number"),
        ("filters: [{type: URLRewrite, urlRewrite: {hostname: 5}}]", "must be text"),
        ("filters: [{type: CORS, cors: {maxAge: -1}}]", "from 0"),
        ("filters: [{type: CORS, cors: {maxAge: x}}]", "whole number"),
        ("retry: {attempts: 1001}", "whole number"),
        ("backendRefs: [{name: echo, port: 80, weight: 1000001}]", "whole number"),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a b, value: c}]}}]",
            "valid header",
        ),
        (
            "filters: [{type: RequestHeaderModifier,"
            ' requestHeaderModifier: {set: [{name: x, value: "a\\r\\nb: c"}]}}]',
            "valid header",
        ),
        ("timeouts: {request: 1x}", "no duration"),
        ("timeouts: {request: 1s, backendRequest: 2s}", "must not exceed"),
        ("retry: {codes: [200]}", "400 to 599"),
    ],
)
def test_a_rule_that_cannot_be_honoured_answers_500_and_the_others_stay(rule: str, reason: str) -> None:
    made = translated(
        route(
            f"rules:\n- {{{rule}}}\n"
            "- matches: [{path: {type: Exact, value: /good}}]\n  backendRefs: [{name: echo-v1, port: 80}]"
        )
    )
    (made_table,) = made.tables.values()
    assert backend(ask(made_table, "/good")) == "echo-v1"
    assert backend(ask(made_table, "/other")) == 500
    assert reason in made.findings[0].reason


@pytest.mark.parametrize(
    "parents",
    [
        "[{group: '', kind: Service, name: nothing}]",
        "[{group: '', kind: Service, name: echo, port: 99}]",
        "[5]",
    ],
)
def test_a_parent_that_is_not_there_attaches_nothing_and_is_reported(parents: str) -> None:
    made = translated(route(f"parentRefs: {parents}\nrules: [{{}}]"))
    assert made.tables == {}
    assert made.findings[0].path == ("spec", "parentRefs", 0) or made.findings[0].path[-1] == "port"


def test_a_route_of_a_gateway_is_not_a_mesh_route() -> None:
    made = translated(route("parentRefs: [{name: ingress}]\nrules: [{}]"))
    assert (made.tables, made.findings) == ({}, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "rules",
                    "matches",
                    "path",
                    "type",
                    "value",
                    "headers",
                    "name",
                    "filters",
                    "requestRedirect",
                    "backendRefs",
                    "port",
                    "weight",
                    "timeouts",
                    "request",
                    "retry",
                    "codes",
                    "backoff",
                    "percent",
                    "fraction",
                    "requestMirror",
                    "cors",
                    "urlRewrite",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


ODD = st.sampled_from([0, 1, -1, 80, 300, 2**32, 2**64, 0.5, "", "1s", "/", "x", True, None])
FILTERS = st.one_of(
    *(
        st.fixed_dictionaries(
            {
                "type": st.just(name),
                field: st.dictionaries(
                    st.sampled_from(
                        ["scheme", "hostname", "port", "statusCode", "percent", "maxAge", "path"]
                    ),
                    ODD,
                    max_size=3,
                ),
            }
        )
        for name, field in (
            ("RequestRedirect", "requestRedirect"),
            ("RequestMirror", "requestMirror"),
            ("CORS", "cors"),
        )
    )
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "backendRefs": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("echo"), "port": st.just(80) | ODD}, optional={"weight": ODD}
            ),
            max_size=2,
        ),
        "filters": st.lists(FILTERS, max_size=2),
        "retry": st.dictionaries(st.sampled_from(["attempts", "backoff", "codes"]), ODD | st.lists(ODD)),
        "timeouts": st.dictionaries(st.sampled_from(["request", "backendRequest"]), ODD),
    },
)


@given(JSON | RULES)
def test_no_rule_raises_and_what_comes_of_it_can_be_sent(value: Any) -> None:
    raw = route("rules: []")
    raw.data["spec"]["rules"] = [value, {"matches": [value], "filters": [value], "backendRefs": [value]}]
    made = translated(raw)
    assert all(finding.reason for finding in made.findings)
    for each in made.tables.values():
        assert encode_route_table(each)


def test_a_route_of_too_many_parts_has_no_effect() -> None:
    match = {"path": {"value": "/x"}}
    raw = route("rules: []")
    raw.data["spec"]["rules"] = [{"matches": [match] * 64} for _ in range(70)]
    made = translated(raw)
    assert made.tables == {}
    assert "more than 4096" in made.findings[0].reason
