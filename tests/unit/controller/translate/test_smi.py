# SPDX-License-Identifier: Apache-2.0
"""TrafficSplits and HTTPRouteGroups: weights, matches, what is left out.

Expectations: smi-spec traffic-split v1alpha1 to v1alpha4; linkerd-smi's adaptor.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.service_profile import translate_profiles
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.route import RouteTable
from mesh.xds.routes import encode_route_table
from tests.support.dialects import REVIEWS, SERVICES, ask, key, taken


def split(spec: str, name: str = "s", version: str = "v1alpha2", **metadata: Any) -> RawObject:
    return make_object(
        {
            "apiVersion": f"split.smi-spec.io/{version}",
            "kind": "TrafficSplit",
            "metadata": {"name": name, "namespace": "app", **metadata},
            "spec": {"service": "reviews"} | yaml.safe_load(spec),
        }
    )


def group(matches: str) -> RawObject:
    return make_object(
        {
            "apiVersion": "specs.smi-spec.io/v1alpha3",
            "kind": "HTTPRouteGroup",
            "metadata": {"name": "g", "namespace": "app"},
            "spec": {"matches": yaml.safe_load(matches)},
        }
    )


def translated(*objects: RawObject) -> tuple[dict[str, RouteTable], list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = translate_profiles(world, SERVICES)
    return found, [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems]


def shares(made: RouteTable) -> list[tuple[str, int]]:
    """Return the short names and weights of the last rule's backends."""
    return [
        (backend.service.hostname.partition(".")[0], backend.weight)
        for backend in made.rules[-1].backends
        if backend.service
    ]


@pytest.mark.parametrize(
    ("version", "weights", "expected"),
    [
        ("v1alpha1", ("900m", "100m"), [900, 100]),
        ("v1alpha1", ("1", "500m"), [1000, 500]),
        ("v1alpha1", (900, 100), [900, 100]),
        ("v1alpha2", (90, 10), [90, 10]),
        ("v1alpha4", (1, 0), [1, 0]),
    ],
)
def test_weights_of_every_version(version: str, weights: tuple[Any, Any], expected: list[int]) -> None:
    backends = f"[{{service: reviews, weight: {weights[0]}}}, {{service: ratings, weight: {weights[1]}}}]"
    found, problems = translated(split(f"backends: {backends}", version=version))
    assert problems == []
    assert shares(found[REVIEWS]) == [("reviews", expected[0]), ("ratings", expected[1])]


def test_a_backend_without_the_port_of_the_service_is_left_out() -> None:
    found, _ = translated(split("backends: [{service: other, weight: 1}, {service: ratings, weight: 1}]"))
    assert shares(found[REVIEWS]) == [("ratings", 1)]


def test_a_complete_name_means_the_same() -> None:
    name = key("ratings").hostname
    found, _ = translated(
        split(f"service: {key('reviews').hostname}\nbackends: [{{service: {name}, weight: 1}}]")
    )
    assert shares(found[REVIEWS]) == [("ratings", 1)]


MATCHES = """
- {name: api, pathRegex: /api/.*, methods: [GET, HEAD]}
- {name: user, headers: [{x-user: 'jason.*'}]}
"""


@pytest.mark.parametrize(
    ("target", "method", "headers", "expected"),
    [
        ("/api/x", "GET", (), "ratings"),
        ("/api/x", "POST", (), "reviews"),
        ("/", "GET", (("x-user", "jason2"),), "ratings"),
        ("/", "GET", (), "reviews"),
    ],
)
def test_only_requests_that_match_are_split(
    target: str, method: str, headers: tuple[tuple[str, str], ...], expected: str
) -> None:
    found, problems = translated(
        split(
            "matches: [{kind: HTTPRouteGroup, name: g, apiGroup: specs.smi-spec.io}]\n"
            "backends: [{service: ratings, weight: 1}]",
            version="v1alpha4",
        ),
        group(MATCHES),
    )
    assert problems == []
    assert taken(ask(found[REVIEWS], target, *headers, method=method)) == expected


def test_splits_with_matches_come_before_the_one_without() -> None:
    rest = split("backends: [{service: reviews, weight: 1}]", "a")
    some = split("matches: [{kind: HTTPRouteGroup, name: g}]\nbackends: [{service: ratings, weight: 1}]", "b")
    found, _ = translated(rest, some, group("[{methods: ['*'], pathRegex: /x, headers: {a: b}}]"))
    assert taken(ask(found[REVIEWS], "/x", ("a", "b"))) == "ratings"
    assert taken(ask(found[REVIEWS], "/x")) == "reviews"


