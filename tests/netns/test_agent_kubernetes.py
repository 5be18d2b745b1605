# SPDX-License-Identifier: Apache-2.0
"""The node agent on a real API server, which comes and goes; pods have the cgroups that a kubelet makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from agent_bed import Bed, Pod, ask, inside

from tests.kube_api.conftest import prepare
from tests.kube_api.control_plane import ControlPlane, find_binary
from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]
REDIRECTION = "ambient.istio.io/redirection"


class Node:
    """A bed whose agent follows a control plane on the node's own loopback."""

    def __init__(self, bed: Bed, plane: ControlPlane) -> None:
        self.bed = bed
        self.plane = plane
        labels = {"istio.io/dataplane-mode": "ambient"}
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
        uid = plane.pod("istio-system", "ambit-node-x", account="ztunnel")
        token = plane.token("istio-system", "ztunnel", pod="ambit-node-x", uid=uid)
        del bed.settings["AMBIT_OBJECTS"], bed.settings["AMBIT_STATUS_DIR"]
        bed.settings["AMBIT_KUBECONFIG"] = str(plane.kubeconfig_of(token, "agent"))

    def pod(self, name: str, cgroup: str = "kubepods-burstable.slice/kubepods-burstable-pod{}.slice") -> Pod:
        """Run a pod and have an object stand for it, as kubelet and runtime do."""
        made = Pod(self.bed, name, run=False)
        made.uid = self.plane.pod("shop", name, ip=made.ip)
        uid = made.uid.replace("-", "_") if cgroup.endswith(".slice") else made.uid
        made.cgroup = self.bed.kubepods / cgroup.format(uid) / "cri-containerd-0.scope"
        made.cgroup.mkdir(parents=True)
        made.start()
        return made

    def annotated(self, pod: Pod) -> bool:
        metadata: dict[str, Any] = self.plane.get("pod", "shop", pod.name)["metadata"]
        return bool(metadata.get("annotations", {}).get(REDIRECTION) == "enabled")


@pytest.fixture
def node() -> Iterator[Node]:
    binary = find_binary()
    if binary is None:
        pytest.skip("this host has no Kubernetes binary: `tests/k8s/cluster build` makes it")
    bed = Bed()
    directory = bed.directory / "kube"
    directory.mkdir()
    plane = ControlPlane(binary, directory, ("nsenter", f"--net=/run/netns/{bed.node}"))
    try:
        plane.start()
        prepare(plane)
        yield Node(bed, plane)
    finally:
        plane.stop()
        bed.close()


def test_pods_of_the_node_are_enrolled_and_annotated_and_released_by_label(node: Node) -> None:
    bed = node.bed
    burstable = node.pod("burstable")
    guaranteed = node.pod("guaranteed", "kubepods-pod{}.slice")
    cgroupfs = node.pod("cgroupfs", "besteffort/pod{}")
    pods = (burstable, guaranteed, cgroupfs)
    bed.start()
    for pod in pods:
        bed.wait_enrolled(pod)
        eventually(lambda pod=pod: node.annotated(pod), f"{pod.name} is annotated")  # type: ignore[misc]
    answer = burstable.call(guaranteed.ip, 8080)
    assert answer == f"ztunnel outbound {guaranteed.ip}:8080 from {burstable.ip}"
    node.plane.kubectl("-n", "shop", "label", "pod", "burstable", "istio.io/dataplane-mode=none")
    bed.wait_ignored(burstable)
    assert not node.annotated(burstable)
    assert burstable.call(guaranteed.ip, 8080).startswith("ztunnel inbound")
    node.plane.kubectl("-n", "shop", "label", "pod", "burstable", "istio.io/dataplane-mode-")
    bed.wait_enrolled(burstable)
    # An object that is deleted while its processes run leaves the pod captured.
    node.plane.kubectl("-n", "shop", "delete", "pod", "cgroupfs", "--force")
    assert inside(bed.node, lambda: ask(cgroupfs.ip, 8080)).startswith("ztunnel inbound")
    cgroupfs.stop()
    eventually(lambda: not bed.pod_state(cgroupfs), "the pod has left")
    for process in (bed.ztunnel, bed.agent):
        assert process is not None
        bed.stop(process)
    cleanup = bed.cleanup()
    assert cleanup.returncode == 0, cleanup.stderr
    assert not any(node.annotated(pod) for pod in (burstable, guaranteed))


def test_an_api_server_that_is_away_is_in_nobodys_way(node: Node) -> None:
    bed = node.bed
    web, client, late = node.pod("web"), node.pod("client"), node.pod("late")
    bed.start()
    for pod in (web, client, late):
        bed.wait_enrolled(pod)
    node.plane.kill_apiserver()

    # A sandbox goes and comes, as after a crash.
    late.stop()
    assert bed.cni("DEL", late)["result"] == "removed"
    late.start()
    assert bed.cni("ADD", late)["result"] == "enrolled"

    # The agent, too: nothing passes in plain, and ztunnel has its pods again without the API server.
    assert bed.agent is not None
    bed.stop(bed.agent, signal.SIGKILL)
    assert client.call(web.ip, 8080).startswith("ztunnel outbound")
    messages = len(bed.zds_log())
    bed.start_agent()
    eventually(
        lambda: "snapshot_sent" in [entry["kind"] for entry in bed.zds_log()[messages:]], "ztunnel's snapshot"
    )
    since = [entry for entry in bed.zds_log()[messages:] if "uid" in entry]
    assert {entry["uid"] for entry in since} == {web.uid, client.uid, late.uid}
    assert client.call(web.ip, 8080).startswith("ztunnel outbound")
    assert client.call(late.ip, 8080).startswith("ztunnel outbound")
    assert "which pods are annotated is not known" in bed.log("agent.log")

    # What happened meanwhile takes effect afterwards.
    node.plane.start_apiserver()
    for pod in (web, client, late):
        bed.wait_enrolled(pod)
        eventually(lambda pod=pod: node.annotated(pod), f"{pod.name} is annotated")  # type: ignore[misc]
    node.plane.kubectl("label", "namespace", "shop", "istio.io/dataplane-mode=none", "--overwrite")
    for pod in (web, client, late):
        bed.wait_ignored(pod)
        assert not node.annotated(pod)
