# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways: which listeners are served, which routes attach to them, what everybody is told."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.ingress import shared_hostname
from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import make_object
from mesh.model.gateway import GatewayListener, IngressGateway, ListenerProtocol

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: ambit
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: "*.example.com"
    tls: {certificateRefs: [{name: front-cert}]}
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.96.0.30, ports: [{port: 80}]}
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: front}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: front-1, namespace: shop, uid: u1, labels: {gateway.networking.k8s.io/gateway-name: front}}
spec: {nodeName: n1, serviceAccountName: front-ambit}
status: {podIP: 10.244.0.9, conditions: [{type: Ready, status: 'True'}]}
"""
OWN = """
apiVersion: v1
kind: Service
metadata: {name: front-ambit, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: front}}
spec: {type: ClusterIP, clusterIP: 10.96.0.21, ports: [{port: 80}]}
"""
GRANT = """
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service, name: far}]
"""


def mesh_of(*texts: str) -> Mesh:
    objects = [make_object(data) for text in texts for data in yaml.safe_load_all(text)]
    return translate({obj.key: obj for obj in objects}, Options())


def changed(text: str, path: str, value: Any) -> str:
    """The object with one part of it replaced; steps of the path are joined by dots."""
    data = yaml.safe_load(text)
    *steps, last = path.split(".")
    found: Any = data
    for step in steps:
        found = found[int(step)] if isinstance(found, list) else found.setdefault(step, {})
    found[int(last) if isinstance(found, list) else last] = value
    return yaml.safe_dump(data)


def front(mesh: Mesh) -> IngressGateway:
    return mesh.gateways["shop/front"]


def hosts(mesh: Mesh) -> dict[str, list[str]]:
    """Hostnames by listener."""
    return {listener.name: [host.hostname for host in listener.hosts] for listener in front(mesh).listeners}


def parents(mesh: Mesh, name: str = "web") -> list[dict[str, tuple[str, str]]]:
    """Conditions of a route's parents, (status, reason) by type."""
    (status,) = [s.status for s in mesh.statuses if s.obj.kind.endswith("Route") and s.obj.name == name]
    return [
        {c["type"]: (c["status"], c["reason"]) for c in parent["conditions"]} for parent in status["parents"]
    ]


def told(mesh: Mesh) -> dict[str, Any]:
    """The gateway's status."""
    (status,) = [s.status for s in mesh.statuses if s.obj.kind == "Gateway"]
    return dict(status)


def conditions(of: Any) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in of["conditions"]}


def test_listeners_name_the_directories_of_their_certificates() -> None:
    assert front(mesh_of(GATEWAY)).listeners == (
        GatewayListener(name="http", port=80, protocol=ListenerProtocol.HTTP),
        GatewayListener(
            name="https",
            port=443,
            protocol=ListenerProtocol.HTTPS,
            hostname="*.example.com",
            certificates=("/var/run/secrets/listeners/front-cert",),
        ),
    )


def test_a_class_is_ours_by_name_or_by_its_controller() -> None:
    other = changed(GATEWAY, "spec.gatewayClassName", "edge")
    owned = """
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: edge}
spec: {controllerName: CONTROLLER}
"""
    ours = owned.replace("CONTROLLER", "ambit.io/gateway-controller")
    assert not mesh_of(other).gateways
    mesh = mesh_of(other, ours)
    assert "shop/front" in mesh.gateways
    (status,) = [s.status for s in mesh.statuses if s.obj.kind == "GatewayClass"]
    assert conditions(status)["Accepted"] == ("True", "Accepted")
    assert not mesh_of(other, owned.replace("CONTROLLER", "example.com/other")).gateways
    taken = owned.replace("CONTROLLER", "example.com/other").replace("name: edge", "name: istio")
    assert not mesh_of(changed(GATEWAY, "spec.gatewayClassName", "istio"), taken).gateways


