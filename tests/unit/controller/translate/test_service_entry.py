# SPDX-License-Identifier: Apache-2.0
"""ServiceEntry: hosts, virtual addresses and endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from controller.translate.service_entry import VIP4, VIP6, allocate
from mesh.config.objects import make_object
from mesh.model.address import IPAddress, parse_ip, parse_network
from mesh.model.service import CidrVip, LoadBalancingMode, Service
from mesh.model.workload import NamespacedHostname, TunnelProtocol


def key(host: str = "a.example") -> NamespacedHostname:
    return NamespacedHostname(namespace="shop", hostname=host)


def entry(
    name: str = "e", labels: dict[str, str] | None = None, created: str = "", **spec: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": labels or {},
            "creationTimestamp": created,
        },
        "spec": {
            "hosts": ["a.example"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            **spec,
        },
    }


def pod(name: str, ip: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def workload_entry(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    }


def mesh_of(*objects: dict[str, Any]) -> Mesh:
    made = [make_object(data) for data in objects]
    return translate({obj.key: obj for obj in made}, Options())


def service_of(**spec: Any) -> Service:
    return mesh_of(entry(**spec)).services[key()]


def endpoints_of(mesh: Mesh) -> dict[str, dict[int, int]]:
    return {
        str(w.addresses[0]) if w.addresses else w.hostname: dict(w.services[key()].ports)
        for w in mesh.workloads.values()
        if key() in w.services
    }


def test_static_endpoints() -> None:
    ports = [{"number": 80, "name": "http", "targetPort": 8080}, {"number": 443, "name": "tls"}]
    found = mesh_of(
        entry(
            resolution="STATIC",
            ports=ports,
            endpoints=[{"address": "192.0.2.1"}, {"address": "192.0.2.2", "ports": {"http": 81}}],
        )
    )
    assert endpoints_of(found) == {"192.0.2.1": {80: 8080, 443: 443}, "192.0.2.2": {80: 81, 443: 443}}


def test_dns_endpoints() -> None:
    found = mesh_of(entry(resolution="DNS", endpoints=[{"address": "b.example"}]))
    assert endpoints_of(found) == {"b.example": {80: 80}}


@pytest.mark.parametrize("resolution", ["DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"])
def test_dns_host_is_its_own_endpoint(resolution: str) -> None:
    assert endpoints_of(mesh_of(entry(resolution=resolution))) == {"a.example": {80: 80}}


def test_each_host_is_its_own_endpoint() -> None:
    found = mesh_of(entry(resolution="DNS", hosts=["a.example", "b.example"]))
    assert {w.hostname: [k.hostname for k in w.services] for w in found.workloads.values()} == {
        "a.example": ["a.example"],
        "b.example": ["b.example"],
    }


def test_resolution_none_passes_through() -> None:
    found = mesh_of(entry())
    service = found.services[key()]
    assert service.load_balancing.mode is LoadBalancingMode.PASSTHROUGH
    assert service.addresses == ()
    assert not found.workloads


def test_addresses_and_ranges() -> None:
    found = service_of(addresses=["10.9.0.1", "10.8.0.0/16"])
    assert [str(a.address) for a in found.addresses] == ["10.9.0.1"]
    assert found.cidr_addresses == (CidrVip(network="", cidr=parse_network("10.8.0.0/16")),)


def test_automatic_addresses_of_both_families() -> None:
    found = service_of(resolution="DNS")
    first, second = (a.address for a in found.addresses)
    assert first in VIP4
    assert second in VIP6


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": "NONE"},
        {"resolution": "DNS", "hosts": ["*.example"]},
        {"resolution": "STATIC", "labels": {"networking.istio.io/enable-autoallocate-ip": "false"}},
        {"resolution": "STATIC", "addresses": ["10.8.0.0/16"]},
    ],
)
def test_no_automatic_address(options: Any) -> None:
    (found,) = mesh_of(entry(**options)).services.values()
    assert found.addresses == ()


def test_automatic_addresses_do_not_depend_on_order() -> None:
    keys = [key(f"h{index}.example") for index in range(300)]
    forward, backward = allocate(keys, set()), allocate(keys[::-1], set())
    assert forward == backward
    assert len({pair[0] for pair in forward.values()}) == 300


def test_used_addresses_are_not_given_again() -> None:
    (wanted,) = allocate([key()], set()).values()
    (moved,) = allocate([key()], {wanted[0]}).values()
    assert int(moved[0]) == int(wanted[0]) + 1
    (moved,) = allocate([key()], {wanted[1]}).values()
    assert int(moved[1]) == int(wanted[1]) + 1


def test_full_range_gives_what_is_left() -> None:
    hosts: list[IPAddress] = list(VIP4.hosts())
    left = hosts.pop(7)
    found = allocate([key("a.example"), key("b.example")], set(hosts))
    assert {k.hostname: pair[0] for k, pair in found.items()} == {"a.example": left}


def test_selector_takes_pods_and_workload_entries() -> None:
    found = mesh_of(
        entry(resolution="STATIC", workloadSelector={"labels": {"app": "x"}}),
        pod("a", "10.0.0.1", app="x"),
        pod("b", "10.0.0.2", app="y"),
        workload_entry("vm", address="192.0.2.1", labels={"app": "x"}, ports={"http": 8080}),
    )
    assert endpoints_of(found) == {"10.0.0.1": {80: 80}, "192.0.2.1": {80: 8080}}


def test_endpoint_with_the_address_of_a_pod_is_that_pod() -> None:
    found = mesh_of(entry(resolution="STATIC", endpoints=[{"address": "10.0.0.1"}]), pod("a", "10.0.0.1"))
    assert list(found.workloads) == ["Kubernetes//Pod/shop/a"]
    assert endpoints_of(found) == {"10.0.0.1": {80: 80}}


def test_oldest_entry_has_the_host() -> None:
    found = mesh_of(entry("new", created="2026"), entry("old", created="2025"))
    assert found.services[key()].name == "old"
    assert [p.key.name for p in found.problems] == ["new"]


def test_kubernetes_service_has_its_host() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }
    found = mesh_of(service, entry(hosts=["web.shop.svc.cluster.local"], addresses=["10.9.0.1"]))
    (only,) = found.services.values()
    assert only.canonical
    assert [p.path for p in found.problems] == [("spec", "hosts", 0)]


def test_wildcard_without_endpoints_is_reported() -> None:
    found = mesh_of(entry(resolution="DNS", hosts=["*.example"]))
    assert not found.workloads
    assert [p.path for p in found.problems] == [("spec", "hosts")]


def test_subject_alt_names() -> None:
    names = ["spiffe://cluster.local/ns/a/sa/b"]
    assert service_of(subjectAltNames=names).subject_alt_names == tuple(names)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"hosts": []}, ("spec", "hosts")),
        ({"hosts": ["a b"]}, ("spec", "hosts")),
        ({"resolution": "dns"}, ("spec", "resolution")),
        ({"location": "x"}, ("spec", "location")),
        ({"addresses": ["x"]}, ("spec", "addresses", 0)),
        ({"ports": [{"name": "a"}]}, ("spec", "ports", 0, "number")),
        ({"resolution": "STATIC", "endpoints": [{"address": "b.example"}]}, ("spec", "endpoints")),
        (
            {"endpoints": [{"address": "192.0.2.1"}], "workloadSelector": {"labels": {"a": "b"}}},
            ("spec", "workloadSelector"),
        ),
    ],
)
def test_ill_typed_entry_costs_itself_only(spec: Any, path: Any) -> None:
    found = mesh_of(entry(**spec), entry("other", hosts=["other.example"]))
    assert list(found.services) == [key("other.example")]
    assert [(p.path, p.severity) for p in found.problems] == [(path, "error")]


def test_tunnel_label_of_an_endpoint() -> None:
    endpoint = {
        "address": "192.0.2.1",
        "labels": {"networking.istio.io/tunnel": "http"},
        "serviceAccount": "vm",
    }
    found = mesh_of(entry(resolution="STATIC", endpoints=[endpoint]))
    (workload,) = found.workloads.values()
    assert workload.tunnel_protocol is TunnelProtocol.HBONE
    assert workload.identity == "spiffe://cluster.local/ns/shop/sa/vm"


def test_workload_entry_cannot_take_the_address_of_a_pod() -> None:
    found = mesh_of(workload_entry("vm", address="10.0.0.1"), pod("a", "10.0.0.1"))
    assert list(found.workloads) == ["Kubernetes//Pod/shop/a"]
    assert [(p.path, p.severity) for p in found.problems] == [(("spec", "address"), "error")]


def test_first_address_is_canonical() -> None:
    found = mesh_of(workload_entry("vm", address="::ffff:192.0.2.1"))
    (workload,) = found.workloads.values()
    assert workload.addresses == (parse_ip("192.0.2.1"),)
