# SPDX-License-Identifier: Apache-2.0
"""TCPRoutes: who shares the connections, who loses against whom."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.routes import Routes, translate_routes
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.xds.streams import encode_stream_table, stream_table_name
from tests.support.dialects import SERVICES, key, virtual

PARENT = "parentRefs: [{group: '', kind: Service, name: ratings, port: 81}]\n"
SHARES = (
    "rules: [{backendRefs: [{name: reviews, port: 80, weight: 9}, {name: other, port: 9080, weight: 1}]}]"
)
RATINGS = f"{key('ratings')}:81"


def route(
    spec: str, name: str = "r", created: str = "2026-01-01T00:00:00Z", kind: str = "TCPRoute"
) -> RawObject:
    metadata = {"name": name, "namespace": "app", "creationTimestamp": created}
    api = "gateway.networking.k8s.io/v1alpha2"
    return make_object({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": yaml.safe_load(spec)})


def translated(*objects: RawObject) -> tuple[Routes, list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = translate_routes(world, SERVICES, {})
    return found, [f"{problem.key.kind}: {problem.reason}" for problem in world.problems]


def test_backends_share_the_connections() -> None:
    found, problems = translated(route(PARENT + SHARES))
    assert problems == []
    table = found.streams[RATINGS]
    assert table.source == "TCPRoute/app/r#0"
    assert [(b.service, b.port, b.weight) for b in table.backends] == [
        (key("reviews"), 80, 9),
        (key("other"), 9080, 1),
    ]
    assert found.tables == {}
    assert [stream_table_name(each) for each in found.streams.values()] == list(found.streams)


def test_the_oldest_route_holds_and_the_other_is_told() -> None:
    young = route(PARENT + SHARES, "a", "2026-02-01T00:00:00Z")
    old = route(PARENT + "rules: [{backendRefs: [{name: other, port: 9080}]}]", "b")
    found, problems = translated(young, old)
    assert [backend.service for backend in found.streams[RATINGS].backends] == [key("other")]
    assert len(problems) == 1
    assert "TCPRoute/app/b is older" in problems[0]


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_a_route_of_requests_on_the_port_comes_first(kind: str) -> None:
    other = route(PARENT + "rules: [{backendRefs: [{name: other, port: 9080}]}]", "x", kind=kind)
    found, problems = translated(other, route(PARENT + SHARES))
    assert (found.streams, list(found.tables)) == ({}, [RATINGS])
    assert [parent.code for parent in found.parents if parent.reason] == ["Conflicted"]
    assert f"{kind}/app/x routes" in problems[0]


def test_it_comes_before_a_virtual_service() -> None:
    obj = virtual("hosts: [ratings]\ntcp: [{route: [{destination: {host: ratings}}]}]")
    found, problems = translated(obj, route(PARENT + SHARES))
    assert {name.rpartition(":")[2]: table.source for name, table in found.streams.items()} == {
        "80": "VirtualService/app/v#tcp0",
        "81": "TCPRoute/app/r#0",
    }
    assert problems[0].startswith("VirtualService: TCPRoute/app/r routes")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("rules: [{backendRefs: [{name: nothing, port: 80}]}]", "BackendNotFound"),
        ("rules: [{backendRefs: [{name: other, port: 9080, weight: x}]}]", "whole number"),
        ("rules: [{filters: [], backendRefs: [{name: other, port: 9080}]}]", "not honoured"),
        (SHARES.replace("]}]", "]}, {}]", 1), "has one rule"),
    ],
)
def test_what_cannot_be_honoured_is_reported(spec: str, reason: str) -> None:
    found, problems = translated(route(PARENT + spec))
    assert RATINGS in found.streams
    assert any(reason in text for text in problems)


FIELDS = ["rules", "backendRefs", "name", "port", "weight", "kind", "matches", "parentRefs"]
JSON = st.recursive(
    st.sampled_from(["reviews", "Service", "", 0, 80, -1, 0.5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_object_is_translated_or_reported(spec: dict[str, Any]) -> None:
    obj = route(PARENT)
    data = {**obj.data, "spec": {**obj.spec, **spec}}
    found, problems = translated(make_object(data))
    assert (found.streams, problems) == (
        translated(make_object(data))[0].streams,
        translated(make_object(data))[1],
    )
    for table in found.streams.values():
        assert encode_stream_table(table)
