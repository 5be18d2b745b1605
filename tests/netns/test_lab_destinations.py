# SPDX-License-Identifier: Apache-2.0
"""DestinationRules in a lab, from the object to what curl sees: subsets, stickiness, bounds, ejection."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_bed import REPOSITORY, Lab, pod

from tests.support.eventually import eventually
from tests.support.pki import Authority

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("destinationtest")
SERVER = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1)
        body = (sys.argv[1] + "\\n").encode()
        self.send_response(503 if os.path.exists("/tmp/fail") else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def server(version: str) -> str:
    command = json.dumps(["/usr/bin/python3", "-c", SERVER, version])
    return pod(f"echo-{version}", "node1", account="echo", command=command).replace(
        f"app: echo-{version}", f"app: echo, version: {version}"
    )


TLS_SERVER = """
import ssl, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = getattr(self.connection, "asked", "")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"tls {self.connection.version()} asked {name}\\n".encode())
    def log_message(self, *_):
        pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + "/leaf.crt", sys.argv[1] + "/leaf.key")
context.sni_callback = lambda connection, name, _: setattr(connection, "asked", name)
server = HTTPServer(("", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
KEYS = Path("/var/tmp/ambit-destinationtest")
"""Pods see it: their /tmp is their own."""
VAULT = f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: vault, namespace: shop}}
spec:
  hosts: [vault.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8443}}]
  workloadSelector: {{labels: {{app: vault}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: vault, namespace: shop}}
spec:
  host: vault.example.com
  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {KEYS}/leaf-ca.crt}}}}
"""
MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---"""
    + server("v1")
    + server("v2")
    + pod("client", "node2", account="client")
    + pod(
        "vault",
        "node1",
        command=json.dumps(["/usr/bin/python3", "-c", TLS_SERVER, str(KEYS)]),
        extra=", istio.io/dataplane-mode: none",
    )
    + """
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
)
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
"""
SUBSETS = (
    RULE
    + """
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""
)
VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo]
  http:
  - match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: echo, subset: v3}}]
  - route:
    - {destination: {host: echo, subset: v1}, weight: 70}
    - {destination: {host: echo, subset: v2}, weight: 30}
"""


def policy(text: str) -> str:
    return RULE + "  trafficPolicy: " + text


STICKY = policy("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}")
BOUND = policy("{connectionPool: {http: {http2MaxRequests: 1}}}")
OUTLIERS = policy(
    "{outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 3s, maxEjectionPercent: 50}}"
)


def curl(*words: str) -> list[str]:
    """Status and body of each request."""
    form = "%{http_code}\n"
    out = LAB.run("exec", "shop/client", "--", "curl", "-s", "-m", "10", "-w", form, *words).stdout
    return out.split()


def many(count: int, *words: str) -> Counter[str]:
    """Who answered how many requests, and with which status."""
    found = curl(*words, f"http://echo/?[1-{count}]")
    return Counter(found)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A meshed lab with a waypoint for the namespace."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    Authority().leaf(dns=["vault.example.com"]).write(KEYS)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        command = [sys.executable, "-m", "cli", "waypoint", "apply", "-n", "shop", "--name", "wp"]
        subprocess.run(
            [*command, "--enroll-namespace", "--wait", "--lab", LAB.name],
            check=True,
            timeout=120,
            cwd=REPOSITORY,
        )
        eventually(lambda: "http" in waypoint_metrics(), "requests go through the waypoint")
        yield directory
    finally:
        LAB.run("down")
        shutil.rmtree(KEYS)


def waypoint_pod() -> dict[str, object]:
    pods = json.loads(LAB.ambit("get", "pods", "-n", "shop", "-o", "json"))["items"]
    found: dict[str, object] = next(p for p in pods if p["metadata"]["name"].startswith("wp-"))
    return found


def waypoint_metrics() -> str:
    """What the waypoint counts, read in its pod after a request."""
    curl("http://echo/")
    name = waypoint_pod()["metadata"]["name"]  # type: ignore[index]
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:15020/metrics').read().decode())"
    return LAB.run("exec", f"shop/{name}", "--", "/usr/bin/python3", "-c", script).stdout


def put(directory: Path, text: str) -> Path:
    path = directory.parent / f"more{len(list(directory.parent.glob('more*')))}.yaml"
    path.write_text(text)
    LAB.ambit("apply", "-f", str(path))
    return path


def test_subsets_share_the_requests_by_weight(lab: Path) -> None:
    paths = [put(lab, SUBSETS), put(lab, VIRTUAL_SERVICE)]
    try:
        eventually(lambda: "503" in curl("http://echo/nowhere"), "the routes are in force")
        refused = " ".join(curl("http://echo/nowhere"))
        assert "no DestinationRule defines subset v3" in refused
        found = many(200)
        assert found["200"] == 200, found
        # Sixty are expected; this far off is one chance in 100,000.
        assert 33 <= found["v2"] <= 90, found
    finally:
        for path in reversed(paths):
            LAB.ambit("delete", "-f", str(path))
    eventually(lambda: "503" not in curl("http://echo/nowhere"), "the routes are gone")


def test_a_header_leads_to_one_endpoint(lab: Path) -> None:
    path = put(lab, STICKY)
    try:
        eventually(lambda: len(many(20, "-H", "x-user: a")) == 2, "requests of one user stay together")
        users = [frozenset(many(5, "-H", f"x-user: {n}")) for n in range(12)]
        assert all(len(found) == 2 for found in users), "a status and one server each"
        assert len(set(users)) == 2, "both servers have users"
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_a_request_beyond_the_bound_is_refused_by_name(lab: Path) -> None:
    path = put(lab, BOUND)
    both = ["--parallel", "--parallel-immediate", "http://echo/slow", "http://echo/slow"]
    try:
        eventually(lambda: "503" in curl(*both), "one of two requests at once is refused")
        said = " ".join(curl(*both))
        assert "1 of 1 requests under way (http2MaxRequests of DestinationRule/shop/echo)" in said
        assert 'limit="http2MaxRequests"' in waypoint_metrics()
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_a_failing_endpoint_is_left_out_and_comes_back(lab: Path) -> None:
    path = put(lab, OUTLIERS)
    try:
        eventually(lambda: "200" in curl("http://echo/"), "it answers")
        LAB.ambit("exec", "shop/echo-v2", "--", "touch", "/tmp/fail")
        eventually(lambda: many(30)["503"] == 0, "the failing one is left out")
        metrics = waypoint_metrics()
        assert "ambit_endpoint_ejections_total{" in metrics
        LAB.ambit("exec", "shop/echo-v2", "--", "rm", "/tmp/fail")
        eventually(lambda: many(30)["v2"] > 0, "it is taken back")
        assert many(30)["503"] == 0
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_tls_to_a_server_outside_the_mesh_begins_at_the_waypoint(lab: Path) -> None:
    path = put(lab, VAULT)
    try:
        eventually(lambda: "200" in curl("http://vault.example.com/"), "the server answers")
        assert " ".join(curl("http://vault.example.com/")) == "tls TLSv1.3 asked vault.example.com 200"
        Authority().leaf(dns=["vault.example.com"]).write(KEYS, "other")
        wrong = put(lab, VAULT.replace("leaf-ca.crt", "other-ca.crt"))
        eventually(lambda: "503" in curl("http://vault.example.com/"), "another root does not vouch for it")
        said = " ".join(curl("http://vault.example.com/"))
        assert "(SNI vault.example.com)" in said
        assert "certificate" in said
        LAB.ambit("delete", "-f", str(wrong))
    finally:
        LAB.run("delete", "-f", str(path))
