# SPDX-License-Identifier: Apache-2.0
"""Every expression of every dashboard and rule, asked of a real Prometheus that scrapes a live lab."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_bed import MANIFEST, ONLY_FRIEND, REPOSITORY, Lab, pod

from tests.support.eventually import eventually
from tools.dashboards import DASHBOARDS, OUT, expressions, outputs

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("grafanatest")
WINDOW = "20s"
LOAD = r"""
while :; do curl -s -m 9 -o /dev/null -Z --parallel-max 2 'http://web/slow?[1-2]'; sleep 3; done &
while :; do
  curl -s -m 5 -o /dev/null http://web/ -o /dev/null http://web/admin
  curl -s -m 5 -o /dev/null -X POST http://bad/
  curl -s -m 5 -o /dev/null -H 'x-fault: yes' http://web/
  curl -s -m 5 -o /dev/null -Z --parallel-max 30 'http://web/?[1-30]'
  sleep 0.5
done
"""
"""Every second, of each kind of request something; half of the time as many as may run at once."""
WEB = """
import http.server, socket, time
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/slow"):
            time.sleep(3)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
Server(("::", 8080), Handler).serve_forever()
"""
"""Answers POST with 501, as Python's servers do what they do not know."""
BEHIND_WAYPOINT = (
    pod("load", "node2", account="load", command=json.dumps(["sh", "-c", LOAD]))
    + pod("web", "node1", account="web", command=json.dumps(["/usr/bin/python3", "-c", WEB]))
    + """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  selector: {app: nobody}
  ports: [{name: grpc, port: 4317}]
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
      opentelemetry: {service: nobody.shop.svc.cluster.local, port: 4317}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: default, namespace: shop}
spec:
  tracing: [{providers: [{name: otel}], randomSamplingPercentage: 10}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - name: faulty
    match: [{headers: {x-fault: {exact: "yes"}}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - name: usual
    route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bad, namespace: shop}
spec:
  hosts: [bad]
  http: [{retries: {attempts: 1, retryOn: 5xx}, route: [{destination: {host: bad}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 2}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bad, namespace: shop}
spec:
  host: bad
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
"""
)
RELAY = """
import asyncio, sys
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def serve(reader, writer):
    try:
        there = await asyncio.open_connection(sys.argv[3], 15020)
    except OSError:
        return writer.close()
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()
asyncio.run(main())
"""
"""Stands on a node, from where pods can be reached, and lets the machine scrape one."""
RELAY_PORT = 19020


def scrape_config(lab: Lab) -> dict[str, Any]:
    """Scrape as on Kubernetes: a `node` label on every target of the DaemonSet."""
    slot = lab.layout["slot"]
    nodes = {name: f"198.18.{slot}.{4 * index + 2}" for index, name in enumerate(lab.layout["nodes"])}

    def job(name: str, port: int) -> dict[str, Any]:
        targets = [
            {"targets": [f"{address}:{port}"], "labels": {"node": node}} for node, address in nodes.items()
        ]
        return {"job_name": name, "static_configs": targets}

    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(OUT / "rules.yaml")],
        "scrape_configs": [
            job("ztunnel", 15020),
            job("agent", 15017),
            {
                "job_name": "waypoint",
                "static_configs": [{"targets": [f"{nodes['node1']}:{RELAY_PORT}"]}],
            },
            {"job_name": "controller", "static_configs": [{"targets": [lab.controller]}]},
        ],
    }


