# SPDX-License-Identifier: Apache-2.0
"""Waypoints in a lab, from `ambit waypoint apply` to their end: routes, L7 policy, scale, loss, removal.

The clients are curl, outside and inside the mesh; that a request went through the waypoint
is told by a header that only its route adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_bed import REPOSITORY, Lab, pod

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("waypointtest")


def server(version: str) -> str:
    script = (
        f"mkdir -p /tmp/site && cd /tmp/site && echo {version} > index.html && mkdir admin && "
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
    + pod("client", "node2", account="client")
    + pod("outsider", "node2", extra=", istio.io/dataplane-mode: none")
    + service("echo")
    + service("echo-v1", "v1")
    + service("echo-v2", "v2")
)
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: echo}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-waypoint, value: "yes"}]}
    backendRefs: [{name: echo-v1, port: 80, weight: 90}, {name: echo-v2, port: 80, weight: 10}]
"""
TO_ECHO = "{kind: Service, name: echo}"
NO_ADMIN = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [TO_ECHO]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
""".replace("TO_ECHO", TO_ECHO)
ONLY_WAYPOINT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-waypoint, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/wp]}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


def waypoint(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "waypoint", *words, "--lab", LAB.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def curl(who: str, url: str = "http://echo/", *words: str) -> str:
    """What a pod's curl prints: of one request status, whether the waypoint marked it, and the body."""
    form = "%{http_code} %header{x-waypoint}\n"
    return LAB.run("exec", f"shop/{who}", "--", "curl", "-s", "-m", "5", "-w", form, *words, url).stdout


def marked(who: str = "client") -> bool:
    return "200 yes" in curl(who)


def passed(who: str = "client") -> bool:
    """A request was answered, but not through the waypoint."""
    return "200 \n" in curl(who)


def closed(who: str = "client", url: str = "http://echo/") -> bool:
    return "000 \n" in curl(who, url)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A meshed lab with a waypoint for the namespace."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        put(directory, ROUTE)
        assert passed(), "a route without a waypoint has no effect"
        waypoint("apply", "-n", "shop", "--name", "wp", "--enroll-namespace", "--wait")
        eventually(marked, "requests go through the waypoint")
        yield directory
    finally:
        LAB.run("down")


def put(directory: Path, text: str) -> Path:
    path = directory.parent / f"more{len(list(directory.parent.glob('more*')))}.yaml"
    path.write_text(text)
    LAB.ambit("apply", "-f", str(path))
    return path


def test_a_canary_takes_its_share_of_the_requests_of_one_connection(lab: Path) -> None:
    out = LAB.ambit("exec", "shop/client", "--", "curl", "-s", "-m", "60", "http://echo/?[1-300]")
    shares = Counter(out.split())
    assert sum(shares.values()) == 300, shares
    # Thirty are expected; this far off is one chance in 100,000.
    assert 8 <= shares["v2"] <= 58, shares


def test_a_route_says_that_it_is_accepted(lab: Path) -> None:
    route = json.loads(LAB.ambit("get", "httproute", "-n", "shop", "echo", "-o", "json"))
    (parent,) = route["status"]["parents"]
    states = {c["type"]: c["status"] for c in parent["conditions"]}
    assert states == {"Accepted": "True", "ResolvedRefs": "True"}


def test_a_request_that_a_policy_denies_gets_403(lab: Path) -> None:
    path = put(lab, NO_ADMIN)
    try:
        eventually(lambda: "403" in curl("client", "http://echo/admin/"), "the path is closed")
        assert "RBAC: access denied" in curl("client", "http://echo/admin/")
        assert marked(), "other paths stay open"
        assert "200" in curl("client", "http://echo-v1/admin/"), (
            "another service of the same waypoint is not meant"
        )
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_the_destination_sees_the_waypoint_and_can_insist_on_it(lab: Path) -> None:
    path = put(lab, ONLY_WAYPOINT)
    workload = next(w for w in LAB.admin("/debug/registry")["workloads"] if w["name"] == "echo-v1")
    direct = f"http://{workload['addresses'][0]}:8080/"
    try:
        eventually(lambda: closed("client", direct), "the pod's own address is closed")
        eventually(lambda: closed("outsider"), "a client without identity is refused")
        assert marked()
    finally:
        LAB.ambit("delete", "-f", str(path))
    eventually(lambda: "200" in curl("client", direct), "the pod's own address is open again")


def test_a_client_outside_the_mesh_goes_past_the_waypoint(lab: Path) -> None:
    eventually(lambda: passed("outsider"), "the outsider is answered at L4")


