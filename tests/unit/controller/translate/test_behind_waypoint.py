# SPDX-License-Identifier: Apache-2.0
"""L4 policies that were right without a waypoint and shut it out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.mesh import Options, translate
from mesh.config.objects import make_object

OBJECTS = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec:
  clusterIP: 10.96.0.21
  ports: [{port: 15008}]
  selector: {gateway.networking.k8s.io/gateway-name: wp}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, uid: u1, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: n1, serviceAccountName: wp}
status: {podIP: 10.244.0.9, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u2, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.244.0.8, conditions: [{type: Ready, status: 'True'}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80, targetPort: 8080}], selector: {app: web}}
"""


def warnings(spec: Any, namespace: str = "shop", service: str = SERVICE) -> list[str]:
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": spec,
    }
    objects = [make_object(d) for d in (*yaml.safe_load_all(OBJECTS), yaml.safe_load(service), policy)]
    found = translate({obj.key: obj for obj in objects}, Options())
    return [p.reason for p in found.problems if p.key.kind == "AuthorizationPolicy"]


def allow(*principals: str, **more: Any) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": {"principals": list(principals)}}]}]} | more


CLIENT, WAYPOINT = "cluster.local/ns/shop/sa/client", "cluster.local/ns/shop/sa/wp"
WEB = {"selector": {"matchLabels": {"app": "web"}}}


@pytest.mark.parametrize(
    ("spec", "namespace"),
    [
        (allow(CLIENT, **WEB), "shop"),
        (allow(CLIENT), "shop"),
        (allow(CLIENT), "istio-system"),
        ({}, "shop"),
        (allow(WAYPOINT, action="DENY"), "shop"),
        ({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}, "shop"),
    ],
)
def test_a_policy_that_refuses_the_waypoint_is_told(spec: Any, namespace: str) -> None:
    (reason,) = warnings(spec, namespace)
    assert "waypoint shop/wp.shop.svc.cluster.local are refused at web-1" in reason
    assert f"allow principal {WAYPOINT}" in reason


@pytest.mark.parametrize(
    "spec",
    [
        allow(CLIENT, WAYPOINT, **WEB),
        allow(CLIENT, action="DENY"),
        allow(CLIENT, selector={"matchLabels": {"app": "other"}}),
        {"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]},
        {"rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]},
    ],
)
def test_one_that_lets_it_through_is_not(spec: Any) -> None:
    assert warnings(spec) == []


def test_without_a_waypoint_there_is_nothing_to_tell() -> None:
    assert warnings(allow(CLIENT), service=SERVICE.replace("use-waypoint: wp", "use-waypoint: none")) == []


def test_many_workloads_are_one_warning() -> None:
    more = "".join(
        f"""---
apiVersion: v1
kind: Pod
metadata: {{name: web-{n}, namespace: shop, uid: w{n}, labels: {{app: web}}}}
spec: {{nodeName: n1}}
status: {{podIP: 10.244.1.{n}, conditions: [{{type: Ready, status: 'True'}}]}}
"""
        for n in range(2, 7)
    )
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": allow(CLIENT),
    }
    text = OBJECTS + more
    objects = [make_object(d) for d in (*yaml.safe_load_all(text), yaml.safe_load(SERVICE), policy)]
    found = translate({obj.key: obj for obj in objects}, Options())
    (reason,) = (p.reason for p in found.problems if p.key.kind == "AuthorizationPolicy")
    assert "at web-1, web-2, web-3 and 3 more" in reason
