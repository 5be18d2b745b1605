# SPDX-License-Identifier: Apache-2.0
"""The node agent on a real kernel: pods into the mesh and out of it, by label and by CNI."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from agent_bed import Bed, Pod, ask, inside, sh

from tests.support.eventually import eventually
from tests.support.kernel import ENDS_SOCKETS, needs_destroy

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    made = Bed()
    try:
        made.start()
        yield made
    finally:
        made.close()


def leave(bed: Bed, *pods: Pod) -> None:
    """End pods as a kubelet would."""
    for pod in pods:
        pod.stop()
        assert bed.cni("DEL", pod)["result"] == "removed"
        (bed.directory / "status" / "Pod" / pod.namespace / f"{pod.name}.yaml").unlink(missing_ok=True)


def records(bed: Bed) -> int:
    return int(bed.agent_state("/maps")["maps"]["pods"]["entries"])


def test_a_running_pod_is_enrolled_by_label_and_released_with_the_same_process(bed: Bed) -> None:
    web, client = Pod(bed, "web"), Pod(bed, "client")
    assert web.process is not None
    pid = web.process.pid
    bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
    bed.write(client.object())
    bed.wait_enrolled(client)
    eventually(lambda: bed.pod_state(web).get("state") == "ignored")
    assert bed.pod_state(web)["code"] == "AMB2002"
    # web is outside: its clients reach it in plain, its own connects are not captured.
    assert inside(bed.node, lambda: ask(web.ip, 8080)) == f"app web from {bed.gateway}"

    bed.write(web.object())
    row = bed.wait_enrolled(web)
    assert row["point_to_point"] is True
    assert row["addresses"] == [web.ip, web.ip6]
    assert row["resolvers"] == ["10.96.0.10"]
    assert web.process.pid == pid
    assert web.process.poll() is None
    enrollment = bed.enrollment(web)
    assert enrollment is not None
    assert enrollment["podUid"] == web.uid
    assert enrollment["metadata"]["annotations"] == {"ambient.istio.io/redirection": "enabled"}
    assert web.kernel_mark_rule()
    assert inside(bed.node, lambda: ask(web.ip, 8080)) == f"ztunnel inbound {web.ip}:8080 from {bed.gateway}"
    assert inside(bed.node, lambda: ask(web.ip6, 8080)).startswith(f"ztunnel inbound {web.ip6}:8080")
    assert inside(bed.node, lambda: ask(web.ip, 15008)).startswith("ztunnel hbone")
    assert web.call(client.ip, 8080) == f"ztunnel outbound {client.ip}:8080 from {web.ip}"
    assert web.call(client.ip6, 8080).startswith(f"ztunnel outbound {client.ip6}:8080")
    assert bed.zds_log()[-1]["pod"] == "shop/web"

    bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
    eventually(lambda: bed.pod_state(web).get("state") == "ignored")
    assert web.process.poll() is None
    assert bed.enrollment(web) is None
    assert not web.kernel_mark_rule()
    assert not (bed.bpffs / "pods" / web.uid).exists()
    assert records(bed) == 1
    assert inside(bed.node, lambda: ask(web.ip, 8080)) == f"app web from {bed.gateway}"
    assert {"kind": "del", "uid": web.uid} in bed.zds_log()

    bed.write(web.object())
    bed.wait_enrolled(web)
    assert web.call(client.ip, 8080).startswith("ztunnel outbound")
    leave(bed, web, client)
    assert records(bed) == 0


def test_the_label_of_the_namespace_moves_all_of_its_pods(bed: Bed) -> None:
    one, two = Pod(bed, "one", namespace="side"), Pod(bed, "two", namespace="side")
    for pod in (one, two):
        bed.write(pod.object())
    eventually(lambda: bed.pod_state(two).get("code") == "AMB2001")
    bed.label_namespace("side", "ambient")
    bed.wait_enrolled(one)
    bed.wait_enrolled(two)
    bed.label_namespace("side", None)
    eventually(lambda: [bed.pod_state(p).get("code") for p in (one, two)] == ["AMB2001", "AMB2001"])
    leave(bed, one, two)


class Caller:
    """Connects again and again from the node, and keeps each answer's first words."""

    def __init__(self, bed: Bed, pod: Pod) -> None:
        self.answers: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=inside, args=(bed.node, lambda: self._run(pod.ip)))
        self._thread.start()

    def _run(self, address: str) -> None:
        while not self._stop.is_set():
            self.answers.append(" ".join(ask(address, 8080).split()[:2]))

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join()
        return self.answers


