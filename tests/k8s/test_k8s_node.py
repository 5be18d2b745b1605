# SPDX-License-Identifier: Apache-2.0
"""The node's part: what it may do, and that traffic outlives its restart."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.k8s.bed import CLUSTER, MANIFESTS, SYSTEM, TOOLS, Space, get, install, kubectl, ok, on_node, run
from tests.k8s.test_k8s_traffic import enrolled
from tests.support.eventually import eventually

PLUGIN = "ambit-cni"
AGENT = f"system:serviceaccount:{SYSTEM}:ztunnel"
ANNOTATE = '{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}'
NOT_READY = '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'


def patch(space: Space, node: str, body: str) -> tuple[int, str]:
    """Change a pod's status as the agent of a node does; kubectl would read it first."""
    pki = Path(ok(run(str(CLUSTER), "kubeconfig")).strip()).parent
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    server = urlsplit(ok(kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")))
    connection = HTTPSConnection(server.hostname or "", server.port, context=context, timeout=10)
    path = f"/api/v1/namespaces/{space.name}/pods/web/status"
    headers = {
        "Content-Type": "application/merge-patch+json",
        "Impersonate-User": AGENT,
        "Impersonate-Extra-authentication.kubernetes.io%2fnode-name": node,
    }
    with contextlib.closing(connection):
        connection.request("PATCH", path, body, headers)
        answer = connection.getresponse()
        return answer.status, str(json.loads(answer.read()).get("message", ""))


def test_an_agent_writes_to_pods_of_its_own_node_only(outside: Space) -> None:
    outside.server("web", node=2)
    outside.ready()
    code, message = patch(outside, "node1", ANNOTATE)
    assert (code, "the node agent may write to pods of its own node only" in message) == (403, True), message
    code, message = patch(outside, "node2", NOT_READY)
    assert (code, "may change annotations only" in message) == (403, True), message
    assert patch(outside, "node2", ANNOTATE)[0] == 200
    assert outside.enrolled("web")


@pytest.mark.parametrize(
    ("verb", "what"),
    [("get", "secrets"), ("create", "pods"), ("delete", "pods"), ("patch", "pods"), ("patch", "nodes")],
)
def test_an_agent_may_no_more_than_it_needs(verb: str, what: str) -> None:
    answer = kubectl("auth", "can-i", verb, what, "--as", AGENT, "-A")
    assert (answer.code, answer.out.strip()) == (1, "no")


def test_connections_are_made_throughout_a_restart_of_both_nodes(space: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    ok(kubectl("-n", SYSTEM, "rollout", "restart", "daemonset/ambit-node"))
    ok(kubectl("-n", SYSTEM, "rollout", "status", "daemonset/ambit-node", "--timeout=100s", timeout_s=110))
    eventually(lambda: space.curl("client", "http://web/").code == 0, "requests pass again")
    assert get("pod", "web", "-n", space.name)["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_node_comes_back_into_the_mesh_after_a_reboot(space: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    space.apply("PeerAuthentication", "security.istio.io/v1", "strict", {"mtls": {"mode": "STRICT"}})
    ok(run(str(CLUSTER), "reboot", "1", timeout_s=100))

    def restarted() -> bool:
        statuses = get("pod", "client", "-n", space.name)["status"]["containerStatuses"]
        return statuses[0]["restartCount"] > 0 and statuses[0]["ready"]

    eventually(restarted, "the kubelet has started the pod again", timeout_s=100)
    eventually(
        lambda: space.curl("client", "http://web/").code == 0, "the pod is in the mesh again", timeout_s=60
    )


def test_the_other_controller_goes_on_where_the_writing_one_ends(space: Space) -> None:
    def holder() -> str:
        return str(get("lease", "ambit-controller", "-n", SYSTEM)["spec"].get("holderIdentity", ""))

    first = holder()
    pod = next(
        item["metadata"]["name"]
        for item in get("pods", "-n", SYSTEM, "-l", "app=ambit-controller")["items"]
        if first.startswith(item["metadata"]["name"])
    )
    ok(kubectl("-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force"))
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    eventually(lambda: space.curl("client", "http://web/").code == 0, "pods that are new are served")
    eventually(lambda: holder() not in ("", first), "another replica writes", timeout_s=60)


def test_a_pod_that_is_gone_leaves_nothing_on_its_node(space: Space) -> None:
    space.client("client", node=1)
    enrolled(space, "client")
    uid = get("pod", "client", "-n", space.name)["metadata"]["uid"]
    pods = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:15016/pods').read().decode())"
    (agent,) = (
        pod["metadata"]["name"]
        for pod in get("pods", "-n", SYSTEM, "-l", "app=ambit-node")["items"]
        if pod["spec"]["nodeName"] == "node1"
    )

    def told() -> str:
        return ok(kubectl("-n", SYSTEM, "exec", agent, "-c", "agent", "--", "python", "-c", pods))

    assert re.search(uid, told())
    ok(kubectl("-n", space.name, "delete", "pod", "client", "--wait=true"))
    eventually(lambda: uid not in told(), "the agent has forgotten the pod")


def test_the_first_connection_of_a_pod_is_in_the_mesh_already(space: Space) -> None:
    space.server("web", node=2)
    enrolled(space, "web")
    space.apply("PeerAuthentication", "security.istio.io/v1", "strict", {"mtls": {"mode": "STRICT"}})
    once = {
        "name": "once",
        "image": TOOLS,
        "imagePullPolicy": "Never",
        "command": ["curl", "-sS", "--fail", "--max-time", "10", "http://web/"],
    }
    space.client("once", node=1, containers=[once], restartPolicy="Never")
    phase = ["wait", "pod", "once", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s"]
    ok(kubectl("-n", space.name, *phase))


def agents(count: int, selector: dict[str, str | None]) -> None:
    body = json.dumps({"spec": {"template": {"spec": {"nodeSelector": selector}}}})
    ok(kubectl("-n", SYSTEM, "patch", "daemonset", "ambit-node", "--type=merge", "-p", body))
    eventually(
        lambda: len(get("pods", "-n", SYSTEM, "-l", "app=ambit-node")["items"]) == count,
        f"there are {count} agents",
        timeout_s=60,
    )


def test_without_an_agent_pods_wait_and_then_start_captured(space: Space) -> None:
    agents(1, {"kubernetes.io/hostname": "node2"})
    try:
        space.client("client", node=1)

        def events() -> str:
            return ok(kubectl("-n", space.name, "get", "events", "-o", "jsonpath={.items[*].message}"))

        eventually(lambda: "node agent does not answer" in events(), "the pod's event tells why it waits")
        assert get("pod", "client", "-n", space.name)["status"]["phase"] == "Pending"
    finally:
        agents(2, {"kubernetes.io/hostname": None})
    enrolled(space, "client")


def test_removal_leaves_nothing_on_the_nodes(space: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    assert "0x111" in ok(space.exec("client", "ip", "rule"))
    try:
        ok(kubectl("-n", SYSTEM, "delete", "daemonset", "ambit-node", "--wait=true"))
        ok(kubectl("apply", "-k", str(MANIFESTS / "uninstall")))
        rollout = ["rollout", "status", "daemonset/ambit-cleanup", "--timeout=100s"]
        ok(kubectl("-n", SYSTEM, *rollout, timeout_s=110))
        assert not space.enrolled("web")
        assert "0x111" not in ok(space.exec("client", "ip", "rule"))
        assert ok(space.curl("client", "http://web/")).strip() == "hello"
        for node in (1, 2):
            assert PLUGIN not in on_node(node, "ls", "/opt/cni/bin")
            assert PLUGIN not in on_node(node, "sh", "-c", "cat /etc/cni/net.d/*")
            assert "ambit" not in on_node(node, "ls", "/sys/fs/bpf")
            assert on_node(node, "find", "/sys/fs/cgroup", "-name", "ztunnel") == ""
        # A pod may start again without the mesh.
        space.client("later", node=1)
        space.ready()
    finally:
        ok(kubectl("delete", "-k", str(MANIFESTS / "uninstall"), "--wait=true"))
        install()
