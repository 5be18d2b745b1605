# SPDX-License-Identifier: Apache-2.0
"""Each route dialect in a lab: what users wrote for Istio, Linkerd and SMI, judged by curl.

One service, two versions; each test applies one dialect, sees it take effect at the waypoint
and be gone again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab_bed import REPOSITORY, Lab, pod

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("dialecttest")


def server(version: str) -> str:
    script = (
        f"mkdir -p /tmp/site && cd /tmp/site && echo {version} > index.html && echo page > page && "
        "exec /usr/bin/python3 -m http.server 8080 --bind ::"
    )
    command = json.dumps(["sh", "-c", script])
    return pod(f"echo-{version}", "node1", account="echo", command=command).replace(
        f"app: echo-{version}", f"app: echo, version: {version}"
    )


def service(name: str, version: str = "") -> str:
    selector = "app: echo" + (f", version: {version}" if version else "")
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{{selector}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---"""


MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---"""
    + server("v1")
    + server("v2")
    + pod("client", "node1", account="client")
    + service("echo")
    + service("echo-v1", "v1")
    + service("echo-v2", "v2")
    + service("raw", "v1").replace("name: http, port: 80", "name: raw, appProtocol: tcp, port: 9000")
)
SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---"""
VIRTUAL = """
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo]
  http:
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: tea}}
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /}
    route: [{destination: {host: echo-v1}}]
  - match: [{uri: {prefix: /slow}}]
    fault: {abort: {httpStatus: 599, percentage: {value: 100}}}
    route: [{destination: {host: echo-v1}}]
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{headers: {end-user: {exact: nobody}}}]
    route: [{destination: {host: echo, subset: v9}}]
  - route: [{destination: {host: echo, subset: v1}}]
"""
TCP = """
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: raw, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw}]
  rules: [{backendRefs: [{name: echo-v2, port: 80}]}]
"""
VIRTUAL_TCP = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: shop}
spec: {hosts: [raw], tcp: [{match: [{port: 9000}], route: [{destination: {host: echo, subset: v2}}]}]}
"""
GRPC = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: echo}]
  rules: [{backendRefs: [{name: echo-v2, port: 80}]}]
"""
PROFILE = """
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: echo.shop.svc.cluster.local, namespace: shop}
spec:
  routes: [{name: index, condition: {pathRegex: /, method: GET}, isRetryable: true, timeout: 2s}]
  dstOverrides: [{authority: "echo-v2.shop.svc.cluster.local:80", weight: "1"}]
"""
SPLIT = """
apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata: {name: echo, namespace: shop}
spec: {service: echo, backends: [{service: echo-v1, weight: 0}, {service: echo-v2, weight: 500m}]}
"""


def get(path: str = "/", *words: str, host: str = "echo") -> str:
    """What curl prints of one request: its body, then its status."""
    form = "%{http_code}"
    run = ("exec", "shop/client", "--", "curl", "-s", "-m", "5", "-w", form, *words, f"http://{host}{path}")
    return LAB.run(*run).stdout.replace("\n", " ")


def always(expected: str, *words: str) -> bool:
    """Whether several requests in a row are all answered like this."""
    return all(get("/", *words) == expected for _ in range(4))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A meshed lab with a waypoint for the namespace."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "1")
        apply = ("waypoint", "apply", "-n", "shop", "--name", "wp", "--enroll-namespace", "--wait")
        done = subprocess.run(
            [sys.executable, "-m", "cli", *apply, "--lab", LAB.name],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=REPOSITORY,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        eventually(lambda: get() in ("v1 200", "v2 200"), "the service answers")
        yield directory
    finally:
        LAB.run("down")


@contextmanager
def applied(directory: Path, text: str) -> Iterator[None]:
    """Apply objects, and delete them at the end."""
    path = directory.parent / f"more{len(list(directory.parent.glob('more*')))}.yaml"
    path.write_text(text)
    LAB.ambit("apply", "-f", str(path))
    try:
        yield
    finally:
        LAB.ambit("delete", "-f", str(path))


def problems() -> str:
    """What the controller says is not in force."""
    return json.dumps(LAB.admin("/debug/problems"))


def test_a_virtual_service_and_its_subsets(lab: Path) -> None:
    with applied(lab, SUBSETS + VIRTUAL):
        eventually(lambda: get("/teapot") == "tea418", "the VirtualService is in force")
        assert get("/old/page") == "page 200", "the prefix is rewritten"
        assert get("/slow").endswith("599"), "the fault is injected"
        eventually(lambda: always("v1 200"), "the default subset takes the rest")
        assert always("v2 200", "-H", "end-user: jason"), "a header chooses the other subset"
        assert get("/", "-H", "end-user: nobody").endswith("503"), "a subset that nobody defines is no subset"
        assert "subset v9" in problems()
    eventually(lambda: get("/teapot").endswith("404"), "the VirtualService is gone")


@pytest.mark.parametrize("text", [GRPC, PROFILE, SPLIT], ids=["GRPCRoute", "ServiceProfile", "TrafficSplit"])
def test_each_dialect_sends_all_requests_to_one_version(lab: Path, text: str) -> None:
    with applied(lab, text):
        eventually(lambda: always("v2 200"), "all requests go to v2")
    eventually(lambda: any(get() == "v1 200" for _ in range(8)), "v1 is used again")


@pytest.mark.parametrize("text", [TCP, SUBSETS + VIRTUAL_TCP], ids=["TCPRoute", "VirtualService"])
def test_connections_that_are_not_http_are_routed_too(lab: Path, text: str) -> None:
    assert get(host="raw:9000") == "v1 200"
    with applied(lab, text):
        eventually(lambda: get(host="raw:9000") == "v2 200", "connections go to v2")
    eventually(lambda: get(host="raw:9000") == "v1 200", "connections go to the service itself")


def test_where_two_dialects_meet_one_holds_and_the_other_is_told(lab: Path) -> None:
    virtual = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec: {hosts: [echo], http: [{directResponse: {status: 418}}]}
---"""
    with applied(lab, virtual + GRPC):
        eventually(lambda: always("v2 200"), "the GRPCRoute holds")
        assert "GRPCRoute/shop/echo routes" in problems()
