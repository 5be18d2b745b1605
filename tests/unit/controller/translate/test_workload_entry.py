# SPDX-License-Identifier: Apache-2.0
"""WorkloadEntry: one workload outside Kubernetes."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import make_object
from mesh.model.address import parse_ip
from mesh.model.locality import Locality
from mesh.model.workload import TunnelProtocol, Workload

UID = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"


def mesh_of(spec: Any, labels: dict[str, str] | None = None) -> Mesh:
    obj = make_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": "vm", "namespace": "shop", "labels": labels or {}},
            "spec": spec,
        }
    )
    return translate({obj.key: obj}, Options())


def workload_of(**spec: Any) -> Workload:
    return mesh_of({"address": "192.0.2.1", **spec}).workloads[UID]


def test_fields() -> None:
    found = workload_of(weight=3, network="n", locality="r/z/s", serviceAccount="db", labels={"app": "x"})
    assert found.addresses == (parse_ip("192.0.2.1"),)
    assert (found.capacity, found.network) == (3, "n")
    assert found.locality == Locality(region="r", zone="z", subzone="s")
    assert found.identity == "spiffe://cluster.local/ns/shop/sa/db"
    assert found.canonical_name == "x"
    assert found.healthy


@pytest.mark.parametrize(("weight", "capacity"), [(0, 1), (1, 1), (2**32 - 1, 2**32 - 1)])
def test_weight(weight: int, capacity: int) -> None:
    assert workload_of(weight=weight).capacity == capacity


def test_host_name_is_resolved_later() -> None:
    found = workload_of(address="vm.example")
    assert (found.hostname, found.addresses) == ("vm.example", ())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({}, TunnelProtocol.NONE), ({"networking.istio.io/tunnel": "http"}, TunnelProtocol.HBONE)],
)
def test_tunnel(labels: dict[str, str], expected: TunnelProtocol) -> None:
    found = mesh_of({"address": "192.0.2.1"}, labels).workloads[UID]
    assert found.tunnel_protocol is expected


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ("spec", "address")),
        ({"address": "unix:///a"}, ("spec", "address")),
        ({"address": "a b"}, ("spec", "address")),
        ({"address": 3}, ("spec", "address")),
        ({"address": "192.0.2.1", "weight": 2**32}, ("spec", "weight")),
        ({"address": "192.0.2.1", "weight": -1}, ("spec", "weight")),
        ({"address": "192.0.2.1", "ports": {"a": 65536}}, ("spec", "ports", "a")),
    ],
)
def test_ill_typed(spec: Any, path: Any) -> None:
    found = mesh_of(spec)
    assert not found.workloads
    assert [(p.path, p.severity) for p in found.problems] == [(path, "error")]


def test_unknown_field_is_reported() -> None:
    found = mesh_of({"address": "192.0.2.1", "port": 3})
    assert [(p.path, p.severity) for p in found.problems] == [(("spec", "port"), "warning")]
    assert UID in found.workloads
