# SPDX-License-Identifier: Apache-2.0
"""Linkerd's annotations and its own HTTPRoutes: what they add to routes and services.

Expectations: linkerd.io reference (retries, timeouts, circuit breaking).
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.destination_rule import translate_destination_rules
from controller.translate.routes import translate_routes
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.destination import OutlierDetection
from mesh.model.route import Retry, RouteRule, RouteTable
from mesh.xds.routes import encode_route_table
from tests.support.dialects import REVIEWS, SERVICES, key

PARENT = "parentRefs: [{group: '', kind: Service, name: reviews}]\n"
ROUTE = PARENT + "rules: [{backendRefs: [{name: ratings, port: 80}]}]"


def service(name: str = "reviews", **annotations: str) -> RawObject:
    metadata = {"name": name, "namespace": "app", "annotations": annotations}
    return make_object({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})


def made(kind: str, spec: str, api: str = "gateway.networking.k8s.io/v1", **annotations: str) -> RawObject:
    metadata = {"name": "r", "namespace": "app", "annotations": annotations}
    return make_object({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": yaml.safe_load(spec)})


def retry(**values: str) -> dict[str, str]:
    return {f"retry.linkerd.io/{name}": value for name, value in values.items()}


def timeout(**values: str) -> dict[str, str]:
    return {f"timeout.linkerd.io/{name}": value for name, value in values.items()}


def translated(*objects: RawObject) -> tuple[dict[str, RouteTable], list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = dict(translate_routes(world, SERVICES, {}).tables)
    return found, [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems]


def rule(*objects: RawObject) -> RouteRule:
    """Translate, and return the one rule of the one table."""
    found, problems = translated(*objects)
    assert problems == []
    ((only,),) = (table.rules for table in found.values())
    return only


@pytest.mark.parametrize(
    ("annotations", "expected", "try_s"),
    [
        (retry(http="5xx"), Retry(attempts=1, status_codes=tuple(range(500, 600))), None),
        (retry(http="gateway-error", limit="3"), Retry(attempts=3, status_codes=(502, 503, 504)), None),
        (retry(http="429, 500-502"), Retry(attempts=1, status_codes=(429, 500, 501, 502)), None),
        (retry(grpc="unavailable,cancelled"), Retry(attempts=1, grpc_statuses=(1, 14)), None),
        (retry(timeout="300ms"), Retry(attempts=1), 0.3),
        (retry(limit="5"), None, None),
    ],
)
def test_retries(annotations: dict[str, str], expected: Retry | None, try_s: float | None) -> None:
    for only in (
        rule(made("HTTPRoute", ROUTE, **annotations)),
        rule(made("GRPCRoute", ROUTE, **annotations)),
        rule(made("HTTPRoute", ROUTE), service(**annotations)),
    ):
        assert (only.retry, only.try_timeout_s) == (expected, try_s)


def test_annotations_of_a_route_come_before_those_of_the_service_kind_by_kind() -> None:
    of_service = service(**retry(http="500"), **timeout(request="9s"))
    only = rule(made("HTTPRoute", ROUTE, **retry(http="503")), of_service)
    assert only.retry is not None
    assert (only.retry.status_codes, only.request_timeout_s) == ((503,), 9)
    only = rule(made("HTTPRoute", ROUTE, **timeout(request="1s")), of_service)
    assert only.retry is not None
    assert (only.retry.status_codes, only.request_timeout_s) == ((500,), 1)


def test_the_spec_of_a_route_comes_before_its_annotations() -> None:
    spec = PARENT + (
        "rules: [{retry: {codes: [502]}, timeouts: {request: 2s}, backendRefs: [{name: ratings, port: 80}]}]"
    )
    only = rule(made("HTTPRoute", spec, **retry(http="503"), **timeout(request="1s")))
    assert only.retry is not None
    assert (only.retry.status_codes, only.request_timeout_s) == ((502,), 2)


def test_a_service_without_routes_gets_its_annotations_on_every_port() -> None:
    found, problems = translated(service("ratings", **retry(http="5xx"), **timeout(request="1s")))
    assert problems == []
    assert list(found) == [f"{key('ratings')}:80", f"{key('ratings')}:81"]
    for table in found.values():
        (only,) = table.rules
        (backend,) = only.backends
        assert (backend.service, backend.port, only.request_timeout_s) == (key("ratings"), table.port, 1)
        assert only.source == "Service/app/ratings#annotations"


@pytest.mark.parametrize(
    "other",
    [
        made("VirtualService", "hosts: [reviews]\nhttp: [{redirect: {uri: /}}]", "networking.istio.io/v1"),
        make_object(
            {
                "apiVersion": "linkerd.io/v1alpha2",
                "kind": "ServiceProfile",
                "metadata": {"name": key("reviews").hostname, "namespace": "app"},
                "spec": {"routes": [{"condition": {"method": "GET"}}]},
            }
        ),
    ],
    ids=["VirtualService", "ServiceProfile"],
)
def test_beside_a_profile_or_virtual_service_they_have_no_effect_and_say_so(other: RawObject) -> None:
    found, problems = translated(other, service(**retry(http="5xx")))
    assert [each.retry for each in found[REVIEWS].rules] == [None] * len(found[REVIEWS].rules)
    assert len(problems) == 1
    assert "retries and timeouts have no effect there" in problems[0]


def test_linkerds_own_http_routes_are_routes_too() -> None:
    found, problems = translated(made("HTTPRoute", ROUTE, "policy.linkerd.io/v1beta3", **retry(http="503")))
    assert problems == []
    (only,) = found[f"{key('reviews')}:0"].rules
    assert only.source == "HTTPRoute.policy.linkerd.io/app/r#0"
    assert only.retry is not None
    assert only.retry.status_codes == (503,)


@pytest.mark.parametrize(
    ("annotations", "name", "reason"),
    [
        (retry(http="600"), "retry.linkerd.io/http", "no status code"),
        (retry(http="504-500"), "retry.linkerd.io/http", "no status code"),
        (retry(grpc="broken"), "retry.linkerd.io/grpc", "none of"),
        (retry(http="5xx", limit="-1"), "retry.linkerd.io/limit", "whole number"),
        (retry(http="5xx", timeout="soon"), "retry.linkerd.io/timeout", "no duration"),
        (timeout(request="soon"), "timeout.linkerd.io/request", "no duration"),
        (timeout(idle="1s"), "timeout.linkerd.io/idle", "no effect"),
        (timeout(response="1s"), "timeout.linkerd.io/response", "no effect"),
    ],
)
def test_what_is_not_honoured_is_reported_by_its_path(
    annotations: dict[str, str], name: str, reason: str
) -> None:
    found, problems = translated(made("HTTPRoute", ROUTE, **annotations))
    assert len(problems) == 1
    assert problems[0].startswith(f"metadata.annotations.{name}: ")
    assert reason in problems[0]
    (only,) = found[f"{key('reviews')}:0"].rules
    assert (only.retry, only.request_timeout_s) == (None, None)


# --- failure accrual

ACCRUAL = "balancer.linkerd.io/failure-accrual"


def outliers(**annotations: str) -> tuple[OutlierDetection | None, list[str]]:
    obj = service(**{ACCRUAL + name.replace("_", "-"): value for name, value in annotations.items()})
    world = World({obj.key: obj}, Options())
    found = translate_destination_rules(world, SERVICES)
    policy = found.get(str(key("reviews")))
    return policy.policy.outliers if policy else None, [problem.reason for problem in world.problems]


def test_a_failure_accrual_is_an_outlier_detection() -> None:
    assert outliers(**{"": "consecutive"}) == (
        OutlierDetection(consecutive_5xx=7, base_ejection_s=1, max_ejection_s=60, max_ejection_percent=100),
        [],
    )
    assert outliers(
        **{
            "": "consecutive",
            "_consecutive_max_failures": "3",
            "_consecutive_min_penalty": "5s",
            "_consecutive_max_penalty": "10s",
        }
    )[0] == OutlierDetection(
        consecutive_5xx=3, base_ejection_s=5, max_ejection_s=10, max_ejection_percent=100
    )


@pytest.mark.parametrize(
    "annotations",
    [
        {"": "success-rate"},
        {"": "consecutive", "_consecutive_max_failures": "0"},
        {"": "consecutive", "_consecutive_min_penalty": "2m"},
        {"": "consecutive", "_consecutive_max_penalty": "x"},
    ],
)
def test_an_accrual_that_cannot_be_read_ejects_nothing_and_says_so(annotations: dict[str, str]) -> None:
    found, problems = outliers(**annotations)
    assert found is None
    assert problems[0].endswith("no endpoint is ever ejected")


def test_a_destination_rule_comes_before_the_accrual() -> None:
    rule_ = made("DestinationRule", "host: reviews", "networking.istio.io/v1")
    obj = service(**{ACCRUAL: "consecutive"})
    world = World({each.key: each for each in (rule_, obj)}, Options())
    found = translate_destination_rules(world, SERVICES)
    assert found[str(key("reviews"))].policy.outliers is None
    assert "comes first; no effect" in world.problems[0].reason


NAMES = [
    f"{kind}.linkerd.io/{name}" for kind in ("retry", "timeout") for name in ("http", "limit", "request")
]


@given(
    st.dictionaries(st.sampled_from([*NAMES, ACCRUAL]), st.sampled_from(["5xx", "1", "1s", "", "é"])),
    st.booleans(),
)
def test_any_annotations_are_translated_or_reported(annotations: dict[str, Any], routed: bool) -> None:
    objects = [service(**annotations)] + ([made("HTTPRoute", ROUTE, **annotations)] if routed else [])
    assert translated(*objects) == translated(*objects)
    for table in translated(*objects)[0].values():
        assert encode_route_table(table)