def test_no_connection_is_refused_on_the_way_in_and_none_is_plain_after_it(bed: Bed) -> None:
    web = Pod(bed, "flip")
    caller = Caller(bed, web)
    try:
        eventually(lambda: len(caller.answers) > 20)
        bed.write(web.object())
        bed.wait_enrolled(web)
        seen = len(caller.answers)
        eventually(lambda: len(caller.answers) > seen + 20)
    finally:
        answers = caller.stop()
    assert set(answers) == {"app flip", "ztunnel inbound"}
    first = answers.index("ztunnel inbound")
    assert set(answers[first:]) == {"ztunnel inbound"}
    leave(bed, web)


def test_on_the_way_out_hbone_is_served_until_the_withdrawal_has_spread(bed: Bed) -> None:
    """A running pod leaves: at most the connections of the moment between two system calls are refused."""
    web = Pod(bed, "leaving")
    bed.write(web.object())
    bed.wait_enrolled(web)
    caller = Caller(bed, web)
    try:
        eventually(lambda: len(caller.answers) > 20)
        bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
        eventually(lambda: bed.enrollment(web) is None)
        assert inside(bed.node, lambda: ask(web.ip, 15008)).startswith("ztunnel hbone")
        eventually(lambda: bed.pod_state(web).get("state") == "ignored")
        seen = len(caller.answers)
        eventually(lambda: len(caller.answers) > seen + 20)
    finally:
        answers = caller.stop()
    refused = [answer for answer in answers if answer not in ("app leaving", "ztunnel inbound")]
    assert len(refused) <= 1, refused
    assert answers[-1] == "app leaving"
    leave(bed, web)


def test_a_starting_pod_is_captured_before_its_first_line_runs(bed: Bed) -> None:
    web = Pod(bed, "starting", run=False)
    bed.write(web.object(started=False))
    answer = bed.cni("ADD", web)
    assert answer == {"result": "enrolled", "reason": "", "code": ""}
    assert web.call("192.0.2.1", 80) == f"ztunnel outbound 192.0.2.1:80 from {web.ip}"
    web.start()
    bed.write(web.object())
    assert bed.cni("CHECK", web)["result"] == "enrolled"
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("ztunnel inbound")
    leave(bed, web)
    assert bed.enrollment(web) is None
    assert not (bed.bpffs / "pods" / web.uid).exists()
    assert not list((bed.directory / "agent" / "pods").iterdir())


def test_a_new_sandbox_of_the_pod_is_captured_and_a_late_del_of_the_old_one_changes_nothing(bed: Bed) -> None:
    """The runtime makes the pod's namespace again under the same path, as after a crash of its sandbox."""
    old = Pod(bed, "again", run=False)
    bed.write(old.object(started=False))
    assert bed.cni("ADD", old)["result"] == "enrolled"
    cookie = bed.pod_state(old)["netns_cookie"]
    sh("ip", "netns", "del", old.netns)
    bed.netns_names.remove(old.netns)
    bed.on_node("ip", "link", "del", old.veth)
    new = Pod(bed, "again", run=False)
    new.uid = old.uid
    assert bed.cni("ADD", new)["result"] == "enrolled"
    assert bed.pod_state(new)["netns_cookie"] != cookie
    new.cgroup = old.cgroup
    new.start()
    assert new.call("192.0.2.1", 80).startswith("ztunnel outbound 192.0.2.1:80")
    assert inside(bed.node, lambda: ask(new.ip, 8080)).startswith("ztunnel inbound")
    # The late one names a path that is no more, while the pod's processes run.
    late = bed.cni("DEL", new, netns="/run/netns/dsagent-there-was-one")
    assert late["result"] == "removed"
    assert bed.pod_state(new)["state"] == "enrolled"
    assert records(bed) == 1
    leave(bed, new)
    assert records(bed) == 0


def test_the_cni_is_told_why_a_pod_is_left_alone_or_refused(bed: Bed) -> None:
    web, other = Pod(bed, "refused", run=False), Pod(bed, "other", run=False)
    unknown = bed.cni("CHECK", web)
    assert unknown["code"] == "AMB2302"
    bed.write(web.object(started=False, labels={"istio.io/dataplane-mode": "none"}))
    eventually(lambda: bed.pod_state(web))
    assert bed.cni("ADD", web)["result"] == "ignored"
    bed.write(web.object(started=False))
    eventually(lambda: bed.pod_state(web).get("code") == "AMB2009")

    wrong = bed.cni("ADD", web, netns=f"/run/netns/{other.netns}")
    assert (wrong["result"], wrong["code"]) == ("error", "AMB2102")
    assert web.ip in wrong["reason"]
    assert bed.cni("DEL", web)["result"] == "removed"

    node = bed.cni("ADD", web, netns=f"/run/netns/{bed.node}")
    assert (node["result"], node["code"]) == ("error", "AMB2103")
    bed.cni("DEL", web)

    absent = bed.cni("ADD", web, netns="/run/netns/dsagent-there-is-none")
    assert (absent["result"], absent["code"]) == ("error", "AMB2101")
    bed.cni("DEL", web)

    assert bed.cni("ADD", web)["result"] == "enrolled"
    leave(bed, web, other)


