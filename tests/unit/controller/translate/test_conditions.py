# SPDX-License-Identifier: Apache-2.0
"""What policies, services and classes are told in their statuses."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.mesh import Options, translate
from mesh.config.objects import make_object

API = "gateway.networking.k8s.io"
GATEWAY = f"""
apiVersion: {API}/v1
kind: Gateway
metadata: {{name: wp, namespace: shop}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
status: {{addresses: [{{type: Hostname, value: wp.shop.svc.cluster.local}}]}}
"""


def service(labels: str = "{istio.io/use-waypoint: wp}", conditions: str = "[]", name: str = "web") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {labels}, generation: 2}}
spec: {{clusterIP: 10.96.0.20, ports: [{{port: 80}}]}}
status: {{loadBalancer: {{}}, conditions: {conditions}}}
"""


def statuses(*documents: Any) -> dict[str, Any]:
    """Statuses by `Kind/name`."""
    given = [d for text in documents for d in (yaml.safe_load_all(text) if isinstance(text, str) else [text])]
    objects = [make_object(data) for data in given]
    found = translate({obj.key: obj for obj in objects}, Options())
    return {f"{s.obj.kind}/{s.obj.name}": s.status for s in found.statuses}


def conditions(status: Any) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def policy(spec: Any, namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": namespace, "generation": 5},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("{istio.io/use-waypoint: wp}", ("True", "WaypointAccepted")),
        ("{istio.io/use-waypoint: gone}", ("False", "WaypointIsNotReady")),
        (
            "{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: other}",
            ("False", "AttachmentDenied"),
        ),
    ],
)
def test_a_service_is_told_whether_it_is_bound(labels: str, expected: tuple[str, str]) -> None:
    other = GATEWAY.replace("namespace: shop", "namespace: other")
    found = statuses(GATEWAY, other, service(labels))["Service/web"]
    assert conditions(found) == {"istio.io/WaypointBound": expected}
    assert found["conditions"][0]["observedGeneration"] == 2
    assert found["loadBalancer"] == {}, "what others wrote is kept"


def test_a_service_of_another_type_of_traffic() -> None:
    for_workloads = GATEWAY.replace(
        "namespace: shop", "namespace: shop, labels: {istio.io/waypoint-for: workload}"
    )
    found = statuses(for_workloads, service())["Service/web"]
    assert conditions(found) == {"istio.io/WaypointBound": ("False", "UnsupportedTrafficType")}


def test_a_canary_that_is_not_attached_is_told_beside() -> None:
    labels = "{istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: gone}"
    (condition,) = statuses(GATEWAY, service(labels))["Service/web"]["conditions"]
    assert condition["status"] == "True"
    assert "Canary waypoint not attached: waypoint shop/gone" in condition["message"]


def test_the_condition_goes_with_the_label_and_those_of_others_stay() -> None:
    theirs = "{type: Theirs, status: 'True', reason: r, message: m, lastTransitionTime: t}"
    ours = "{type: istio.io/WaypointBound, status: 'True', reason: WaypointAccepted, message: m}"
    assert "Service/web" not in statuses(service("{}", f"[{theirs}]"))
    found = statuses(service("{}", f"[{theirs}, {ours}]"))["Service/web"]
    assert found["conditions"] == [yaml.safe_load(theirs)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ("True", "Accepted")),
        ({"selector": {"matchLabels": {"a": "b"}}}, ("True", "Accepted")),
        ({"action": "CUSTOM", "provider": {"name": "x"}}, ("False", "UnsupportedValue")),
        ({"action": "AUDIT"}, ("False", "UnsupportedValue")),
        ({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}, ("True", "UnsupportedValue")),
        (
            {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"], "paths": ["/a"]}}]}]},
            ("True", "UnsupportedValue"),
        ),
        ({"action": "PERHAPS"}, ("False", "Invalid")),
    ],
)
def test_a_policy_of_ztunnel(spec: Any, expected: tuple[str, str]) -> None:
    found = statuses(policy(spec))["AuthorizationPolicy/p"]
    assert conditions(found) == {"ZtunnelAccepted": expected}
    assert found["conditions"][0]["observedGeneration"] == 5


WEB = {"kind": "Service", "name": "web"}
GONE = {"kind": "Service", "name": "gone"}


@pytest.mark.parametrize(
    ("spec", "expected", "words"),
    [
        ({"targetRefs": [WEB]}, ("True", "Accepted"), "bound to shop/wp"),
        (
            {"targetRefs": [{"group": API, "kind": "Gateway", "name": "wp"}]},
            ("True", "Accepted"),
            "bound to shop/wp",
        ),
        ({"targetRefs": [GONE]}, ("False", "TargetNotFound"), "gone"),
        ({"targetRefs": [WEB, GONE]}, ("True", "PartiallyInvalid"), "gone"),
        ({"targetRefs": [{"kind": "Service", "name": "bare"}]}, ("False", "AncestorNotBound"), "bare"),
        (
            {"targetRefs": [{"group": API, "kind": "GatewayClass", "name": "istio-waypoint"}]},
            ("False", "Invalid"),
            "istio-system",
        ),
        ({"targetRefs": "web"}, ("False", "Invalid"), "must be a list"),
        ({"targetRefs": [WEB], "rules": 5}, ("False", "Invalid"), "nothing is allowed"),
    ],
)
def test_a_policy_of_waypoints(spec: Any, expected: tuple[str, str], words: str) -> None:
    bare = service("{istio.io/use-waypoint: none}", name="bare")
    found = statuses(GATEWAY, service(), bare, policy(spec))["AuthorizationPolicy/p"]
    assert conditions(found) == {"WaypointAccepted": expected}
    assert words in found["conditions"][0]["message"]


@pytest.mark.parametrize("controller", ["istio.io/mesh-controller", "example.com/other"])
def test_a_class_of_ours_is_accepted(controller: str) -> None:
    data = {
        "apiVersion": f"{API}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "istio-waypoint", "generation": 1},
        "spec": {"controllerName": controller},
    }
    found = statuses(data)
    if controller == "istio.io/mesh-controller":
        assert conditions(found["GatewayClass/istio-waypoint"]) == {"Accepted": ("True", "Accepted")}
    else:
        assert found == {}