def test_a_route_attaches_where_hostnames_meet() -> None:
    mesh = mesh_of(GATEWAY, SERVICES, ROUTE)
    assert hosts(mesh) == {"http": ["a.example.com"], "https": ["a.example.com"]}
    (rule,) = front(mesh).listeners[0].hosts[0].rules
    assert rule.source == "HTTPRoute/shop/web#0"
    assert [str(b.service) for b in rule.backends] == ["shop/web.shop.svc.cluster.local"]
    assert parents(mesh) == [{"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}]


def test_a_route_without_hostnames_is_for_those_of_the_listener() -> None:
    route = changed(ROUTE, "spec.hostnames", [])
    assert hosts(mesh_of(GATEWAY, SERVICES, route)) == {"http": ["*"], "https": ["*.example.com"]}


@pytest.mark.parametrize(
    ("listener", "route", "shared"),
    [
        ("*", "*", "*"),
        ("*", "a.x", "a.x"),
        ("a.x", "*", "a.x"),
        ("a.x", "a.x", "a.x"),
        ("a.x", "b.x", ""),
        ("*.x", "a.x", "a.x"),
        ("*.x", "a.b.x", "a.b.x"),
        ("*.x", "x", ""),
        ("*.x", "ax", ""),
        ("a.x", "*.x", "a.x"),
        ("*.x", "*.b.x", "*.b.x"),
        ("*.b.x", "*.x", "*.b.x"),
        ("*.a.x", "*.b.x", ""),
    ],
)
def test_shared_hostnames(listener: str, route: str, shared: str) -> None:
    assert shared_hostname(listener, route) == shared


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ({"name": "front", "sectionName": "http"}, "Accepted"),
        ({"name": "front", "port": 443}, "Accepted"),
        ({"name": "front", "sectionName": "none"}, "NoMatchingParent"),
        ({"name": "front", "sectionName": "http", "port": 443}, "NoMatchingParent"),
    ],
)
def test_a_parent_names_a_listener_or_a_port(parent: dict[str, object], reason: str) -> None:
    mesh = mesh_of(GATEWAY, SERVICES, changed(ROUTE, "spec.parentRefs", [parent]))
    assert parents(mesh)[0]["Accepted"][1] == reason
    assert sum(map(len, hosts(mesh).values())) == (reason == "Accepted")


def test_hostnames_that_do_not_meet_are_told() -> None:
    route = changed(ROUTE, "spec.parentRefs.0.sectionName", "https")
    mesh = mesh_of(GATEWAY, SERVICES, changed(route, "spec.hostnames", ["a.example.org"]))
    assert parents(mesh)[0]["Accepted"] == ("False", "NoMatchingListenerHostname")
    assert any("no listener of Gateway shop/front is for a.example.org" in p.reason for p in mesh.problems)


@pytest.mark.parametrize(
    ("namespaces", "attached"),
    [
        (None, False),
        ({"from": "Same"}, False),
        ({"from": "None"}, False),
        ({"from": "All"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"edge": "yes"}}}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"edge": "no"}}}, False),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "edge", "operator": "In", "values": ["yes"]}]},
            },
            True,
        ),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "edge", "operator": "DoesNotExist"}]},
            },
            False,
        ),
    ],
)
def test_a_listener_says_whose_routes_it_takes(namespaces: object, attached: bool) -> None:
    gateway = changed(GATEWAY, "spec.listeners.0.allowedRoutes", {"namespaces": namespaces})
    route = changed(ROUTE, "metadata.namespace", "other").replace("name: front", "name: front")
    route = changed(route, "spec.parentRefs", [{"name": "front", "namespace": "shop", "sectionName": "http"}])
    labelled = "{apiVersion: v1, kind: Namespace, metadata: {name: other, labels: {edge: 'yes'}}}"
    mesh = mesh_of(gateway, SERVICES, labelled, route)
    assert hosts(mesh)["http"] == (["a.example.com"] if attached else [])
    expected = ("True", "Accepted") if attached else ("False", "NotAllowedByListeners")
    assert parents(mesh)[0]["Accepted"] == expected


def test_rules_of_several_routes_stand_in_order() -> None:
    longer = changed(ROUTE, "metadata.name", "longer")
    longer = changed(longer, "spec.rules.0.matches", [{"path": {"type": "PathPrefix", "value": "/a"}}])
    (host,) = front(mesh_of(GATEWAY, SERVICES, ROUTE, longer)).listeners[0].hosts
    assert [rule.source for rule in host.rules] == ["HTTPRoute/shop/longer#0", "HTTPRoute/shop/web#0"]


def test_a_backend_of_another_namespace_needs_a_grant() -> None:
    route = changed(ROUTE, "spec.rules.0.backendRefs", [{"name": "far", "namespace": "other", "port": 80}])
    mesh = mesh_of(GATEWAY, SERVICES, route)
    assert parents(mesh)[0]["ResolvedRefs"] == ("False", "RefNotPermitted")
    (rule,) = front(mesh).listeners[0].hosts[0].rules
    assert [(b.service, b.problem_status) for b in rule.backends] == [(None, 500)]
    granted = mesh_of(GATEWAY, SERVICES, route, GRANT)
    assert parents(granted)[0]["ResolvedRefs"] == ("True", "ResolvedRefs")
    refused = mesh_of(GATEWAY, SERVICES, route, GRANT.replace("name: far", "name: near"))
    assert parents(refused)[0]["ResolvedRefs"] == ("False", "RefNotPermitted")