def test_the_oldest_split_holds() -> None:
    old = split("backends: [{service: reviews, weight: 1}]", "b", creationTimestamp="2026-01-01T00:00:00Z")
    young = split("backends: [{service: ratings, weight: 1}]", "a", creationTimestamp="2026-02-01T00:00:00Z")
    found, problems = translated(young, old)
    assert shares(found[REVIEWS]) == [("reviews", 1)]
    assert problems == [
        f"spec.service: TrafficSplit app/b splits {key('reviews')} already and is older; no effect"
    ]


def test_a_split_replaces_the_overrides_of_a_profile_and_keeps_its_routes() -> None:
    profile = make_object(
        {
            "apiVersion": "linkerd.io/v1alpha2",
            "kind": "ServiceProfile",
            "metadata": {"name": key("reviews").hostname, "namespace": "app"},
            "spec": {
                "routes": [{"condition": {"pathRegex": "/a"}, "timeout": "1s"}],
                "dstOverrides": [{"authority": key("reviews").hostname, "weight": 1}],
            },
        }
    )
    found, _ = translated(profile, split("backends: [{service: ratings, weight: 1}]"))
    made = found[REVIEWS]
    assert [taken(ask(made, path)) for path in ("/a", "/b")] == ["ratings", "ratings"]
    assert [rule.request_timeout_s for rule in made.rules] == [1, None]


def test_linkerds_annotation_skips_a_split() -> None:
    obj = split("backends: [{service: ratings, weight: 1}]", annotations={"smi.linkerd.io/skip": "true"})
    assert translated(obj) == ({}, [])


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("service: nothing\nbackends: [{service: ratings, weight: 1}]", "spec.service", "is no service"),
        ("service: ''", "spec.service", "missing"),
        ("backends: []", "spec.backends", "no backend"),
        ("backends: [{service: ratings, weight: 0}]", "spec.backends", "no backend"),
        ("backends: [{service: ratings, weight: much}]", "spec.backends.0.weight", "number"),
        ("backends: [{service: ratings, weight: -1}]", "spec.backends.0.weight", "number"),
        (
            "backends: [{service: ratings, weight: 1}, {service: nothing, weight: 1}]",
            "spec.backends.1.service",
            "gets no requests",
        ),
        (
            "backends: [{service: ratings, weight: 1}]\nmatches: [{kind: TCPRoute, name: t}]",
            "spec.matches.0.kind",
            "no HTTPRouteGroup",
        ),
        (
            "backends: [{service: ratings, weight: 1}]\nmatches: [{kind: HTTPRouteGroup, name: t}]",
            "spec.matches.0.name",
            "does not exist",
        ),
        ("backends: [{service: ratings, weight: 1}]\ncolour: red", "spec.colour", "not known"),
    ],
)
def test_what_cannot_be_honoured_is_reported_by_its_path(spec: str, path: str, reason: str) -> None:
    _, problems = translated(split(spec))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert reason in problems[0]


@pytest.mark.parametrize(
    ("match", "path"),
    [
        ("{pathRegex: '('}", "spec.matches.0.pathRegex"),
        ("{methods: ['G.T']}", "spec.matches.0.methods"),
        ("{headers: {a: 5}}", "spec.matches.0.headers.a"),
        ("{headers: [5]}", "spec.matches.0.headers.0"),
    ],
)
def test_a_match_that_cannot_be_read_takes_nothing(match: str, path: str) -> None:
    found, problems = translated(
        split("matches: [{kind: HTTPRouteGroup, name: g}]\nbackends: [{service: ratings, weight: 1}]"),
        group(f"[{match}]"),
    )
    assert problems[0].startswith(f"{path}: ")
    assert taken(ask(found[REVIEWS], "/")) == "reviews"


FIELDS = ["service", "backends", "weight", "matches", "kind", "name", "pathRegex", "methods", "headers"]
JSON = st.recursive(
    st.sampled_from(["reviews", "ratings", "HTTPRouteGroup", "g", "(", "1k", "", 0, 1, -1, 0.5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), JSON)
def test_any_object_is_translated_or_reported(spec: dict[str, Any], matches: Any) -> None:
    objects = [
        make_object({**split("{}").data, "spec": {"service": "reviews"} | spec}),
        make_object({**group("[]").data, "spec": {"matches": matches}}),
    ]
    found, problems = translated(*objects)
    assert (found, problems) == translated(*objects)
    for made in found.values():
        assert encode_route_table(made)
        assert ask(made, "/a") is not None
