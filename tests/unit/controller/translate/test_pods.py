# SPDX-License-Identifier: Apache-2.0
"""Pod to Workload: what counts as an instance, and who it says it is."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import parse_documents
from mesh.model.address import parse_ip
from mesh.model.locality import Locality
from mesh.model.workload import (
    GatewayAddress,
    NamespacedHostname,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadType,
)

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: a, namespace: shop, uid: u1, {metadata}}}
spec: {{nodeName: n1, serviceAccountName: web, {spec}}}
status: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: "True"}}], {status}}}
"""


def mesh_of(text: str) -> Mesh:
    objects, rejections = parse_documents(text, "t.yaml")
    assert not rejections
    return translate({obj.key: obj for obj in objects}, Options())


def pod(metadata: str = "", spec: str = "", status: str = "", more: str = "") -> Workload:
    text = POD.format(metadata=metadata, spec=spec, status=status) + more
    return mesh_of(text).workloads["Kubernetes//Pod/shop/a"]


def test_pod_becomes_a_workload() -> None:
    found = pod()
    assert (found.name, found.namespace, found.node) == ("a", "shop", "n1")
    assert found.addresses == (parse_ip("10.0.0.1"),)
    assert found.identity == "spiffe://cluster.local/ns/shop/sa/web"
    assert found.healthy
    assert found.tunnel_protocol is TunnelProtocol.NONE


def test_all_addresses_are_taken() -> None:
    found = pod(status="podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]")
    assert found.addresses == (parse_ip("10.0.0.1"), parse_ip("fd00::1"))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pod_is_none(phase: str) -> None:
    assert not mesh_of(POD.format(metadata="", spec="", status=f"phase: {phase}")).workloads


def test_pod_without_address_is_none() -> None:
    assert not mesh_of("{apiVersion: v1, kind: Pod, metadata: {name: a}}").workloads


def test_deleted_pod_is_not_healthy() -> None:
    assert not pod(metadata="deletionTimestamp: '2026-01-01T00:00:00Z'").healthy


def test_pod_without_condition_is_not_healthy() -> None:
    text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}"
    assert not mesh_of(text).workloads["Kubernetes//Pod/default/a"].healthy


def enrollment(uid: str) -> str:
    return (
        "---\napiVersion: ambit.io/v1alpha1\nkind: Enrollment\n"
        f"metadata: {{name: a, namespace: shop}}\npodUid: {uid}\n"
    )


@pytest.mark.parametrize(
    ("metadata", "spec", "more", "expected"),
    [
        ("annotations: {ambient.istio.io/redirection: enabled}", "", "", TunnelProtocol.HBONE),
        ("annotations: {ambient.istio.io/redirection: disabled}", "", "", TunnelProtocol.NONE),
        ("", "", enrollment("u1"), TunnelProtocol.HBONE),
        ("", "", enrollment("u0"), TunnelProtocol.NONE),
        ("", "hostNetwork: true", enrollment("u1"), TunnelProtocol.NONE),
    ],
)
def test_tunnel(metadata: str, spec: str, more: str, expected: TunnelProtocol) -> None:
    assert pod(metadata=metadata, spec=spec, more=more).tunnel_protocol is expected


def test_host_network() -> None:
    assert pod(spec="hostNetwork: true").network_mode is NetworkMode.HOST_NETWORK


@pytest.mark.parametrize(
    ("kind", "name", "labels", "expected"),
    [
        ("ReplicaSet", "web-5d4f", "{pod-template-hash: 5d4f}", (WorkloadType.DEPLOYMENT, "web")),
        ("ReplicaSet", "web-5d4f", "{}", (WorkloadType.DEPLOYMENT, "web-5d4f")),
        ("Job", "nightly-28934820", "{}", (WorkloadType.CRONJOB, "nightly")),
        ("Job", "migrate", "{}", (WorkloadType.JOB, "migrate")),
        ("Deployment", "web", "{}", (WorkloadType.DEPLOYMENT, "web")),
        ("StatefulSet", "db", "{}", (WorkloadType.POD, "db")),
    ],
)
def test_owner(kind: str, name: str, labels: str, expected: Any) -> None:
    found = pod(
        metadata=f"labels: {labels}, ownerReferences: [{{controller: true, kind: {kind}, name: {name}}}]"
    )
    assert (found.workload_type, found.workload_name) == expected


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ("{}", "a", "latest"),
        ("{app: x, version: v2}", "x", "v2"),
        ("{app: x, app.kubernetes.io/name: y, app.kubernetes.io/version: v3, version: v2}", "y", "v3"),
        (
            "{service.istio.io/canonical-name: z, app: x, service.istio.io/canonical-revision: v1}",
            "z",
            "v1",
        ),
    ],
)
def test_canonical(labels: str, name: str, revision: str) -> None:
    found = pod(metadata=f"labels: {labels}")
    assert (found.canonical_name, found.canonical_revision) == (name, revision)


def test_locality_is_that_of_the_node() -> None:
    node = """---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
"""
    assert pod(more=node).locality == Locality(region="r", zone="z")


GATEWAY = """---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: %s}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}
"""
WAYPOINT = GatewayAddress(
    destination=NamespacedHostname(namespace="shop", hostname="wp.shop.svc.cluster.local"),
    hbone_mtls_port=15008,
)
NAMESPACE = """---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
"""


@pytest.mark.parametrize(
    ("label", "more", "expected"),
    [
        ("{istio.io/use-waypoint: wp}", GATEWAY % "all", WAYPOINT),
        ("{istio.io/use-waypoint: wp}", GATEWAY % "workload", WAYPOINT),
        ("{istio.io/use-waypoint: wp}", GATEWAY % "service", None),
        ("{istio.io/use-waypoint: gone}", GATEWAY % "all", None),
        ("{}", GATEWAY % "all" + NAMESPACE, WAYPOINT),
        ("{istio.io/use-waypoint: none}", GATEWAY % "all" + NAMESPACE, None),
    ],
)
def test_waypoint(label: str, more: str, expected: GatewayAddress | None) -> None:
    assert pod(metadata=f"labels: {label}", more=more).waypoint == expected


def test_missing_waypoint_is_reported() -> None:
    text = POD.format(metadata="labels: {istio.io/use-waypoint: gone}", spec="", status="")
    assert ["shop/gone does not exist" in problem.reason for problem in mesh_of(text).problems] == [True]


def test_ill_typed_pod_costs_itself_only() -> None:
    bad = POD.format(metadata="", spec="hostNetwork: 3", status="")
    good = POD.format(metadata="", spec="", status="").replace("name: a", "name: b")
    found = mesh_of(bad + "---" + good)
    assert list(found.workloads) == ["Kubernetes//Pod/shop/b"]
    assert [(p.path, p.severity, p.line) for p in found.problems] == [(("spec", "hostNetwork"), "error", 5)]
