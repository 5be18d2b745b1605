# SPDX-License-Identifier: Apache-2.0
"""Service and EndpointSlice: addresses, ports, preferences and who is an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from controller.translate.services import app_protocol
from mesh.config.objects import make_object
from mesh.model.address import parse_ip
from mesh.model.service import (
    AppProtocol,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    Service,
    ServicePort,
)
from mesh.model.workload import NamespacedHostname

KEY = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
CLOSE = (LoadBalancingScope.NETWORK, LoadBalancingScope.REGION, LoadBalancingScope.ZONE)


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": ports, **spec},
    }


def pod(name: str, ip: str, *, ready: bool = True, named: int = 0, **labels: str) -> dict[str, Any]:
    ports = [{"name": "main", "containerPort": named}] if named else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def endpoint_slice(*endpoints: dict[str, Any], owner: str = "web", ports: Any = None) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-x1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": owner},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": ports if ports is not None else [{"name": "http", "port": 8080}],
    }


def behind(name: str, **conditions: Any) -> dict[str, Any]:
    return {
        "addresses": ["10.0.0.9"],
        "targetRef": {"kind": "Pod", "name": name},
        "conditions": conditions,
    }


def mesh_of(*objects: dict[str, Any]) -> Mesh:
    made = [make_object(data) for data in objects]
    return translate({obj.key: obj for obj in made}, Options())


def service_of(**spec: Any) -> Service:
    return mesh_of(service(**spec)).services[KEY]


def endpoints_of(mesh: Mesh, key: NamespacedHostname = KEY) -> dict[str, dict[int, int]]:
    return {w.name: dict(w.services[key].ports) for w in mesh.workloads.values() if key in w.services}


def addresses(found: Service) -> list[str]:
    return [str(entry.address) for entry in found.addresses]


def test_service() -> None:
    found = service_of()
    assert found.key == KEY
    assert found.canonical
    assert addresses(found) == ["10.96.0.1"]
    assert found.ports == (ServicePort(service_port=80, target_port=8080, app_protocol=AppProtocol.HTTP11),)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"clusterIP": "None"}, []),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, []),
        ({"clusterIPs": ["10.96.0.1", "fd00::1"]}, ["10.96.0.1", "fd00::1"]),
    ],
)
def test_virtual_addresses(spec: Any, expected: list[str]) -> None:
    assert addresses(service_of(**spec)) == expected


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ([], IpFamilies.AUTOMATIC),
        (["IPv4"], IpFamilies.IPV4_ONLY),
        (["IPv6"], IpFamilies.IPV6_ONLY),
        (["IPv4", "IPv6"], IpFamilies.DUAL),
    ],
)
def test_families(families: list[str], expected: IpFamilies) -> None:
    assert service_of(ipFamilies=families).ip_families is expected


@pytest.mark.parametrize(
    ("port", "target"),
    [({"port": 80}, 80), ({"port": 80, "targetPort": 1}, 1), ({"port": 80, "targetPort": "main"}, 0)],
)
def test_target_port(port: Any, target: int) -> None:
    assert service_of(ports=[port]).ports[0].target_port == target


def test_datagram_ports_are_not_served() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]
    found = service_of(ports=ports)
    assert [port.service_port for port in found.ports] == [53]


@pytest.mark.parametrize(
    ("declared", "name", "expected"),
    [
        ("", "http", AppProtocol.HTTP11),
        ("", "http-web", AppProtocol.HTTP11),
        ("", "http2-a", AppProtocol.HTTP2),
        ("", "grpc", AppProtocol.GRPC),
        ("", "grpc-web-a", AppProtocol.HTTP11),
        ("", "https", AppProtocol.TLS),
        ("", "web", AppProtocol.UNKNOWN),
        ("kubernetes.io/h2c", "http", AppProtocol.HTTP2),
        ("tcp", "http", AppProtocol.TCP),
        ("acme.io/x", "http", AppProtocol.UNKNOWN),
    ],
)
def test_app_protocol(declared: str, name: str, expected: AppProtocol) -> None:
    assert app_protocol(declared, name) is expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, LoadBalancing()),
        ({"publishNotReadyAddresses": True}, LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL)),
        (
            {"internalTrafficPolicy": "Local"},
            LoadBalancing(preference=(LoadBalancingScope.NODE,), mode=LoadBalancingMode.STRICT),
        ),
        (
            {"trafficDistribution": "PreferSameZone"},
            LoadBalancing(preference=CLOSE, mode=LoadBalancingMode.FAILOVER),
        ),
        (
            {"trafficDistribution": "PreferClose"},
            LoadBalancing(preference=(*CLOSE, LoadBalancingScope.SUBZONE), mode=LoadBalancingMode.FAILOVER),
        ),
        (
            {"trafficDistribution": "PreferSameNode"},
            LoadBalancing(
                preference=(*CLOSE, LoadBalancingScope.SUBZONE, LoadBalancingScope.NODE),
                mode=LoadBalancingMode.FAILOVER,
            ),
        ),
    ],
)
def test_load_balancing(spec: Any, expected: LoadBalancing) -> None:
    assert service_of(**spec).load_balancing == expected


def test_selector_where_no_slice_is() -> None:
    found = mesh_of(
        service(selector={"app": "web"}),
        pod("a", "10.0.0.1", app="web"),
        pod("b", "10.0.0.2", app="db"),
        pod("c", "10.0.0.3", app="web", ready=False),
    )
    assert endpoints_of(found) == {"a": {80: 8080}}


def test_selector_with_addresses_that_are_not_ready() -> None:
    found = mesh_of(
        service(selector={"app": "web"}, publishNotReadyAddresses=True),
        pod("c", "10.0.0.3", app="web", ready=False),
    )
    assert endpoints_of(found) == {"c": {80: 8080}}


def test_named_port_is_that_of_each_pod() -> None:
    found = mesh_of(
        service(selector={"app": "web"}, ports=[{"port": 80, "targetPort": "main"}]),
        pod("a", "10.0.0.1", app="web", named=81),
        pod("b", "10.0.0.2", app="web", named=82),
        pod("c", "10.0.0.3", app="web"),
    )
    assert endpoints_of(found) == {"a": {80: 81}, "b": {80: 82}, "c": {}}


def test_slice_wins_over_selector() -> None:
    found = mesh_of(
        service(selector={"app": "web"}),
        pod("a", "10.0.0.1", app="web"),
        pod("b", "10.0.0.2", app="web"),
        endpoint_slice(behind("a")),
    )
    assert endpoints_of(found) == {"a": {80: 8080}}


@pytest.mark.parametrize(
    ("conditions", "publish", "member"),
    [
        ({}, False, True),
        ({"ready": True}, False, True),
        ({"ready": False}, False, False),
        ({"ready": False}, True, True),
        ({"ready": False, "serving": True, "terminating": True}, False, False),
    ],
)
def test_readiness_is_that_of_the_slice(conditions: Any, publish: bool, member: bool) -> None:
    found = mesh_of(
        service(selector={"app": "web"}, publishNotReadyAddresses=publish),
        pod("a", "10.0.0.1", app="web"),
        endpoint_slice(behind("a", **conditions)),
    )
    assert ("a" in endpoints_of(found)) is member


def test_slice_ports_go_by_name() -> None:
    found = mesh_of(
        service(),
        pod("a", "10.0.0.1"),
        endpoint_slice(behind("a"), ports=[{"name": "http", "port": 9}, {"name": "other", "port": 7}]),
    )
    assert endpoints_of(found) == {"a": {80: 9}}


def test_dangling_pod_is_reported() -> None:
    found = mesh_of(service(), endpoint_slice(behind("gone")))
    assert endpoints_of(found) == {}
    assert [p.path for p in found.problems] == [("endpoints", 0, "targetRef")]


def test_endpoint_without_pod_is_a_workload_of_its_own() -> None:
    found = mesh_of(service(), endpoint_slice({"addresses": ["192.0.2.1"]}))
    uid = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-x1/192.0.2.1"
    assert found.workloads[uid].addresses == (parse_ip("192.0.2.1"),)
    assert dict(found.workloads[uid].services[KEY].ports) == {80: 8080}


def test_endpoint_with_the_address_of_a_pod_is_that_pod() -> None:
    found = mesh_of(service(), pod("a", "10.0.0.1"), endpoint_slice({"addresses": ["10.0.0.1"]}))
    assert endpoints_of(found) == {"a": {80: 8080}}
    assert len(found.workloads) == 1


def test_slice_of_no_service_is_reported() -> None:
    found = mesh_of(endpoint_slice(owner="gone"))
    assert ["service shop/gone is not served" in p.reason for p in found.problems] == [True]


def test_external_name_is_reported_not_served() -> None:
    found = mesh_of(service(type="ExternalName", externalName="a.example"))
    assert not found.services
    assert [p.path for p in found.problems] == [("spec", "type")]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ports": [{"port": 65536}]}, ("spec", "ports", 0, "port")),
        ({"ports": [{"port": 0}]}, ("spec", "ports", 0, "port")),
        ({"ports": [{}]}, ("spec", "ports", 0, "port")),
        ({"ports": [{"port": True}]}, ("spec", "ports", 0, "port")),
        ({"ports": {}}, ("spec", "ports")),
        ({"clusterIPs": ["x"]}, ("spec", "clusterIPs")),
        ({"selector": ["x"]}, ("spec", "selector")),
    ],
)
def test_ill_typed_service_costs_itself_only(spec: Any, path: Any) -> None:
    found = mesh_of(service(**spec), service("other"))
    assert [key.hostname for key in found.services] == ["other.shop.svc.cluster.local"]
    assert [(p.path, p.severity) for p in found.problems] == [(path, "error")]


def test_highest_port_is_served() -> None:
    assert service_of(ports=[{"port": 65535}]).port(65535) is not None


def test_unknown_field_is_reported() -> None:
    found = mesh_of(service(selectors={}))
    assert [(p.path, p.severity) for p in found.problems] == [(("spec", "selectors"), "warning")]


def waypoint(allowed: str = "Same", namespace: str = "shop") -> dict[str, Any]:
    listener = {"port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": allowed}}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": namespace},
        "spec": {"listeners": [listener]},
        "status": {"addresses": [{"type": "IPAddress", "value": "10.96.0.9"}]},
    }


def namespace_with(**labels: str) -> dict[str, Any]:
    given = {f"istio.io/{name.replace('_', '-')}": value for name, value in labels.items()}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": given}}


def test_waypoint_of_the_namespace_serves_all_but_its_own_service() -> None:
    found = mesh_of(service(), service("wp"), waypoint(), namespace_with(use_waypoint="wp"))
    with_waypoint = {s.name for s in found.services.values() if s.waypoint is not None}
    assert with_waypoint == {"web"}


@pytest.mark.parametrize(("allowed", "attached"), [("All", True), ("Same", False)])
def test_waypoint_of_another_namespace_has_to_admit(allowed: str, attached: bool) -> None:
    labels = namespace_with(use_waypoint="wp", use_waypoint_namespace="infra")
    found = mesh_of(service(), waypoint(allowed, "infra"), labels)
    assert (found.services[KEY].waypoint is not None) is attached
    assert ["admits namespace shop (AttachmentDenied)" in p.reason for p in found.problems] == [True] * (
        not attached
    )