def test_a_namespace_nested_in_the_pod_is_not_taken_for_it(bed: Bed) -> None:
    """A process of the pod makes a namespace with the pod's address on an interface of its own."""
    web = Pod(bed, "nested")
    inner = f"{web.netns}-in"
    bed.add_netns(inner)
    sh(
        "ip",
        "link",
        "add",
        "veth9",
        "netns",
        inner,
        "type",
        "veth",
        "peer",
        "name",
        "in0",
        "netns",
        web.netns,
    )
    sh("ip", "-n", inner, "addr", "add", f"{web.ip}/32", "dev", "veth9")
    sh("ip", "-n", inner, "-6", "addr", "add", f"{web.ip6}/128", "dev", "veth9", "nodad")
    bed.write(web.object(started=False))
    eventually(lambda: bed.pod_state(web).get("code") == "AMB2009")
    answer = bed.cni("ADD", web, netns=f"/run/netns/{inner}")
    # The pod's own process is in its own namespace, which is found after the path was refused.
    assert answer["result"] == "enrolled"
    assert bed.pod_state(web)["netns"].startswith("/proc/")
    leave(bed, web)

    web.start()
    web.stop()
    bed.write(web.object(started=False))
    assert bed.cni("ADD", web, netns=f"/run/netns/{inner}")["code"] == "AMB2104"
    leave(bed, web)


def test_a_pod_full_of_namespaces_of_its_own_is_found_all_the_same(bed: Bed) -> None:
    web = Pod(bed, "crowd")
    script = "for i in $(seq 100); do unshare --net sleep 1000 & done; echo ready; wait"
    crowd = bed.popen(
        "nsenter",
        f"--net=/run/netns/{web.netns}",
        "sh",
        "-c",
        script,
        cgroup=web.cgroup,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    bed.processes.append(crowd)
    try:
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == b"ready\n"
        bed.write(web.object())
        row = bed.wait_enrolled(web)
        assert row["netns_cookie"] == inside(web.netns, cookie)
    finally:
        os.killpg(crowd.pid, signal.SIGKILL)
        crowd.stdout.close()
    leave(bed, web)


def cookie() -> int:
    with socket.socket() as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, 71, 8), sys.byteorder)


def test_a_neighbour_that_takes_the_address_is_not_taken_for_the_pod(bed: Bed) -> None:
    """The neighbour answers ARP for the pod's address and its object claims it; the node's route does not."""
    web, thief = Pod(bed, "owner"), Pod(bed, "thief")
    sh("ip", "-n", thief.netns, "addr", "add", f"{web.ip}/32", "dev", "eth0")
    bed.write(web.object())
    assert bed.wait_enrolled(web)["point_to_point"] is True
    claim = thief.object()
    claim["status"]["podIP"], claim["status"]["podIPs"] = web.ip, [{"ip": web.ip}]
    bed.write(claim)
    refused = eventually(lambda: bed.pod_state(thief) if bed.pod_state(thief).get("code") else None)
    assert refused["code"] == "AMB2105"
    assert refused["captured"] is False
    # The owner's connections still come to it alone.
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith(f"ztunnel inbound {web.ip}:8080")
    assert bed.pod_state(web)["state"] == "enrolled"
    leave(bed, web, thief)


def test_a_bridged_pod_is_enrolled_and_not_called_point_to_point(bed: Bed) -> None:
    """On a bridge any neighbour can answer by ARP: the kernel path must not be used there."""
    web = Pod(bed, "bridged")
    bridge = f"dsb{bed.tag}"[:15]
    try:
        bed.on_node("ip", "link", "add", bridge, "type", "bridge")
    except AssertionError as error:
        if "Unknown device type" not in str(error):
            raise
        pytest.skip("this kernel has no bridge")
    bed.on_node("ip", "link", "set", bridge, "up")
    bed.on_node("ip", "link", "set", web.veth, "master", bridge)
    bed.on_node("ip", "route", "replace", f"{web.ip}/32", "dev", bridge)
    bed.on_node("ip", "-6", "route", "replace", f"{web.ip6}/128", "dev", bridge)
    bed.write(web.object())
    assert bed.wait_enrolled(web)["point_to_point"] is False
    assert bed.enrollment(web)["pointToPoint"] is False  # type: ignore[index]
    leave(bed, web)
    bed.on_node("ip", "link", "del", bridge)


