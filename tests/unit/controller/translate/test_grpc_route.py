# SPDX-License-Identifier: Apache-2.0
"""GRPCRoutes: calls by service and method, precedence, filters, backends that are not there.

Cases: gateway-api GRPCRoute conformance (exact method matching, header matching, weight) and
istio pilot/pkg/config/kube/gateway createGRPCURIMatch.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.gateway_route import GatewayRoutes
from controller.translate.grpc_route import translate_grpc_routes
from mesh.config.objects import RawObject, make_object
from mesh.model.route import HeaderOperations
from mesh.xds.routes import encode_route_table, route_table_name
from tests.support.dialects import SERVICES, answered, ask, key, taken

REVIEWS = f"{key('reviews')}:0"


def route(
    spec: str, name: str = "r", namespace: str = "app", created: str = "2026-01-01T00:00:00Z"
) -> RawObject:
    parent = {"group": "", "kind": "Service", "name": "reviews", "namespace": "app"}
    return make_object(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GRPCRoute",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
            "spec": {"parentRefs": [parent]} | yaml.safe_load(spec),
        }
    )


def translated(*routes: RawObject) -> GatewayRoutes:
    return translate_grpc_routes(routes, SERVICES, "cluster.local")


def call(made: GatewayRoutes, path: str, *headers: tuple[str, str], draw: float = 0.0) -> str | int:
    return taken(ask(made.tables[REVIEWS], path, *headers, method="POST", draw=draw))


RATINGS = "backendRefs: [{name: ratings, port: 80}]"
OTHER = "backendRefs: [{name: other, port: 9080}]"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("{service: pkg.Echo, method: Say}", "/pkg.Echo/Say", "ratings"),
        ("{service: pkg.Echo, method: Say}", "/pkg.Echo/SayNot", 404),
        ("{service: pkg.Echo, method: Say}", "/pkg.echo/Say", 404),
        ("{service: pkg.Echo, method: Say, type: Exact}", "/pkg.Echo/Say", "ratings"),
        ("{service: pkg.Echo}", "/pkg.Echo/Any", "ratings"),
        ("{service: pkg.Echo}", "/pkg.EchoTwo/Any", 404),
        ("{method: Say}", "/any.Service/Say", "ratings"),
        ("{method: Say}", "/a/b/Say", 404),
        ("{type: RegularExpression, service: 'pkg.(A|B)', method: 'S.*'}", "/pkg.B/Stop", "ratings"),
        ("{type: RegularExpression, service: 'A|B'}", "/B/Stop", "ratings"),
        ("{type: RegularExpression, service: 'A|B'}", "/C/Stop", 404),
        ("{type: RegularExpression, method: 'S.y'}", "/pkg.A/Say", "ratings"),
    ],
)
def test_methods(method: str, path: str, expected: str | int) -> None:
    made = translated(route(f"rules: [{{matches: [{{method: {method}}}], {RATINGS}}}]"))
    assert made.findings == []
    assert call(made, path) == expected


def test_a_rule_without_matches_takes_every_call() -> None:
    assert call(translated(route(f"rules: [{{{RATINGS}}}]")), "/a/b") == "ratings"


def test_headers_must_all_match() -> None:
    made = translated(
        route(
            "rules: [{matches: [{headers: [{name: Version, value: two},"
            f" {{name: color, value: 'b.*', type: RegularExpression}}]}}], {RATINGS}}}]"
        )
    )
    assert call(made, "/a/b", ("version", "two"), ("color", "blue")) == "ratings"
    assert call(made, "/a/b", ("version", "two")) == 404


def test_the_longest_service_wins_then_the_method_then_the_headers_then_names_over_expressions() -> None:
    made = translated(
        route(
            "rules:\n"
            f"- {{matches: [{{method: {{type: RegularExpression, service: 'pkg[.]Echo.*'}}}}], {OTHER}}}\n"
            f"- {{matches: [{{}}], {OTHER}}}\n"
            f"- {{matches: [{{method: {{service: pkg.Echo}}}}], {OTHER}}}\n"
            f"- {{matches: [{{method: {{service: pkg.Echo, method: Say}}}}], {RATINGS}}}\n"
            "- {matches: [{method: {service: pkg.Echo, method: Say}, headers: [{name: a, value: b}]}],"
            " backendRefs: [{name: reviews, port: 80}]}"
        )
    )
    assert call(made, "/pkg.Echo/Say") == "ratings"
    assert call(made, "/pkg.Echo/Say", ("a", "b")) == "reviews"
    assert call(made, "/pkg.Echo/Other") == "other"
    assert [rule.source[-1] for rule in made.tables[REVIEWS].rules] == ["4", "3", "2", "1", "0"]


def test_weights() -> None:
    made = translated(
        route("rules: [{backendRefs: [{name: ratings, port: 80, weight: 9}, {name: other, port: 9080}]}]")
    )
    assert [call(made, "/a/b", draw=draw) for draw in (0.0, 0.89, 0.91)] == ["ratings", "ratings", "other"]


def test_an_invalid_backends_share_is_unavailable() -> None:
    made = translated(route("rules: [{backendRefs: [{name: nothing, port: 80}, {name: ratings, port: 80}]}]"))
    assert [call(made, "/a/b", draw=draw) for draw in (0.0, 0.6)] == [503, "ratings"]
    assert [(finding.code, finding.path) for finding in made.findings] == [
        ("BackendNotFound", ("spec", "rules", 0, "backendRefs", 0))
    ]


def test_filters() -> None:
    made = translated(
        route(
            "rules: [{filters: ["
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}]}},"
            " {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [X]}},"
            " {type: RequestMirror, requestMirror: {backendRef: {name: other, port: 9080}}}],"
            f" {RATINGS}}}]"
        )
    )
    (rule,) = made.tables[REVIEWS].rules
    assert rule.request_headers == HeaderOperations(set=(("a", "b"),))
    assert rule.response_headers == HeaderOperations(remove=("x",))
    assert [mirror.service for mirror in rule.mirrors] == [key("other")]


@pytest.mark.parametrize(
    ("rule", "path", "reason"),
    [
        ("matches: [{method: {}}]", "matches.0.method", "needs a service"),
        ("matches: [{method: {service: a/b}}]", "matches.0.method.service", "no name"),
        ("matches: [{method: {method: a.b}}]", "matches.0.method.method", "no name"),
        ("matches: [{method: {service: 5}}]", "matches.0.method.service", "text"),
        ("matches: [{method: {service: a, type: Prefix}}]", "matches.0.method.type", "not supported"),
        (
            "matches: [{method: {service: '(', type: RegularExpression}}]",
            "matches.0.method.service",
            "expression",
        ),
        ("matches: [{path: {}}]", "matches.0.path", "not known"),
        ("filters: [{type: URLRewrite}]", "filters.0.type", "not supported"),
        ("filters: [{type: ExtensionRef}]", "filters.0.type", "not supported"),
    ],
)
def test_a_rule_that_cannot_be_honoured_is_unavailable_and_the_others_stay(
    rule: str, path: str, reason: str
) -> None:
    made = translated(route(f"rules: [{{{rule}}}, {{matches: [{{method: {{service: good}}}}], {RATINGS}}}]"))
    assert call(made, "/good/a") == "ratings"
    answer = answered(ask(made.tables[REVIEWS], "/bad/a"))
    assert answer.status == 503
    (finding,) = made.findings
    assert ".".join(map(str, finding.path)) == f"spec.rules.0.{path}"
    assert reason in finding.reason


@pytest.mark.parametrize("field", ["sessionPersistence", "timeouts", "retry"])
def test_fields_that_are_not_honoured_are_reported(field: str) -> None:
    made = translated(route(f"rules: [{{{field}: {{}}, {RATINGS}}}]"))
    assert call(made, "/a/b") == "ratings"
    assert [(f.path, f.severity) for f in made.findings] == [(("spec", "rules", 0, field), "warning")]


def test_a_consumer_route_is_for_clients_of_its_namespace() -> None:
    made = translated(
        route("rules: [{backendRefs: [{name: ratings, namespace: app, port: 80}]}]", namespace="client")
    )
    assert list(made.tables) == [f"{REVIEWS}@client"]


NAMES = [
    "parentRefs",
    "rules",
    "matches",
    "method",
    "service",
    "type",
    "headers",
    "name",
    "value",
    "filters",
    "backendRefs",
    "port",
    "weight",
    "requestMirror",
    "backendRef",
    "percent",
    "requestHeaderModifier",
    "set",
]
JSON = st.recursive(
    st.sampled_from(
        ["Exact", "RegularExpression", "ratings", "RequestMirror", "(", "", 0, 1, 80, -1, True, None]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=15,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), max_size=3) | JSON)
def test_any_object_is_translated_or_reported(rules: Any) -> None:
    obj = route("{}")
    data = {**obj.data, "spec": {**obj.spec, "rules": rules}}
    made = translated(make_object(data))
    again = translated(make_object(data))
    assert (made.tables, made.findings) == (again.tables, again.findings)
    for name, table in made.tables.items():
        assert route_table_name(table) == name
        assert encode_route_table(table)
        assert ask(table, "/a/b") is not None
