# SPDX-License-Identifier: Apache-2.0
"""The same `ambit` verbs on a cluster, over kubectl: state, why, edges, flows, enrolment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.k8s.bed import CLUSTER, ROOT, Space, kubectl, ok
from tests.k8s.test_k8s_policy import REFUSED, SECURITY
from tests.k8s.test_k8s_traffic import enrolled
from tests.support.eventually import eventually

KUBECONFIG = subprocess.run(
    [str(CLUSTER), "kubeconfig"], capture_output=True, text=True, check=False
).stdout.strip()


def ambit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words, "--kubeconfig", KUBECONFIG],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "AMBIT_KUBECTL": f"{CLUSTER} kubectl"},
    )


def data(*words: str, code: int = 0) -> Any:
    done = ambit(*words, "-o", "json")
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_why_tells_what_curl_gets(space: Space) -> None:
    ok(kubectl("-n", space.name, "create", "serviceaccount", "friend"))
    space.server("web", node=2)
    space.client("friend", node=1, serviceAccountName="friend")
    space.client("stranger", node=1)
    enrolled(space, "web", "friend", "stranger")
    rules = [{"from": [{"source": {"principals": [f"cluster.local/ns/{space.name}/sa/friend"]}}]}]
    space.apply("AuthorizationPolicy", SECURITY, "friends", {"action": "ALLOW", "rules": rules})
    eventually(lambda: space.curl("stranger", "http://web/").code in REFUSED, "a stranger is refused")
    assert ok(space.curl("friend", "http://web/")).strip() == "hello"

    good = data("why", f"{space.name}/friend", "web")
    (branch,) = good["attempts"][0]["branches"]
    assert (good["works"], branch["path"], branch["node"]) == (True, "hbone", "node2")
    bad = data("why", f"{space.name}/stranger", "web", code=2)
    assert (bad["works"], bad["cause"]["code"]) == (False, "AMB3204")
    assert bad["cause"]["yaml"] == (
        f"- from: [{{source: {{principals: [cluster.local/ns/{space.name}/sa/default]}}}}]"
    )
    assert any(flow["verdict"] == "denied" for flow in bad["flows"])

    edges = {e["source"]["workload"]: e for e in data("edges", "-n", space.name)["items"]}
    assert edges["friend"]["mutualTls"] is True
    assert edges["stranger"]["failures"].keys() == {"DENY"}
    (item,) = data("authz", f"{space.name}/web")["items"]
    allowed = {c["identity"] for c in item["callers"] if any(c["allowed"].values())}
    assert allowed == {f"spiffe://cluster.local/ns/{space.name}/sa/friend"}
    assert "friend" in ambit("flows", "-n", space.name, "--verdict", "forwarded").stdout


def test_check_and_status_see_the_cluster(space: Space) -> None:
    report = data("check")
    assert report["success"], report
    checked = {c["check"] for group in report["categories"] for c in group["checks"] if c["result"] == "ok"}
    assert {"kernel", "controller", "node1/bpf", "node2/ztunnel", "node2/lag"} <= checked
    status = data("status")
    assert [(n["name"], n["agent"], n["ztunnel"]) for n in status["nodes"]] == [
        ("node1", "ready", "ready"),
        ("node2", "ready", "ready"),
    ]


def test_enrolment_is_reported(outside: Space) -> None:
    outside.client("client", node=1)
    outside.ready()
    (item,) = data("enroll", f"ns/{outside.name}")["items"]
    assert (item["pod"], item["result"]) == (f"{outside.name}/client", "enrolled")
    (item,) = data("unenroll", f"ns/{outside.name}")["items"]
    assert item["result"] == "out of the mesh"
