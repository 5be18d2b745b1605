# SPDX-License-Identifier: Apache-2.0
"""The mesh on the cluster of `make cluster`, once a run; a namespace for each test."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.images import build
from tests.k8s.bed import CLUSTER, MANIFESTS, SYSTEM, Space, apply, install, kubectl, ok, run

NODES = (1, 2)
IMAGE = build.CACHE / "ambit.tar"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests to those who name them: they need a cluster (`make test-k8s`)."""
    named = any("k8s" in Path(argument).parts for argument in config.args)
    return None if named else True


def image_digest() -> str:
    """Return the manifest's digest of the image that was built."""
    with tarfile.open(IMAGE) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        return str(json.load(index)["manifests"][0]["digest"])


def load_image() -> bool:
    """Give every node the image; return whether one lacked it."""
    digest = image_digest()
    lacking = [
        node
        for node in NODES
        if digest not in ok(run(str(CLUSTER), "exec", str(node), "ctr", "-n", "k8s.io", "images", "ls"))
    ]
    if lacking:
        ok(run(str(CLUSTER), "load", str(IMAGE), timeout_s=300))
    return bool(lacking)


@pytest.fixture(scope="session", autouse=True)
def mesh() -> None:
    """Install the mesh as the documentation says, and wait until it is ready."""
    assert kubectl("get", "--raw", "/readyz").code == 0, "no cluster: run `make cluster`, or `make test-k8s`"
    assert IMAGE.exists(), f"no {IMAGE}: run `make image`, or `make test-k8s`"
    new = load_image()
    ok(kubectl("apply", "--server-side", "-k", str(MANIFESTS / "crds")))
    there = kubectl("-n", SYSTEM, "get", "daemonset", "ambit-node").code == 0
    if new and there:
        ok(kubectl("-n", SYSTEM, "rollout", "restart", "deployment/ambit-controller", "daemonset/ambit-node"))
    install()


@pytest.fixture
def space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """A namespace in the mesh, named after the test."""
    yield from _space(request, {"istio.io/dataplane-mode": "ambient"})


@pytest.fixture
def outside(request: pytest.FixtureRequest) -> Iterator[Space]:
    """A namespace outside the mesh."""
    yield from _space(request, {})


def _space(request: pytest.FixtureRequest, labels: dict[str, str]) -> Iterator[Space]:
    test = request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    name = f"{request.fixturename}-{test}"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield Space(name)
    ok(kubectl("delete", "namespace", name, "--wait=false"))