def test_label_none_takes_a_service_out_and_in(lab: Path) -> None:
    LAB.ambit("label", "service", "echo", "istio.io/use-waypoint=none", "-n", "shop")
    eventually(passed, "requests go past the waypoint")
    LAB.ambit("label", "service", "echo", "istio.io/use-waypoint-", "-n", "shop")
    eventually(marked, "requests go through the waypoint again")


def test_a_waypoint_for_all_guards_the_pods_own_addresses_too(lab: Path) -> None:
    path = put(lab, NO_ADMIN.replace(TO_ECHO, "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}"))
    workload = next(w for w in LAB.admin("/debug/registry")["workloads"] if w["name"] == "echo-v1")
    direct = f"http://{workload['addresses'][0]}:8080/admin/"
    try:
        eventually(lambda: "403" in curl("client", "http://echo/admin/"), "the service is guarded")
        assert "200" in curl("client", direct), "a waypoint for services does not take this"
        LAB.ambit("label", "gateway", "wp", "istio.io/waypoint-for=all", "-n", "shop")
        eventually(lambda: "403" in curl("client", direct), "the pod is guarded")
        assert "200" in curl("client", direct.removesuffix("admin/"))
    finally:
        LAB.ambit("delete", "-f", str(path))
        LAB.ambit("label", "gateway", "wp", "istio.io/waypoint-for-", "-n", "shop")
    eventually(lambda: "200" in curl("client", direct), "all is open again")


def waypoint_pods() -> list[str]:
    pods = json.loads(LAB.ambit("get", "pods", "-n", "shop", "-o", "json"))["items"]
    return [
        p["metadata"]["name"]
        for p in pods
        if p["metadata"]["name"].startswith("wp-")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"]["conditions"])
    ]


def test_it_scales_and_a_lost_pod_is_made_up_for(lab: Path) -> None:
    LAB.ambit("scale", "shop/wp", "--replicas", "2")
    eventually(lambda: len(waypoint_pods()) == 2, "two ready pods")
    LAB.ambit("restart", "pod", f"shop/{waypoint_pods()[0]}")
    eventually(marked, "the other serves")
    eventually(lambda: len(waypoint_pods()) == 2, "two ready pods again")
    LAB.ambit("scale", "shop/wp", "--replicas", "1")
    eventually(lambda: len(waypoint_pods()) == 1, "one pod")
    eventually(marked, "one serves")


def test_without_any_pod_traffic_fails_closed_and_says_why(lab: Path) -> None:
    LAB.ambit("scale", "shop/wp", "--replicas", "0")
    eventually(lambda: waypoint_pods() == [], "no pod")
    eventually(closed, "connections fail")
    assert closed(), "nothing goes past a waypoint that served once"
    assert "waypoint shop/wp.shop.svc.cluster.local" in LAB.log("node2")
    gateway = json.loads(LAB.ambit("get", "gateway", "-n", "shop", "wp", "-o", "json"))
    reasons = {c["type"]: c["reason"] for c in gateway["status"]["conditions"]}
    assert reasons["Programmed"] == "AddressNotUsable"
    LAB.ambit("scale", "shop/wp", "--replicas", "1")
    eventually(marked, "it serves again")


def test_a_restarted_controller_keeps_what_it_gave(lab: Path) -> None:
    before = controller_pid()
    LAB.ambit("restart", "controller")
    eventually(lambda: controller_pid() not in ("", before), "another controller runs")
    # It refuses connections until its objects are read, which `eventually` takes for "not yet".
    registry = eventually(lambda: (found := LAB.admin("/debug/registry"))["routes"] and found, "it serves")
    (route,) = registry["routes"]
    assert route["port"] == 0
    services = {s["name"]: s["waypoint"] for s in registry["services"]}
    assert services["echo"]["hbone_mtls_port"] == 15008
    assert services["wp"] is None
    assert marked()


def controller_pid() -> str:
    rows = [line.split() for line in LAB.run("status").stdout.splitlines()]
    return next((row[2] for row in rows if row[:2] == ["controller", "runs"]), "")


def test_a_deleted_waypoint_leaves_nothing_and_traffic_goes_on(lab: Path) -> None:
    assert "True" in waypoint("list", "-n", "shop")
    waypoint("delete", "-n", "shop", "wp")
    eventually(passed, "requests go past at L4")
    eventually(lambda: waypoint_pods() == [], "its pods are gone")
    eventually(
        lambda: not list((LAB.state / "generated").glob("Deployment/*/*.yaml")), "its objects are gone"
    )