def test_a_pod_whose_object_is_gone_stays_captured_until_its_processes_end(bed: Bed) -> None:
    web = Pod(bed, "gone")
    path = bed.write(web.object())
    bed.wait_enrolled(web)
    path.unlink()
    eventually(lambda: "shop/gone" not in str(bed.agent_state("/config")) and not path.exists())
    bed.write(Pod(bed, "marker", run=False).object(started=False))
    eventually(lambda: any(row["name"] == "marker" for row in bed.agent_state("/pods")))
    assert bed.pod_state(web)["captured"] is True
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("ztunnel inbound")
    web.stop()
    eventually(lambda: not bed.pod_state(web))
    assert not (bed.bpffs / "pods" / web.uid).exists()
    assert bed.enrollment(web) is None
    (bed.directory / "status/Pod/shop/marker.yaml").unlink()


def test_probes_of_the_node_reach_the_application_and_other_connections_do_not(bed: Bed) -> None:
    web = Pod(bed, "probed")
    bed.write(web.object())
    bed.wait_enrolled(web)
    asked = (8080, web.ip, web.ip6)
    probe = bed.ask_from(bed.node, bed.system, *asked)
    assert probe == f"app probed from {bed.gateway}|app probed from {bed.gateway6}"
    # A pod in the node's own network (hostNetwork) is in the pods' cgroup: no probe.
    assert "app" not in bed.ask_from(bed.node, web.cgroup, *asked)
    leave(bed, web)


@pytest.fixture
def hasty(bed: Bed) -> Iterator[Bed]:
    """The node with an agent that ends older connections at once."""
    assert bed.agent is not None
    bed.stop(bed.agent)
    bed.start_agent(AMBIT_PLAINTEXT_DEADLINE_S="0.3")
    yield bed
    assert bed.agent is not None
    bed.stop(bed.agent)
    bed.start_agent()


@needs_destroy
def test_connections_from_before_capture_end_when_the_node_says_so(hasty: Bed) -> None:
    web = Pod(hasty, "olderhasty", run=False)
    server = inside(web.netns, lambda: socket.create_server((web.ip, 9000)))
    client = inside(hasty.node, lambda: socket.create_connection((web.ip, 9000), timeout=15))
    accepted, _ = server.accept()
    with server, client, accepted:
        hasty.write(web.object(started=False))
        assert hasty.cni("ADD", web)["result"] == "enrolled"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        eventually(lambda: hasty.pod_state(web)["older_connections"] == [])


@pytest.mark.skipif(ENDS_SOCKETS, reason="this host has no kernel that cannot end sockets")
def test_a_kernel_that_cannot_end_connections_is_named_and_they_stay_listed(hasty: Bed) -> None:
    web = Pod(hasty, "oldernamed", run=False)
    server = inside(web.netns, lambda: socket.create_server((web.ip, 9000)))
    client = inside(hasty.node, lambda: socket.create_connection((web.ip, 9000), timeout=15))
    accepted, _ = server.accept()
    with server, client, accepted:
        hasty.write(web.object(started=False))
        assert hasty.cni("ADD", web)["result"] == "enrolled"
        eventually(lambda: "this kernel cannot end sockets" in hasty.log("agent.log"))
        assert len(hasty.pod_state(web)["older_connections"]) == 1


@pytest.mark.parametrize("deadline", [None, pytest.param("0.3", marks=needs_destroy)])
def test_connections_from_before_capture_are_listed_and_end_when_told(bed: Bed, deadline: str | None) -> None:
    web = Pod(bed, f"older{deadline is None}".lower(), run=False)
    server = inside(web.netns, lambda: socket.create_server((web.ip, 9000)))
    client = inside(bed.node, lambda: socket.create_connection((web.ip, 9000), timeout=15))
    accepted, _ = server.accept()
    with server, client, accepted:
        annotations = {} if deadline is None else {"ambit.io/plaintext-deadline": deadline}
        bed.write(web.object(started=False, annotations=annotations))
        assert bed.cni("ADD", web)["result"] == "enrolled"
        if deadline is None:
            address, port = client.getsockname()
            assert bed.pod_state(web)["older_connections"] == [f"{web.ip}:9000 <-> {address}:{port}"]
            client.sendall(b"still here")
            assert accepted.recv(64) == b"still here"
        else:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            eventually(lambda: bed.pod_state(web)["older_connections"] == [])
            assert "ended 1 connections" in bed.log("agent.log")
    leave(bed, web)
