# SPDX-License-Identifier: Apache-2.0
"""`ambit why` through a waypoint: route, policy and endpoint as told are what curl gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lab_bed import REPOSITORY, Lab, pod

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("cliwaypoint")


def server(version: str) -> str:
    script = (
        f"mkdir -p /tmp/site/ok && cd /tmp/site && echo {version} > index.html && "
        "exec /usr/bin/python3 -m http.server 8080 --bind ::"
    )
    text = pod(f"echo-{version}", "node1", account="echo", command=json.dumps(["sh", "-c", script]))
    return text.replace(f"app: echo-{version}", f"app: echo, version: {version}")


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
    + pod("client", "node2", account="client")
    + service("echo")
    + service("echo-v1", "v1")
    + service("echo-v2", "v2")
    + """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: echo}]
  rules:
  - matches: [{headers: [{name: x-canary, value: "yes"}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /}}}]
  - matches: [{path: {type: PathPrefix, value: /ok}}, {path: {type: Exact, value: /}}]
    backendRefs: [{name: echo-v1, port: 80, weight: 90}, {name: echo-v2, port: 80, weight: 10}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: echo}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
"""
)
NOBODY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-friends, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/friend]}}]}]
"""


def ambit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words, "--lab", LAB.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        cwd=REPOSITORY,
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("objects") / "mesh.yaml"
    path.write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(path), "--nodes", "2")
        done = ambit("waypoint", "apply", "-n", "shop", "--enroll-namespace", "--wait")
        assert done.returncode == 0, done.stderr
        eventually(lambda: curl("GET", "/nothing") == 404, "the route is in force")
        yield
    finally:
        LAB.run("down")


def curl(method: str, path: str, *headers: str) -> int:
    words = ["curl", "-s", "-4", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-X", method]
    words += [word for header in headers for word in ("-H", header)]
    done = LAB.run("exec", "shop/client", "--", *words, f"http://echo{path}")
    return int(done.stdout or 0)


def why(method: str, path: str, *headers: str) -> dict[str, Any]:
    words = [word for header in headers for word in ("--header", header)]
    done = ambit("why", "shop/client", "echo", "--method", method, "--path", path, *words, "-o", "json")
    assert done.returncode in (0, 2), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == report["works"]
    return report


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/", (), 200, ""),
        ("GET", "/ok/", (), 200, ""),
        ("GET", "/", ("x-canary: yes",), 200, ""),
        ("GET", "/old", (), 302, ""),
        ("GET", "/nothing", (), 404, "AMB3213"),
        ("DELETE", "/", (), 403, "AMB3205"),
    ],
)
def test_what_is_told_is_what_curl_gets(
    lab: None, method: str, path: str, headers: tuple[str, ...], status: int, code: str
) -> None:
    assert curl(method, path, *headers) == status
    report = why(method, path, *headers)
    assert report["works"] is (status < 400)
    assert (report["cause"] or {}).get("code", "") == code
    branches = [branch for attempt in report["attempts"] for branch in attempt["branches"]]
    assert all(branch["via"].startswith("shop/") for branch in branches)
    assert {branch["status"] for branch in branches} == ({0} if status == 200 else {status})


def test_the_route_and_the_shares_of_its_backends(lab: None) -> None:
    attempt = why("GET", "/")["attempts"][0]
    shares = {branch["workload"]: round(branch["share"], 1) for branch in attempt["branches"]}
    assert shares == {"shop/echo-v1": 0.9, "shop/echo-v2": 0.1}
    assert {branch["route"] for branch in attempt["branches"]} == {"HTTPRoute/shop/echo#2"}
    canary = why("GET", "/canary", "x-canary: yes")["attempts"][0]["branches"]
    assert [branch["workload"] for branch in canary] == ["shop/echo-v2"]


def test_routes_are_told_in_words(lab: None) -> None:
    done = ambit("routes", "echo", "--no-headers")
    assert done.returncode == 0, done.stderr
    rules = {line.split()[-1]: line for line in done.stdout.splitlines()}
    assert "x-canary: yes" in rules["HTTPRoute/shop/echo#0"]
    assert "/old/*" in rules["HTTPRoute/shop/echo#1"]
    assert "redirected with 302" in rules["HTTPRoute/shop/echo#1"]
    assert "90% shop/echo-v1:80, 10% shop/echo-v2:80" in rules["HTTPRoute/shop/echo#2"]


def test_a_policy_that_shuts_the_waypoint_out(lab: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(NOBODY)
    LAB.ambit("apply", "-f", str(path))
    try:
        eventually(lambda: curl("GET", "/") >= 500, "the waypoint is refused")
        cause = why("GET", "/")["cause"]
        assert cause["code"] == "AMB3204"
        assert "its own waypoint" in cause["text"]
        assert "principals: [cluster.local/ns/shop/sa/" in cause["yaml"]
    finally:
        LAB.ambit("delete", "-f", str(path))
