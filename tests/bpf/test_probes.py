# SPDX-License-Identifier: Apache-2.0
"""The node's own probes reach the application by exact 4-tuple; nobody else does."""

import pytest

from tests.bpf.node import Node, Pod, Worker, in_netns, netns_cookie
from tests.support.eventually import eventually


@pytest.fixture
def served(pod: Pod, ztunnel: Worker) -> Worker:
    app = pod.worker()
    app.run("got = []; serve_both(8080, 'app', got)")
    return app


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_probe_of_the_node_reaches_the_application(node: Node, pod: Pod, served: Worker, family: str) -> None:
    with node.counting() as grown:
        assert node.worker().call("attempt", getattr(pod, family), 8080)["data"] == "app"
    assert (grown["probe_recorded"], grown["probe_passed"]) == (1, 1)
    assert node.maps.fill()["probes"][0] == 0, "the record goes with the handshake"


def test_probe_to_port_15008_is_still_hbone(node: Node, pod: Pod, served: Worker) -> None:
    assert node.worker().call("attempt", pod.ipv4, 15008)["data"] == "hbone"


def test_host_network_pod_is_no_probe(node: Node, pod: Pod, served: Worker) -> None:
    """It shares the node's namespace and address, but its cgroup is below the pods'."""
    directory = node.pods_cgroup / "hostnet"
    directory.mkdir()
    process = node.worker(directory)
    try:
        assert process.call("attempt", pod.ipv4, 8080)["data"] == "inbound"
    finally:
        process.close()
        node.workers.remove(process)
        eventually(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


def test_only_the_kubelet_passes_where_its_process_is_named(node: Node, pod: Pod, served: Worker) -> None:
    kubelet, other = node.worker(), node.worker()
    node.maps.set_node(in_netns(node.netns, netns_cookie), kubelet_tgid=kubelet.process.pid)
    assert kubelet.call("attempt", pod.ipv4, 8080)["data"] == "app"
    assert other.call("attempt", pod.ipv4, 8080)["data"] == "inbound"


def test_process_of_another_namespace_is_no_probe(node: Node, pod: Pod, served: Worker) -> None:
    outside = node.pod("b")
    assert outside.worker(node.system_cgroup).call("attempt", pod.ipv4, 8080)["data"] == "inbound"


def test_traffic_that_the_node_only_forwards_is_no_probe(node: Node, pod: Pod, served: Worker) -> None:
    assert node.pod("b").worker().call("attempt", pod.ipv4, 8080)["data"] == "inbound"


def test_probe_of_a_closed_port_is_refused_and_leaves_no_record(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    assert node.worker().call("attempt", pod.ipv4, 9999) == "ECONNREFUSED"
    assert node.maps.fill()["probes"][0] == 0


def test_connect_of_the_node_to_elsewhere_is_not_recorded(node: Node, pod: Pod, served: Worker) -> None:
    outside = node.pod("b")
    outside.worker().run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
    with node.counting() as grown:
        assert node.worker().call("attempt", outside.ipv4, 8080)["data"] == "plain"
    assert grown == {}
