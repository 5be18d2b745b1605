# SPDX-License-Identifier: Apache-2.0
"""ServiceProfiles: conditions, response classes, retries, overrides, whom they are for.

Expectations: linkerd2 controller/api/destination/profile_translator_test.go and
pkg/profiles; linkerd2-proxy service-profiles.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.service_profile import MAX_ATTEMPTS, translate_profiles
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.destination import RetryBudget
from mesh.model.route import Retry, RouteTable
from mesh.xds.routes import encode_route_table, route_table_name
from tests.support.dialects import REVIEWS, SERVICES, ask, key, taken


def profile(spec: str, name: str = "reviews.app.svc.cluster.local", namespace: str = "app") -> RawObject:
    return make_object(
        {
            "apiVersion": "linkerd.io/v1alpha2",
            "kind": "ServiceProfile",
            "metadata": {"name": name, "namespace": namespace},
            "spec": yaml.safe_load(spec),
        }
    )


def translated(*objects: RawObject) -> tuple[dict[str, RouteTable], list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = translate_profiles(world, SERVICES)
    return found, [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems]


def table(spec: str) -> RouteTable:
    """Translate, and require that nothing is wrong."""
    found, problems = translated(profile(spec))
    assert problems == []
    return found[REVIEWS]


def route_of(made: RouteTable, target: str, method: str = "GET") -> str:
    """Return the number of the route that takes a request."""
    plan = ask(made, target, method=method)
    return plan.source.partition("#")[2]


@pytest.mark.parametrize(
    ("condition", "taken_", "left"),
    [
        (
            "pathRegex: '/a/[^/]*'",
            [("/a/b", "GET"), ("/a/b?q=1", "PUT")],
            [("/a/b/c", "GET"), ("/x/a/b", "GET")],
        ),
        ("pathRegex: '^/a$'", [("/a", "GET")], [("/a/b", "GET")]),
        ("method: post", [("/", "POST")], [("/", "GET")]),
        ("pathRegex: /a, method: GET", [("/a", "GET")], [("/a", "POST"), ("/b", "GET")]),
        (
            "all: [{pathRegex: '/a.*'}, {pathRegex: '.*z'}]",
            [("/abz", "GET")],
            [("/ab", "GET"), ("/bz", "GET")],
        ),
        ("any: [{pathRegex: /a}, {method: PUT}]", [("/a", "GET"), ("/b", "PUT")], [("/b", "GET")]),
        ("not: {pathRegex: /a}", [("/b", "GET")], [("/a", "GET")]),
        ("not: {method: GET}", [("/", "PUT")], [("/", "GET")]),
        ("not: {any: [{method: GET}, {method: PUT}]}", [("/", "POST")], [("/", "GET"), ("/", "PUT")]),
        ("not: {all: [{method: GET}, {pathRegex: /a}]}", [("/a", "PUT"), ("/b", "GET")], [("/a", "GET")]),
        ("not: {not: {method: GET}}", [("/", "GET")], [("/", "PUT")]),
        ("pathRegex: '/a.*', not: {pathRegex: '/ab'}", [("/ac", "GET")], [("/ab", "GET"), ("/c", "GET")]),
        ("all: [{method: GET}, {method: PUT}]", [], [("/", "GET"), ("/", "PUT")]),
        (
            "all: [{any: [{method: GET}, {method: PUT}]}, {not: {method: GET}}]",
            [("/", "PUT")],
            [("/", "GET")],
        ),
    ],
)
def test_conditions(condition: str, taken_: list[tuple[str, str]], left: list[tuple[str, str]]) -> None:
    made = table(f"routes: [{{name: r, condition: {{{condition}}}}}]")
    assert [route_of(made, *probe) for probe in taken_] == ["0"] * len(taken_)
    assert [route_of(made, *probe) for probe in left] == ["default"] * len(left)


def test_the_first_route_that_matches_wins_and_the_rest_goes_to_the_service() -> None:
    made = table(
        "routes: [{condition: {pathRegex: '/a.*'}, timeout: 300ms}, {condition: {pathRegex: '/ab'}}]"
    )
    assert [route_of(made, path) for path in ("/ab", "/b")] == ["0", "default"]
    assert [rule.request_timeout_s for rule in made.rules] == [0.3, None, None]
    assert [rule.retry for rule in made.rules] == [None, None, None]
    assert taken(ask(made, "/b")) == "reviews"


def test_a_retryable_route_is_tried_again_for_failures_within_the_budget() -> None:
    made = table("routes: [{condition: {method: GET}, isRetryable: true}]")
    assert made.rules[0].retry == Retry(
        attempts=MAX_ATTEMPTS, status_codes=tuple(range(500, 600)), grpc_statuses=(2, 4, 13, 14, 15)
    )
    assert made.retry_budget == RetryBudget(percent=20, interval_s=10, min_per_second=10)
    made = table(
        "routes: [{condition: {method: GET}, isRetryable: true}]\n"
        "retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 3, ttl: 30s}"
    )
    assert made.retry_budget == RetryBudget(percent=50, interval_s=30, min_per_second=3)


@pytest.mark.parametrize(
    ("classes", "failed"),
    [
        ("[{condition: {status: {min: 404, max: 404}}, isFailure: true}]", [404, *range(500, 600)]),
        ("[{condition: {status: {min: 500, max: 598}}, isFailure: false}]", [599]),
        ("[{condition: {status: {min: 598}}, isFailure: false}]", list(range(500, 598))),
        # The first class that holds decides.
        (
            "[{condition: {status: {min: 503, max: 503}}, isFailure: false},"
            " {condition: {status: {min: 502, max: 504}}, isFailure: true},"
            " {condition: {not: {status: {min: 502, max: 504}}}}]",
            [502, 504],
        ),
        (
            "[{condition: {all: [{status: {min: 400}}, {not: {status: {min: 401}}}]}, isFailure: true},"
            " {condition: {any: [{status: {max: 450}}, {status: {min: 451}}]}}]",
            [400],
        ),
    ],
)
def test_response_classes_say_what_a_failure_is(classes: str, failed: list[int]) -> None:
    made = table(f"routes: [{{condition: {{method: GET}}, isRetryable: true, responseClasses: {classes}}}]")
    assert made.rules[0].retry is not None
    assert made.rules[0].retry.status_codes == tuple(failed)


def test_overrides_share_out_all_requests() -> None:
    made = table(
        "routes: [{condition: {pathRegex: /a}}]\n"
        "dstOverrides: [{authority: 'ratings.app.svc.cluster.local:81', weight: 500m},"
        " {authority: reviews.app.svc.cluster.local, weight: '1'},"
        " {authority: other.app.svc.cluster.local, weight: 0}]"
    )
    for path in ("/a", "/b"):
        assert [taken(ask(made, path, draw=draw)) for draw in (0.0, 0.32, 0.34)] == [
            "ratings",
            "ratings",
            "reviews",
        ]
    assert [(b.port, b.weight) for b in made.rules[0].backends] == [(81, 500), (80, 1000)]


def test_a_profile_of_another_namespace_is_for_its_clients() -> None:
    found, problems = translated(
        profile("routes: [{condition: {method: GET}}]"),
        profile("routes: [{condition: {method: PUT}, timeout: 1s}]", namespace="client"),
    )
    assert problems == []
    assert list(found) == [REVIEWS, f"{REVIEWS}@client"]
    assert [route_table_name(made) for made in found.values()] == list(found)
    assert found[f"{REVIEWS}@client"].rules[0].request_timeout_s == 1


def test_opaque_ports_have_no_table() -> None:
    spec = "routes: [{condition: {method: GET}}]\nopaquePorts: ['81', '100-200']"
    found, _ = translated(profile(spec, "ratings.app.svc.cluster.local"))
    assert list(found) == [f"{key('ratings')}:80"]


def test_a_profile_without_routes_and_overrides_changes_nothing() -> None:
    assert translated(profile("retryBudget: {ttl: 5s}")) == ({}, [])


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("routes: [{name: r}]", "spec.routes.0.condition", "at least one of"),
        ("routes: [{condition: {}}]", "spec.routes.0.condition", "at least one of"),
        ("routes: [{condition: {all: []}}]", "spec.routes.0.condition.all", "empty"),
        ("routes: [{condition: {all: [{}]}}]", "spec.routes.0.condition.all.0", "at least one of"),
        ("routes: [{condition: {path: /}}]", "spec.routes.0.condition.path", "not known"),
        ("routes: [{condition: {pathRegex: '('}}]", "spec.routes.0.condition.pathRegex", "expression"),
        ("routes: [{condition: {method: GET}, timeout: soon}]", "spec.routes.0.timeout", "no duration"),
        (
            "routes: [{condition: {method: GET}, isRetryable: 1}]",
            "spec.routes.0.isRetryable",
            "true or false",
        ),
        (
            "routes: [{condition: {method: GET}, responseClasses: [{condition: {status: {}}}]}]",
            "spec.routes.0.responseClasses.0.condition.status",
            "needs min",
        ),
        (
            "routes: [{condition: {method: GET}, responseClasses: [{condition: {status: {min: 5}}}]}]",
            "spec.routes.0.responseClasses.0.condition.status.min",
            "whole number",
        ),
        ("retryBudget: {ttl: 2m}", "spec.retryBudget.ttl", "no route is tried again"),
        (
            "dstOverrides: [{authority: x, weight: 1}]",
            "spec.dstOverrides.0.authority",
            "no port of a service",
        ),
        ("dstOverrides: [{authority: reviews, weight: -1}]", "spec.dstOverrides.0.weight", "quantity"),
        ("dstOverrides: [{authority: 'reviews:x', weight: 1}]", "spec.dstOverrides.0.authority", "no name"),
        ("opaquePorts: [http]", "spec.opaquePorts", "no port"),
        ("routes: 5", "spec.routes", "list"),
        ("colour: red", "spec.colour", "not known"),
    ],
)
def test_what_cannot_be_honoured_is_reported_by_its_path(spec: str, path: str, reason: str) -> None:
    found, problems = translated(profile(spec))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert reason in problems[0]
    assert all(taken(ask(made, "/")) == "reviews" for made in found.values())


def test_retries_of_a_route_are_refused_with_the_right_field_named() -> None:
    found, problems = translated(profile("routes: [{condition: {method: GET}, retries: {limit: 3}}]"))
    assert found[REVIEWS].rules[0].retry is None
    assert problems[0].startswith("spec.routes.0.retries: is no field here: isRetryable")


def test_a_condition_that_comes_apart_into_too_many_alternatives_is_refused() -> None:
    pairs = ", ".join(f"{{any: [{{pathRegex: /a{i}}}, {{pathRegex: /b{i}}}]}}" for i in range(7))
    _, problems = translated(profile(f"routes: [{{condition: {{all: [{pairs}]}}}}]"))
    assert "more than 64 alternatives" in problems[0]


def test_a_name_that_is_no_service_is_reported() -> None:
    found, problems = translated(
        profile("routes: [{condition: {method: GET}}]", "nothing.app.svc.cluster.local"),
        profile("routes: [{condition: {method: GET}}]", "bare.app.svc.cluster.local"),
    )
    assert list(found) == [f"{key('bare')}:80"]
    assert "only waypoints honour" in problems[0]
    assert "names no service" in problems[1]


FIELDS = [
    "routes",
    "name",
    "condition",
    "pathRegex",
    "method",
    "all",
    "any",
    "not",
    "responseClasses",
    "status",
    "min",
    "max",
    "isFailure",
    "isRetryable",
    "timeout",
    "retryBudget",
    "retryRatio",
    "ttl",
    "dstOverrides",
    "authority",
    "weight",
    "opaquePorts",
]
JSON = st.recursive(
    st.sampled_from(["/a", "(", "GET", "1s", "500m", "reviews", "", 0, 1, 404, -1, 0.5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_object_is_translated_or_reported(spec: dict[str, Any]) -> None:
    data = {
        "apiVersion": "linkerd.io/v1alpha2",
        "kind": "ServiceProfile",
        "metadata": {"name": "reviews.app.svc.cluster.local", "namespace": "app"},
        "spec": spec,
    }
    found, problems = translated(make_object(data))
    assert (found, problems) == translated(make_object(data))
    for name, made in found.items():
        assert route_table_name(made) == name
        assert encode_route_table(made)
        assert ask(made, "/a") is not None