def relay_to_waypoint() -> subprocess.Popen[bytes]:
    """Make the waypoint and a way to its metrics."""
    apply = ["-m", "cli", "waypoint", "apply", "-n", "shop", "--name", "wp", "--wait", "--lab", LAB.name]
    done = subprocess.run(
        [sys.executable, *apply], capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workloads = LAB.admin("/debug/registry")["workloads"]
    address = next(w["addresses"][0] for w in workloads if w["name"].startswith("wp-"))
    here = f"198.18.{LAB.layout['slot']}.2"
    enter = ["ip", "netns", "exec", f"ambit-{LAB.name}-node1", "/usr/bin/python3", "-c", RELAY]
    return subprocess.Popen([*enter, here, str(RELAY_PORT), address])


class Prometheus:
    """A real one, on a free loopback port."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            "prometheus",
            f"--config.file={directory}/prometheus.yaml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={self.address}",
        ]
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def get(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A lab with traffic of every kind, scraped."""
    directory = tmp_path_factory.mktemp("grafana")
    (directory / "objects").mkdir()
    (directory / "objects" / "shop.yaml").write_text(f"{MANIFEST}---{BEHIND_WAYPOINT}")
    (directory / "policy.yaml").write_text(ONLY_FRIEND)
    server: Prometheus | None = None
    relay: subprocess.Popen[bytes] | None = None
    try:
        LAB.ambit("up", "-f", str(directory / "objects"), "--nodes", "2")
        relay = relay_to_waypoint()
        server = Prometheus(directory, scrape_config(LAB))
        assert [LAB.call(name) for name in ("friend", "outsider", "snoop")] == ["got"] * 3
        LAB.ambit("apply", "-f", str(directory / "policy.yaml"))
        eventually(lambda: LAB.call("snoop") == "refused", "the policy is in force")
        asked = server
        eventually(
            lambda: (
                all(target["health"] == "up" for target in asked.get("targets")["activeTargets"])
                and asked.ask('ambit_connections_ended_total{reason="policy_denied"}')
            ),
            "all targets are scraped and the denial is counted",
        )
        LAB.call("friend")
        LAB.call("snoop")
        yield server
    finally:
        if server is not None:
            server.stop()
        if relay is not None:
            relay.terminate()
            relay.wait(20)
        LAB.run("down")


def concrete(expression: str) -> str:
    """Fill Grafana's variables in."""
    filled = expression.replace("$__rate_interval", WINDOW)
    return re.sub(r"\$(node|service)", ".*", filled)


@pytest.mark.parametrize(
    ("where", "expression"), list(expressions()), ids=[where for where, _ in expressions()]
)
def test_each_expression_returns_data(prometheus: Prometheus, where: str, expression: str) -> None:
    asked = concrete(expression)
    if where.startswith("rule Ambit"):
        prometheus.ask(asked)
        # A healthy mesh fires no alert: what is compared must be there all the same.
        asked = re.sub(r" [<>] [\d.]+$", "", asked)
    eventually(lambda: prometheus.ask(asked), f"{where} has data: {asked}")


def test_every_series_of_the_daemonset_has_a_node(prometheus: Prometheus) -> None:
    assert prometheus.ask('up{job=~"ztunnel|agent"}')
    assert not prometheus.ask('{job=~"ztunnel|agent",node=""}')


def test_names_and_labels_are_those_that_kiali_asks_for(prometheus: Prometheus) -> None:
    (series, *_) = prometheus.ask('istio_tcp_connections_opened_total{reporter="source"}')
    for side in ("source", "destination"):
        for label in (
            "workload",
            "workload_namespace",
            "canonical_service",
            "canonical_revision",
            "principal",
        ):
            assert series["metric"][f"{side}_{label}"]
    for label in ("destination_service", "destination_service_name", "destination_service_namespace"):
        assert series["metric"][label]
    assert series["metric"]["response_flags"] == "-"


def test_promtool_accepts_rules_and_metrics(prometheus: Prometheus) -> None:
    rules = subprocess.run(
        ["promtool", "check", "rules", str(OUT / "rules.yaml")], capture_output=True, text=True, check=False
    )
    assert rules.returncode == 0, rules.stdout + rules.stderr
    for target in prometheus.get("targets")["activeTargets"]:
        with urllib.request.urlopen(target["scrapeUrl"], timeout=5) as page:
            text = page.read()
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert checked.returncode != 1, checked.stderr.decode()


def test_the_committed_files_are_what_the_code_makes() -> None:
    for path, text in outputs().items():
        assert path.read_text() == text, (
            f"{path.relative_to(REPOSITORY)} is stale; run python -m tools.dashboards"
        )
    assert {path.stem for path in (OUT / "dashboards").iterdir()} == set(DASHBOARDS)
