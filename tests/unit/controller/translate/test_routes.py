# SPDX-License-Identifier: Apache-2.0
"""All route dialects of one service: one meaning, a fixed precedence, and losers that are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.routes import Routes, translate_routes
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.route import Backend, PathKind, PathMatch, RequestMatch, RouteRule, RouteTable
from tests.support.dialects import SERVICES, ask, key, taken

API = {
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "VirtualService": "networking.istio.io/v1",
    "ServiceProfile": "linkerd.io/v1alpha2",
    "TrafficSplit": "split.smi-spec.io/v1alpha1",
}
PARENT = "parentRefs: [{group: '', kind: Service, name: reviews, namespace: app}]\n"


def make(kind: str, spec: str, name: str = "x", namespace: str = "app") -> RawObject:
    metadata = {"name": name, "namespace": namespace}
    return make_object(
        {"apiVersion": API[kind], "kind": kind, "metadata": metadata, "spec": yaml.safe_load(spec)}
    )


def translated(*objects: RawObject) -> tuple[Routes, list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = translate_routes(world, SERVICES, {})
    return found, [f"{problem.key.kind} {problem.key.name}: {problem.reason}" for problem in world.problems]


# --- one meaning

SHARES = (
    "parentRefs: [{group: '', kind: Service, name: reviews, port: 80}]\n"
    "rules: [{backendRefs: [{name: reviews, port: 80, weight: 90},"
    " {name: ratings, port: 80, weight: 10}]}]"
)
CANARY = {
    "HTTPRoute": make(
        "HTTPRoute",
        SHARES,
    ),
    "GRPCRoute": make(
        "GRPCRoute",
        SHARES,
    ),
    "VirtualService": make(
        "VirtualService",
        "hosts: [reviews]\n"
        "http: [{route: [{destination: {host: reviews}, weight: 90},"
        " {destination: {host: ratings, port: {number: 80}}, weight: 10}]}]",
    ),
    "ServiceProfile": make(
        "ServiceProfile",
        "dstOverrides: [{authority: reviews.app.svc.cluster.local, weight: 90},"
        " {authority: 'ratings.app.svc.cluster.local:80', weight: 10}]",
        key("reviews").hostname,
    ),
    "TrafficSplit": make(
        "TrafficSplit",
        "service: reviews\nbackends: [{service: reviews, weight: 90}, {service: ratings, weight: 10}]",
    ),
}


def meaning(table: RouteTable) -> RouteTable:
    """Leave out who wrote a table, and a path that every request has."""
    every = PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/")

    def bare(match: RequestMatch) -> RequestMatch:
        return replace(match, path=None) if match.path == every else match

    rules = tuple(replace(rule, source="", matches=tuple(map(bare, rule.matches))) for rule in table.rules)
    return replace(table, rules=rules)


@pytest.mark.parametrize("kind", CANARY)
def test_the_same_canary_is_the_same_model_in_every_dialect(kind: str) -> None:
    found, problems = translated(CANARY[kind])
    assert problems == []
    shares = (
        Backend(service=key("reviews"), port=80, weight=90),
        Backend(service=key("ratings"), port=80, weight=10),
    )
    assert {name: meaning(table) for name, table in found.tables.items()} == {
        f"{key('reviews')}:80": RouteTable(
            service=key("reviews"), port=80, rules=(RouteRule(source="", backends=shares),)
        )
    }


# --- precedence


def redirecting(kind: str) -> RawObject:
    """Make an object that answers or routes everything for reviews, on every port."""
    specs = {
        "HTTPRoute": PARENT + "rules: [{backendRefs: [{name: ratings, port: 80}]}]",
        "GRPCRoute": PARENT + "rules: [{backendRefs: [{name: other, port: 9080}]}]",
        "VirtualService": "hosts: [reviews]\nhttp: [{directResponse: {status: 418}}]",
        "ServiceProfile": "routes: [{condition: {pathRegex: '.*'}, timeout: 1s}]",
    }
    return make(kind, specs[kind], key("reviews").hostname if kind == "ServiceProfile" else "x")


ORDER = ["ServiceProfile", "GRPCRoute", "HTTPRoute", "VirtualService"]
PAIRS = [(winner, loser) for index, winner in enumerate(ORDER) for loser in ORDER[index + 1 :]]


@pytest.mark.parametrize(("winner", "loser"), PAIRS)
def test_one_dialect_has_the_word_and_the_other_is_told(winner: str, loser: str) -> None:
    found, problems = translated(redirecting(winner), redirecting(loser))
    sources = {rule.source.partition("/")[0] for table in found.tables.values() for rule in table.rules}
    covered = ":80" if winner == "ServiceProfile" else ":0"
    table = found.tables[f"{key('reviews')}{covered}"]
    assert {rule.source.partition("/")[0] for rule in table.rules} == {winner}
    # A profile is of its ports only, a route of every port stays for others.
    assert sources == ({winner, loser} if (winner, loser[4:]) == ("ServiceProfile", "Route") else {winner})
    assert len(problems) == 1
    assert problems[0].startswith(f"{loser} ")
    assert "comes first; no effect there" in problems[0]


def test_the_loser_among_gateway_apis_kinds_is_conflicted() -> None:
    found, _ = translated(redirecting("GRPCRoute"), redirecting("HTTPRoute"))
    assert [(parent.route.kind, parent.code, bool(parent.reason)) for parent in found.parents] == [
        ("GRPCRoute", "NoMatchingParent", False),
        ("HTTPRoute", "Conflicted", True),
    ]


def test_a_route_of_every_port_keeps_those_that_no_other_dialect_has() -> None:
    grpc = make(
        "GRPCRoute",
        "parentRefs: [{group: '', kind: Service, name: ratings, port: 81}]\n"
        "rules: [{backendRefs: [{name: other, port: 9080}]}]",
    )
    http = make(
        "HTTPRoute",
        "parentRefs: [{group: '', kind: Service, name: ratings}]\n"
        "rules: [{backendRefs: [{name: reviews, port: 80}]}]",
    )
    found, problems = translated(grpc, http)
    tables = {name.rpartition(":")[2]: table for name, table in found.tables.items()}
    assert {port: taken(ask(table, "/a/b")) for port, table in tables.items()} == {
        "81": "other",
        "0": "reviews",
    }
    assert [parent.code for parent in found.parents if parent.reason] == []
    assert "port 81 and comes first" in problems[0]


def test_routes_of_a_clients_namespace_come_before_those_for_all() -> None:
    consumer = make(
        "HTTPRoute",
        PARENT + "rules: [{backendRefs: [{name: ratings, namespace: app, port: 80}]}]",
        namespace="client",
    )
    found, problems = translated(consumer, redirecting("ServiceProfile"))
    assert problems == []
    assert sorted(found.tables) == [f"{key('reviews')}:0@client", f"{key('reviews')}:80"]


def test_a_virtual_service_for_some_clients_yields_to_a_route_for_all() -> None:
    virtual = make(
        "VirtualService",
        "hosts: [reviews]\nhttp: [{match: [{sourceNamespace: client}], redirect: {uri: /}}]",
    )
    found, problems = translated(virtual, redirecting("HTTPRoute"))
    assert list(found.tables) == [f"{key('reviews')}:0"]
    assert problems[0].startswith("VirtualService x")


def test_a_route_of_a_service_without_a_waypoint_is_told() -> None:
    route = make(
        "HTTPRoute",
        "parentRefs: [{group: '', kind: Service, name: bare}]\nrules: [{}]",
    )
    _, problems = translated(route)
    assert any("has no waypoint" in text for text in problems)


# --- anything at all

OBJECTS: list[RawObject] = [*CANARY.values(), *(redirecting(kind) for kind in ORDER)]


@given(st.permutations(OBJECTS), st.integers(0, len(OBJECTS)))
def test_the_order_of_documents_does_not_matter(objects: list[Any], count: int) -> None:
    some = {obj.key: obj for obj in objects[:count]}
    found, problems = translated(*some.values())
    again, same = translated(*sorted(some.values(), key=lambda obj: str(obj.key)))
    assert (found.tables, found.parents, problems) == (again.tables, again.parents, same)
    for name, table in found.tables.items():
        assert name.startswith(str(table.service))
        assert table.rules
