# SPDX-License-Identifier: Apache-2.0
"""VirtualServices: which hosts and namespaces they are for, delegates, anything at all.

Expectations: istio pilot/pkg/networking/core/listener_waypoint.go, pilot/pkg/model/virtualservice_test.go.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.types import Options
from controller.translate.virtual_service import translate_virtual_services
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.service import AppProtocol, Service, ServicePort
from mesh.xds.routes import decode_route_table, encode_route_table, route_table_name
from tests.support.dialects import (
    REVIEWS,
    ROUTE,
    SERVICES,
    ask,
    key,
    table,
    taken,
    virtual,
)
from tests.support.dialects import (
    translated_virtual as translated,
)

# --- whom it is for


def test_several_for_one_host_are_one_list_the_oldest_first() -> None:
    young = virtual("http: [{redirect: {uri: /young}}]", "a", created="2026-02-01T00:00:00Z")
    old = virtual("http: [{match: [{uri: {prefix: /old}}], redirect: {uri: /o}}]", "b")
    made = table(young, old)
    assert [rule.source for rule in made.rules] == ["VirtualService/app/b#0", "VirtualService/app/a#0"]


@pytest.mark.parametrize(
    "host", ["reviews", "reviews.app.svc.cluster.local", '"*.app.svc.cluster.local"', '"*"']
)
def test_hosts_short_complete_and_wildcard(host: str) -> None:
    found, problems = translated(virtual(f"hosts: [{host}]\nhttp: [{{redirect: {{uri: /x}}}}]"))
    assert REVIEWS in found
    assert all("only waypoints honour" in text for text in problems)


def test_the_namespace_of_the_waypoint_may_route_too() -> None:
    spec = "hosts: [shop.edge.svc.cluster.local]\nhttp: [{redirect: {uri: /x}}]"
    name = f"{key('shop', 'edge')}:80"
    assert list(translated(virtual(spec, namespace="gate"))[0]) == [name]
    assert list(translated(virtual(spec, namespace="edge"))[0]) == [name]
    found, problems = translated(virtual(spec, namespace="thief"))
    assert found == {}
    assert "is not for thief to route" in problems[0]


def test_it_is_seen_only_where_it_is_exported_to() -> None:
    spec = "hosts: [shop]\nhttp: [{redirect: {uri: /x}}]\nexportTo: "
    assert translated(virtual(spec + "[gate]", namespace="edge"))[0]
    found, problems = translated(virtual(spec + '["."]', namespace="edge"))
    assert found == {}
    assert problems[0].startswith("spec.exportTo: leaves out gate")


def test_tcp_ports_have_no_table() -> None:
    port = ServicePort(service_port=9000, target_port=9000, app_protocol=AppProtocol.TCP)
    made = Service(
        name="t",
        namespace="app",
        hostname="t.example",
        ports=(port,),
        waypoint=SERVICES[key("reviews")].waypoint,
    )
    obj = virtual("hosts: [t.example]\nhttp: [{redirect: {uri: /x}}]")
    assert translate_virtual_services(World({obj.key: obj}, Options()), {made.key: made}, {}).routes == {}


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("hosts: []", "spec.hosts", "nobody delegates"),
        ("hosts: [nothing]", "spec.hosts.0", "names no service"),
        ("hosts: [bare]\nhttp: [{redirect: {uri: /}}]", "spec.hosts.0", "only waypoints honour"),
        ("gateways: [ingress]", "spec.gateways", "gateway mesh only"),
        ("hosts: 5", "spec.hosts", "list"),
        (f"hosts: {['a'] * 1025}", "spec.hosts", "more than 1024"),
        (f"http: {[{}] * 1025}", "spec.http", "more than 1024"),
        ("http: [5]", "spec.http.0", "mapping"),
        ("tls: [{}]", "spec.tls", "do not look for server names"),
        ("colour: red", "spec.colour", "not known"),
        (f"http: [{{{ROUTE}, colour: red}}]", "spec.http.0.colour", "not known"),
    ],
)
def test_what_is_not_honoured_is_reported_by_its_path(spec: str, path: str, reason: str) -> None:
    _, problems = translated(virtual(spec))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert reason in problems[0]


# --- delegates


ROOT = virtual(
    "http: [{match: [{uri: {prefix: /productpage}}], delegate: {name: sub, namespace: edge}, timeout: 3s},"
    " {redirect: {uri: /rest}}]",
    "root",
)


def test_a_delegates_routes_stand_inside_the_match_that_hands_over() -> None:
    sub = virtual(
        "hosts: []\nhttp:"
        " [{match: [{uri: {prefix: /productpage/v1}, headers: {a: {exact: b}}}], redirect: {uri: /v1}},"
        " {match: [{uri: {exact: /login}}], redirect: {uri: /never}},"
        " {route: [{destination: {host: reviews.app.svc.cluster.local}}], timeout: 1s},"
        " {directResponse: {status: 204}}]",
        "sub",
        "edge",
    )
    found, problems = translated(ROOT, sub)
    made = found[REVIEWS]
    assert [taken(ask(made, "/productpage/v1", ("a", "b"))), taken(ask(made, "/productpage/v1"))] == [
        301,
        "reviews",
    ]
    assert taken(ask(made, "/login")) == 301
    assert [rule.request_timeout_s for rule in made.rules] == [3, 1, 3, None]
    assert [rule.source for rule in made.rules][:2] == [
        "VirtualService/edge/sub#0",
        "VirtualService/edge/sub#2",
    ]
    assert problems == [
        "spec.http.1.match: its match is not part of that of VirtualService app/root, route 0; "
        "the route is left out"
    ]


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([], "does not exist"),
        ([virtual("http: [{redirect: {uri: /x}}]", "sub", "edge")], "has hosts of its own"),
        ([virtual('hosts: []\nexportTo: ["."]', "sub", "edge")], "is not exported to app"),
    ],
)
def test_a_delegate_that_cannot_be_used_leaves_its_route_out(objects: list[RawObject], reason: str) -> None:
    found, problems = translated(ROOT, *objects)
    assert [rule.source for rule in found[REVIEWS].rules] == ["VirtualService/app/root#1"]
    assert any(text.startswith("spec.http.0.delegate: ") and reason in text for text in problems)


def test_a_delegate_cannot_delegate() -> None:
    sub = virtual("hosts: []\nhttp: [{delegate: {name: sub, namespace: edge}}]", "sub", "edge")
    _, problems = translated(ROOT, sub)
    assert any("cannot delegate" in text for text in problems)


# --- anything at all


FIELDS = [
    "hosts",
    "gateways",
    "exportTo",
    "http",
    "match",
    "uri",
    "exact",
    "prefix",
    "regex",
    "headers",
    "withoutHeaders",
    "queryParams",
    "port",
    "number",
    "route",
    "destination",
    "host",
    "subset",
    "weight",
    "request",
    "set",
    "add",
    "remove",
    "redirect",
    "authority",
    "derivePort",
    "directResponse",
    "status",
    "body",
    "string",
    "bytes",
    "rewrite",
    "uriRegexRewrite",
    "timeout",
    "retries",
    "attempts",
    "retryOn",
    "fault",
    "delay",
    "fixedDelay",
    "percentage",
    "value",
    "abort",
    "httpStatus",
    "grpcStatus",
    "mirror",
    "mirrors",
    "mirrorPercentage",
    "corsPolicy",
    "allowOrigins",
    "maxAge",
    "delegate",
    "name",
    "namespace",
    "sourceNamespace",
    "sourceLabels",
    "tcp",
]
VALUES = st.sampled_from(
    ["reviews", "*", "/", "1s", "v", "app", "(", "5xx", "", "é\0", 0, 1, 80, 200, -1, 2**40, 0.5, True, None]
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=20,
)
ROUTES = st.lists(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
    | st.fixed_dictionaries(
        {"route": st.just([{"destination": {"host": "reviews"}}])},
        optional=dict.fromkeys(
            ("match", "headers", "rewrite", "retries", "fault", "corsPolicy", "mirror"), JSON
        ),
    )
    | st.just({"delegate": {"name": "v", "namespace": "app"}}),
    max_size=3,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), ROUTES | JSON)
def test_any_object_is_translated_or_reported(spec: dict[str, Any], http: Any) -> None:
    data = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "app"},
        "spec": {"hosts": ["reviews"]} | spec | {"http": http},
    }
    found, problems = translated(make_object(data))
    assert (found, problems) == translated(make_object(data))
    for name, made in found.items():
        assert route_table_name(made) == name
        assert decode_route_table(encode_route_table(made)).service == made.service
        assert ask(made, "/a?b=c", ("x", "y")) is not None