@pytest.mark.parametrize(
    ("path", "value", "condition", "reason", "at"),
    [
        ("protocol", "TLS", "Accepted", "UnsupportedProtocol", "protocol"),
        ("protocol", "TCP", "Accepted", "UnsupportedProtocol", "protocol"),
        ("port", 15021, "Accepted", "PortUnavailable", "port"),
        ("port", 0, "Accepted", "UnsupportedValue", "port"),
        ("hostname", "not a name", "Accepted", "UnsupportedValue", "hostname"),
        ("tls.mode", "Passthrough", "Accepted", "UnsupportedValue", "mode"),
        ("tls.frontendValidation", {"caCertificateRefs": []}, "Accepted", "UnsupportedValue", "frontendV"),
        ("tls.certificateRefs", [], "ResolvedRefs", "InvalidCertificateRef", "certificateRefs"),
        ("tls.certificateRefs.0.kind", "Pod", "ResolvedRefs", "InvalidCertificateRef", "certificateRefs"),
        ("tls.certificateRefs.0.namespace", "other", "ResolvedRefs", "RefNotPermitted", "namespace"),
        ("allowedRoutes", {"kinds": [{"kind": "TCPRoute"}]}, "ResolvedRefs", "InvalidRouteKinds", "allowed"),
        ("port", 80, "Conflicted", "ProtocolConflict", "listeners"),
        ("name", "http", "Conflicted", "HostnameConflict", "listeners"),
    ],
)
def test_a_listener_that_cannot_be_served_says_why(
    path: str, value: object, condition: str, reason: str, at: str
) -> None:
    mesh = mesh_of(changed(GATEWAY, f"spec.listeners.1.{path}", value))
    assert [listener.name for listener in front(mesh).listeners] == ["http"]
    status = told(mesh)
    found = conditions(status["listeners"][1])
    assert found[condition] == ("True" if condition == "Conflicted" else "False", reason)
    assert found["Programmed"] == ("False", "Invalid")
    assert conditions(status)["Accepted"] == ("True", "ListenersNotValid")
    assert any(at in str(p.path) and p.severity == "error" for p in mesh.problems)


def test_a_secret_of_another_namespace_is_not_served_even_with_a_grant() -> None:
    grant = GRANT.replace("HTTPRoute", "Gateway").replace("Service, name: far", "Secret")
    gateway = changed(GATEWAY, "spec.listeners.1.tls.certificateRefs.0.namespace", "other")
    mesh = mesh_of(gateway, grant)
    found = conditions(told(mesh)["listeners"][1])
    assert found["ResolvedRefs"] == ("False", "InvalidCertificateRef")


def test_client_certificates_for_all_listeners_close_those_with_tls() -> None:
    mesh = mesh_of(changed(GATEWAY, "spec.tls", {"frontend": {"default": {"validation": {}}}}))
    assert [listener.name for listener in front(mesh).listeners] == ["http"]


@pytest.mark.parametrize("kind", ["TCPRoute", "TLSRoute"])
def test_routes_of_connections_do_not_attach(kind: str) -> None:
    route = ROUTE.replace("HTTPRoute", kind).replace(
        "gateway.networking.k8s.io/v1", f"{'gateway.networking.k8s.io'}/v1alpha2"
    )
    assert parents(mesh_of(GATEWAY, SERVICES, route))[0]["Accepted"] == ("False", "NotAllowedByListeners")


def test_a_route_of_a_service_and_a_gateway_has_both_parents() -> None:
    both = [{"group": "", "kind": "Service", "name": "web"}, {"name": "front"}]
    broken = changed(ROUTE, "spec.parentRefs", both)
    broken = changed(broken, "spec.rules.0.backendRefs.0.name", "gone")
    mesh = mesh_of(GATEWAY, SERVICES, broken)
    assert [p["Accepted"][0] for p in parents(mesh)] == ["True", "True"]
    assert [p["ResolvedRefs"] for p in parents(mesh)] == [("False", "BackendNotFound")] * 2
    assert len(mesh.routes) == 1


def test_the_gateway_says_what_became_of_it() -> None:
    waiting = told(mesh_of(GATEWAY, OWN))
    assert conditions(waiting)["Programmed"] == ("False", "NoResources")
    mesh = mesh_of(GATEWAY, SERVICES, ROUTE, OWN, POD)
    status = told(mesh)
    assert status["addresses"] == [{"type": "Hostname", "value": "front-ambit.shop.svc.cluster.local"}]
    assert conditions(status) == {"Accepted": ("True", "Accepted"), "Programmed": ("True", "Programmed")}
    assert [listener["attachedRoutes"] for listener in status["listeners"]] == [1, 1]
    assert {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute"} in status["listeners"][0][
        "supportedKinds"
    ]
    assert mesh.waypoint_pods == {("shop", "front-1", "u1")}


