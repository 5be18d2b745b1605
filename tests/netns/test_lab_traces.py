# SPDX-License-Identifier: Apache-2.0
"""One trace through two services behind two waypoints of a lab, to a collector inside the mesh.

The client's `traceparent` is its root; the applications do nothing but pass the field on, which is
what every tracing mesh asks of them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lab_bed import REPOSITORY, STRICT, Lab, pod
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("tracestest")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FRONT = """
import http.server, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        kept = {n: v for n, v in self.headers.items() if n.lower() in ("traceparent", "tracestate")}
        asked = urllib.request.Request("http://back/", headers=kept)
        body = urllib.request.urlopen(asked, timeout=5).read()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
"""
BACK = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = (self.headers.get("traceparent") or "none").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
"""
COLLECTOR = """
import base64, http.server
lines = []
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        lines.append(base64.b64encode(self.rfile.read(int(self.headers["content-length"]))))
        self.answer(b"")
    def do_GET(self):
        self.answer(b" ".join(lines))
"""
"""Keeps what is sent; the test decodes it."""


SERVE = """
import socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 8080), Handler).serve_forever()
"""


def served(name: str, script: str, node: str, waypoint: str) -> str:
    command = json.dumps(["/usr/bin/python3", "-c", script + SERVE])
    return (
        pod(name, node, account=name, command=command)
        + f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: {waypoint}}}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---"""
    )


MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: otel
      opentelemetry: {service: collector.shop.svc.cluster.local, port: 80, http: {path: /v1/traces}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: default, namespace: shop}
spec:
  tracing: [{providers: [{name: otel}], randomSamplingPercentage: 0}]
---"""
    + served("front", FRONT, "node1", "wp-a")
    + served("back", BACK, "node2", "wp-b")
    + served("collector", COLLECTOR, "node2", "none")
    + pod("client", "node2", account="client")
    + STRICT
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A meshed lab with two waypoints, plaintext refused everywhere."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        for name in ("wp-a", "wp-b"):
            words = ["waypoint", "apply", "-n", "shop", "--name", name, "--wait", "--lab", LAB.name]
            done = subprocess.run(
                [sys.executable, "-m", "cli", *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                cwd=REPOSITORY,
            )
            assert done.returncode == 0, done.stderr + done.stdout
        yield
    finally:
        LAB.run("down")


def curl(*words: str) -> str:
    return LAB.run("exec", "shop/client", "--", "curl", "-s", "-m", "5", *words).stdout


def spans() -> list[dict[str, Any]]:
    """Everything that the collector has, decoded."""
    found = []
    for line in curl("http://collector/").split():
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(base64.b64decode(line))
        for group in message.resource_spans:
            (waypoint,) = (a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            for scope in group.instrumentation_library_spans:  # `scope_spans` by its older name.
                found += [{"waypoint": waypoint, **decoded(span)} for span in scope.spans]
    return found


def decoded(span: Any) -> dict[str, Any]:
    values = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": {2: "server", 3: "client"}[span.kind],
        **values,
    }


def test_one_trace_goes_through_two_waypoints(lab: None) -> None:
    parent = f"00-{TRACE}-{SPAN}-01"

    def asked() -> str:
        return curl("-H", f"traceparent: {parent}", "-H", "tracestate: shop=1", "http://front/")

    eventually(lambda: asked().startswith("00-") and len(spans()) >= 4, "spans of a request have come")
    seen = asked()
    _, trace, last, flags = seen.split("-")
    assert (trace, flags) == (TRACE, "01")
    eventually(lambda: any(span["id"] == last for span in spans()), "the spans of this request have come")
    by_id = {span["id"]: span for span in spans()}
    chain = []
    while last != SPAN:
        chain.append(by_id[last])
        last = by_id[last]["parent"]
    assert [(span["waypoint"], span["kind"]) for span in reversed(chain)] == [
        ("wp-a.shop", "server"),
        ("wp-a.shop", "client"),
        ("wp-b.shop", "server"),
        ("wp-b.shop", "client"),
    ]
    first, third = chain[3], chain[1]
    assert (first["istio.source_workload"], first["istio.destination_workload"]) == ("client", "front")
    assert (third["istio.source_workload"], third["istio.destination_workload"]) == ("front", "back")
    assert third["istio.source_principal"] == "spiffe://cluster.local/ns/shop/sa/front"
    assert {span["http.response.status_code"] for span in chain} == {200}


def test_a_decision_against_a_trace_holds_at_each_waypoint(lab: None) -> None:
    other = "a" * 32
    seen = curl("-H", f"traceparent: 00-{other}-{SPAN}-00", "http://front/")
    assert seen == f"00-{other}-{SPAN}-00"
    own = curl("http://front/")
    assert own.startswith("00-")
    assert own.endswith("-00"), "0 of 100 are sampled, and that is passed on"
    # A request that is traced, and sent later, has come: so would the others have.
    before = len(spans())
    curl("-H", f"traceparent: 00-{TRACE}-{SPAN}-01", "http://front/")
    eventually(lambda: len(spans()) >= before + 4, "the spans of a later request have come")
    assert {span["trace"] for span in spans()} == {TRACE}
