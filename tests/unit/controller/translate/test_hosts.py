# SPDX-License-Identifier: Apache-2.0
"""Host names of Istio's objects: resolved, compared, exported."""

from __future__ import annotations

import pytest

from controller.translate.fields import spec
from controller.translate.hosts import Exports, Hosts, WaypointNamespaces, matches, resolve_host, specificity
from mesh.config.objects import make_object
from mesh.model.address import parse_ip
from mesh.model.service import Service
from mesh.model.workload import GatewayAddress, NamespacedHostname, NetworkAddress


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("reviews", "reviews.app.svc.cluster.local"),
        ("Reviews", "reviews.app.svc.cluster.local"),
        ("reviews.other", "reviews.other"),
        ("reviews.other.svc.cluster.local.", "reviews.other.svc.cluster.local"),
        ("*", "*"),
        ("*.example.org", "*.example.org"),
    ],
)
def test_only_a_name_without_a_dot_is_completed(host: str, expected: str) -> None:
    # As istio pilot/pkg/model ResolveShortnameToFQDN.
    assert resolve_host(host, "app", "cluster.local") == expected


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*", "a.b", True),
        ("*.b", "a.b", True),
        ("*.b", "a.c", False),
        ("*.b", ".b", True),
        ("*a.b", "a.b", True),
        ("a.b", "a.b", True),
        ("a.b", "x.a.b", False),
    ],
)
def test_wildcards_stand_for_the_beginning(pattern: str, host: str, expected: bool) -> None:
    assert matches(pattern, host) is expected


def test_the_most_of_a_name_is_the_most_specific() -> None:
    patterns = ["*", "a.b", "*.b", "*.a.b", "x.a.b"]
    assert sorted(patterns, key=specificity) == ["*", "*.b", "*.a.b", "a.b", "x.a.b"]


def made(name: str, namespace: str, *, canonical: bool = False) -> Service:
    return Service(name=name, namespace=namespace, hostname=f"{name}.example", canonical=canonical)


def test_of_several_services_of_one_name_a_kubernetes_service_wins_then_the_own_namespace() -> None:
    entries = [made("a", "x"), made("a", "y")]
    hosts = Hosts({service.key: service for service in entries})
    assert hosts.find("a.example", "y") == entries[1]
    assert hosts.find("a.example", "z") == entries[0]
    canonical = made("a", "z", canonical=True)
    hosts = Hosts({service.key: service for service in [*entries, canonical]})
    assert hosts.find("a.example", "y") == canonical
    assert hosts.all("*.example") == [*entries, canonical]
    assert hosts.find("b.example", "y") is None


@pytest.mark.parametrize(
    ("export_to", "seen", "unseen"),
    [
        ([], ["own", "other"], []),
        (["*"], ["own", "other"], []),
        (["."], ["own"], ["other"]),
        (["other", "."], ["own", "other"], ["third"]),
        (["~"], [], ["own", "other"]),
    ],
)
def test_exports(export_to: list[str], seen: list[str], unseen: list[str]) -> None:
    obj = make_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "v", "namespace": "own"},
            "spec": {"exportTo": export_to},
        }
    )
    exports = Exports(spec(obj, []), "own")
    assert all(exports.visible_in(namespace) for namespace in seen)
    assert not any(exports.visible_in(namespace) for namespace in unseen)


def test_a_waypoint_is_found_by_its_name_or_its_address() -> None:
    address = NetworkAddress(network="", address=parse_ip("10.96.0.9"))
    waypoint = Service(name="w", namespace="gate", hostname="w.gate", addresses=(address,))

    def using(destination: NamespacedHostname | NetworkAddress) -> Service:
        gateway = GatewayAddress(destination=destination, hbone_mtls_port=15008)
        return Service(name="s", namespace="app", hostname="s.app", waypoint=gateway)

    namespaces = WaypointNamespaces({waypoint.key: waypoint})
    assert namespaces.of(using(address)) == "gate"
    assert namespaces.of(using(NamespacedHostname(namespace="edge", hostname="w.edge"))) == "edge"
    assert namespaces.of(waypoint) == ""
    stranger = NetworkAddress(network="", address=parse_ip("10.96.0.10"))
    assert namespaces.all([using(address), using(stranger), waypoint]) == {"gate"}