def test_a_load_balancer_gives_the_address() -> None:
    service = changed(OWN, "spec.type", "LoadBalancer")
    pending = told(mesh_of(GATEWAY, service, POD))
    assert conditions(pending)["Programmed"] == ("False", "AddressNotAssigned")
    given = changed(service, "status", {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})
    status = told(mesh_of(GATEWAY, given, POD))
    assert status["addresses"] == [{"type": "IPAddress", "value": "192.0.2.1"}]
    assert conditions(status)["Programmed"] == ("True", "Programmed")


def derived(mesh: Mesh) -> dict[str, dict[str, Any]]:
    return {data["kind"]: data for data in mesh.derived}


def test_what_runs_it_mounts_certificates_and_opens_its_ports() -> None:
    gateway = changed(GATEWAY, "metadata.annotations", {"networking.istio.io/service-type": "ClusterIP"})
    found = derived(mesh_of(gateway))
    assert {data["metadata"]["name"] for data in found.values()} == {"front-ambit"}
    service = found["Service"]["spec"]
    assert service["type"] == "ClusterIP"
    assert [(port["name"], port["port"]) for port in service["ports"]] == [
        ("status-port", 15021),
        ("http-80", 80),
        ("https-443", 443),
    ]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "front-ambit"
    (container,) = pod["containers"]
    assert {"name": "GATEWAY_MODE", "value": "ingress"} in container["env"]
    (secret,) = [volume for volume in pod["volumes"] if "secret" in volume]
    assert secret["secret"] == {"secretName": "front-cert", "defaultMode": 0o440, "optional": True}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == secret["name"]]
    assert mount["mountPath"] == "/var/run/secrets/listeners/front-cert"


def test_without_an_annotation_it_is_a_load_balancer() -> None:
    assert derived(mesh_of(GATEWAY))["Service"]["spec"]["type"] == "LoadBalancer"
    wrong = changed(GATEWAY, "metadata.annotations", {"networking.istio.io/service-type": "Pigeon"})
    mesh = mesh_of(wrong)
    assert derived(mesh)["Service"]["spec"]["type"] == "LoadBalancer"
    assert any("none of LoadBalancer" in p.reason for p in mesh.problems)


def test_what_another_controller_runs_is_left_to_it() -> None:
    labels = {
        "gateway.networking.k8s.io/gateway-name": "front",
        "gateway.istio.io/managed": "istio.io-gateway-controller",
    }
    mesh = mesh_of(GATEWAY, changed(OWN, "metadata.labels", labels))
    assert set(derived(mesh)) == {"ServiceAccount", "Deployment"}
    assert any("another controller's" in p.reason for p in mesh.problems)


def test_a_gateway_without_a_served_listener_is_not_run() -> None:
    mesh = mesh_of(changed(GATEWAY, "spec.listeners", [{"name": "raw", "port": 1, "protocol": "UDP"}]))
    assert not mesh.derived
    assert conditions(told(mesh))["Accepted"] == ("False", "ListenersNotValid")


def test_fields_that_are_not_honoured_are_told() -> None:
    mesh = mesh_of(changed(GATEWAY, "spec.addresses", [{"value": "192.0.2.1"}]))
    assert any(p.path == ("spec", "addresses") and "not honoured" in p.reason for p in mesh.problems)


def test_only_labelled_services_with_a_waypoint_are_reached_through_it() -> None:
    waypoint = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}
"""
    own = OWN.replace("front-ambit", "wp").replace("gateway-name: front", "gateway-name: wp")
    pod = POD.replace("front", "wp")
    service = changed(SERVICES.partition("---")[0], "metadata.labels", {"istio.io/use-waypoint": "wp"})
    assert front(mesh_of(GATEWAY, waypoint, own, pod, service, ROUTE)).through_waypoint == ()
    labels = {"istio.io/use-waypoint": "wp", "istio.io/ingress-use-waypoint": "true"}
    service = changed(service, "metadata.labels", labels)
    found = front(mesh_of(GATEWAY, waypoint, own, pod, service, ROUTE)).through_waypoint
    assert [str(key) for key in found] == ["shop/web.shop.svc.cluster.local"]


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  action: DENY
  rules: [{to: [{operation: {paths: [/admin*]}}]}]
"""


def test_a_policy_may_be_for_an_ingress_gateway() -> None:
    mesh = mesh_of(GATEWAY, POLICY)
    assert mesh.http_policies["shop/no-admin"].waypoints == ("shop/front",)
    (status,) = [s.status for s in mesh.statuses if s.obj.kind == "AuthorizationPolicy"]
    assert conditions(status)["WaypointAccepted"] == ("True", "Accepted")
    foreign = mesh_of(changed(GATEWAY, "spec.gatewayClassName", "nginx"), POLICY)
    (status,) = [s.status for s in foreign.statuses if s.obj.kind == "AuthorizationPolicy"]
    assert conditions(status)["WaypointAccepted"] == ("False", "Invalid")
