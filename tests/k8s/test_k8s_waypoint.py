# SPDX-License-Identifier: Apache-2.0
"""A Gateway of class istio-waypoint on a cluster: its pod, its routes, its policies."""

from __future__ import annotations

from typing import Any

from tests.k8s.bed import Space, get, kubectl, ok
from tests.k8s.test_k8s_traffic import enrolled
from tests.support.eventually import eventually

GATEWAY_API = "gateway.networking.k8s.io/v1"
WEB = {"group": "", "kind": "Service", "name": "web"}


def waypoint(space: Space) -> None:
    """Put a waypoint before the services of a namespace, and wait until it is programmed."""
    ok(kubectl("label", "namespace", space.name, "istio.io/use-waypoint=waypoint"))
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    spec = {"gatewayClassName": "istio-waypoint", "listeners": [listener]}
    space.apply("Gateway", GATEWAY_API, "waypoint", spec)
    condition = ["wait", "gateway", "waypoint", "--for=condition=Programmed", "--timeout=60s"]
    ok(kubectl("-n", space.name, *condition, timeout_s=70))


def accepted(space: Space, kind: str, name: str) -> bool:
    """Whether the status of a route tells that it is in force."""
    status: dict[str, Any] = get(kind, name, "-n", space.name).get("status", {})
    conditions = [c for parent in status.get("parents", ()) for c in parent["conditions"]]
    return {c["type"] for c in conditions if c["status"] == "True"} >= {"Accepted", "ResolvedRefs"}


def test_routes_and_policies_of_requests_hold_between_nodes(space: Space) -> None:
    waypoint(space)
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    header = {"add": [{"name": "x-route", "value": "taken"}]}
    rule = {
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": header}],
        "backendRefs": [{"name": "web", "port": 80}],
    }
    space.apply("HTTPRoute", GATEWAY_API, "web", {"parentRefs": [WEB | {"port": 80}], "rules": [rule]})
    eventually(lambda: accepted(space, "httproute", "web"), "the route's status says that it is accepted")
    eventually(
        lambda: "x-route: taken" in space.curl("client", "http://web/", "-i").out, "the route is taken"
    )
    policy = {
        "targetRefs": [WEB],
        "action": "ALLOW",
        "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}],
    }
    space.apply("AuthorizationPolicy", "security.istio.io/v1", "gets", policy)
    status = ("-X", "POST", "-o", "/dev/null", "-w", "%{http_code}")
    eventually(lambda: space.curl("client", "http://web/", *status).out == "403", "a POST is refused")
    assert "x-route: taken" in ok(space.curl("client", "http://web/", "-i"))


def test_a_waypoint_goes_with_its_gateway(space: Space) -> None:
    waypoint(space)
    owned = ("deployment,service,serviceaccount", "-n", space.name, "-l", "gateway.istio.io/managed")
    assert {item["kind"] for item in get(*owned)["items"]} == {"Deployment", "Service", "ServiceAccount"}
    ok(kubectl("-n", space.name, "delete", "gateway", "waypoint"))
    eventually(lambda: not get(*owned)["items"], "what ran the waypoint is gone")
