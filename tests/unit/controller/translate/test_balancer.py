# SPDX-License-Identifier: Apache-2.0
"""The balancer that a Service asks for, alone and beside a DestinationRule."""

from __future__ import annotations

import yaml

from controller.translate.destination_rule import translate_destination_rules
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.destination import Balancer, DestinationPolicy
from tests.support.dialects import SERVICES, key

REVIEWS = str(key("reviews"))


def service(value: str, **annotations: str) -> RawObject:
    annotations["ambit.io/load-balancer"] = value
    metadata = {"name": "reviews", "namespace": "app", "annotations": annotations}
    return make_object({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})


def rule(spec: str) -> RawObject:
    metadata = {"name": "r", "namespace": "app"}
    api = "networking.istio.io/v1"
    return make_object(
        {"apiVersion": api, "kind": "DestinationRule", "metadata": metadata, "spec": yaml.safe_load(spec)}
    )


def translated(*objects: RawObject) -> tuple[dict[str, DestinationPolicy], list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    return translate_destination_rules(world, SERVICES), [str(problem) for problem in world.problems]


def test_a_service_names_its_balancer() -> None:
    for text, balancer in (("peak-ewma", Balancer.PEAK_EWMA), ("round-robin", Balancer.ROUND_ROBIN)):
        found, problems = translated(service(text))
        assert problems == []
        assert list(found) == [REVIEWS]
        assert found[REVIEWS].policy.balancing.balancer is balancer
        assert found[REVIEWS].sources == ("Service/app/reviews",)


def test_what_a_destination_rule_says_comes_first() -> None:
    spec = """
host: reviews
trafficPolicy:
  portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]
subsets: [{name: v1, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}, {name: v2}]
"""
    found, _ = translated(service("peak-ewma"), rule(spec))
    policy = found[REVIEWS]
    assert policy.sources == ("DestinationRule/app/r", "Service/app/reviews")
    at = {
        place: found_.balancing.balancer
        for place in ((80, ""), (81, ""), (81, "v1"), (81, "v2"))
        if (found_ := policy.find(*place)) is not None
    }
    assert at == {
        (80, ""): Balancer.RANDOM,
        (81, ""): Balancer.PEAK_EWMA,
        (81, "v1"): Balancer.ROUND_ROBIN,
        (81, "v2"): Balancer.PEAK_EWMA,
    }


def test_a_value_that_is_none_changes_nothing_and_says_so() -> None:
    found, problems = translated(service("fastest"))
    assert found == {}
    assert "the balancer is that of the DestinationRule, or least-request" in problems[0]
    assert "ambit.io/load-balancer" in problems[0]


def test_linkerds_services_are_balanced_as_linkerd_does() -> None:
    accrual = {"balancer.linkerd.io/failure-accrual": "consecutive"}
    metadata = {"name": "reviews", "namespace": "app", "annotations": accrual}
    obj = make_object({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})
    assert translated(obj)[0][REVIEWS].policy.balancing.balancer is Balancer.PEAK_EWMA
