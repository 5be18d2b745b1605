# SPDX-License-Identifier: Apache-2.0
"""One real control plane for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import yaml

from tests.kube_api.control_plane import ROOT, ControlPlane, find_binary

MANIFESTS = ROOT / "daemonset" / "manifests" / "kubernetes"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Start it with the namespace istio-system, a node and the rights that our manifests give."""
    binary = find_binary()
    if binary is None:
        reason = (
            "this host has no Kubernetes binary: `tests/k8s/cluster build` makes it, AMBIT_K8S_BIN names one"
        )
        if os.environ.get("AMBIT_K8S_REQUIRED"):
            pytest.fail(reason)
        pytest.skip(reason)
    plane = ControlPlane(binary, tmp_path_factory.mktemp("kube"))
    try:
        plane.start()
        prepare(plane)
        yield plane
    finally:
        plane.stop()


def prepare(plane: ControlPlane) -> None:
    """Make the namespace istio-system, node n1, and the accounts and rights of the manifests."""
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    plane.apply({**account, "metadata": {"name": "default", "namespace": "default"}})
    for name in ("controller-rbac.yaml", "node-rbac.yaml"):
        texts = list(yaml.safe_load_all((MANIFESTS / name).read_text()))
        for item in texts:
            if item["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
                item["metadata"]["namespace"] = "istio-system"
        plane.apply(*texts)


def definitions(*names: str) -> list[dict[str, object]]:
    """Return CustomResourceDefinitions of the manifests, by name."""
    found = [
        item
        for file in sorted((MANIFESTS / "crds").glob("*.yaml"))
        for item in yaml.safe_load_all(file.read_text())
        if item and item.get("kind") == "CustomResourceDefinition" and item["metadata"]["name"] in names
    ]
    assert {item["metadata"]["name"] for item in found} == set(names)
    return found
