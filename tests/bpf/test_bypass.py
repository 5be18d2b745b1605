# SPDX-License-Identifier: Apache-2.0
"""Ways around the mesh that were found in others: what each comes to here, as far as the hooks decide it.

What leaves a pod by a way that no hook sees arrives at an enrolled pod at 15006 all the same: the receiving
side is the boundary, and a STRICT policy refuses it there.
"""

import os
import socket
import struct
import subprocess

import pytest

from tests.bpf.node import Node, Pod, Worker, ip
from tests.support.eventually import eventually

CAPTURED = "outbound"


@pytest.fixture
def server(node: Node) -> Pod:
    """A second enrolled pod with a ztunnel, and an application on 8080 that nothing may reach plainly."""
    pod = node.pod("b")
    pod.enroll()
    pod.ztunnel()
    app = pod.worker()
    app.run("got = []; serve(listen('0.0.0.0', 8080), 'app', got)")
    return pod


def test_pod_start_race_is_refused_until_listeners_are_open(node: Node) -> None:
    pod = node.pod("a")
    pod.enroll()
    app = pod.worker()
    assert app.call("attempt", "192.0.2.7", 80) == "ECONNREFUSED"
    pod.ztunnel()
    assert app.call("attempt", "192.0.2.7", 80)["data"] == CAPTURED


def test_init_and_ephemeral_containers_in_cgroups_of_their_own_are_captured(
    pod: Pod, ztunnel: Worker
) -> None:
    directory = pod.cgroup / "container-2"
    directory.mkdir()
    process = pod.worker(directory)
    try:
        assert process.call("attempt", "192.0.2.7", 80)["data"] == CAPTURED
    finally:
        process.close()
        pod.workers.remove(process)
        eventually(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


def test_socket_made_before_enrolment_is_captured_when_it_connects(node: Node) -> None:
    pod = node.pod("a")
    app = pod.worker()
    app.run("early = socket.socket(); early.settimeout(5)")
    pod.enroll()
    pod.ztunnel()
    assert (
        app.run("early.connect(('192.0.2.7', 80)); early.sendall(b'hi'); result = early.recv(64).decode()")
        == CAPTURED
    )


def test_socket_made_before_the_programs_were_loaded_is_captured(
    bare: Node, bytecode: os.PathLike[str]
) -> None:
    pod = bare.pod("a")
    app = pod.worker()
    app.run("early = socket.socket(); early.settimeout(5)")
    bare.load("--bytecode", str(bytecode))
    pod.enroll()
    pod.ztunnel()
    assert (
        app.run("early.connect(('192.0.2.7', 80)); early.sendall(b'hi'); result = early.recv(64).decode()")
        == CAPTURED
    )


def test_connection_from_before_enrolment_lives_on(node: Node) -> None:
    """Until the deadline that the user sets; the agent lists them."""
    pod, outside = node.pod("a"), node.pod("b")
    outside.worker().run(
        "got = []; l = listen('0.0.0.0', 8080)\nimport threading\n"
        "def echo():\n    c, _ = l.accept(); c.settimeout(None)\n"
        "    while data := c.recv(64): c.sendall(data)\n"
        "threading.Thread(target=echo, daemon=True).start()"
    )
    app = pod.worker()
    app.run(f"c = socket.create_connection(({outside.ipv4!r}, 8080)); c.sendall(b'one'); c.recv(64)")
    pod.enroll()
    assert app.run("c.sendall(b'two'); result = c.recv(64).decode()") == "two"


@pytest.mark.parametrize("mark", [0x539, 0x111, 0xFFFFFFFF])
def test_no_mark_exempts_anything(ztunnel: Worker, app: Worker, mark: int) -> None:
    got = app.call("attempt", "192.0.2.7", 80, options=[(socket.SOL_SOCKET, 36, struct.pack("=I", mark))])
    assert got["data"] == CAPTURED


@pytest.mark.parametrize("uid", [0, 1337, 65534])
def test_no_uid_exempts_anything(ztunnel: Worker, app: Worker, uid: int) -> None:
    app.run(f"os.setgid({uid}); os.setuid({uid})")
    assert app.call("attempt", "192.0.2.7", 80)["data"] == CAPTURED


@pytest.mark.parametrize("port", [22, 53, 443, 6443, 15001, 15006, 15008, 15020, 15053])
def test_no_port_exempts_anything(ztunnel: Worker, app: Worker, port: int) -> None:
    assert app.call("attempt", "192.0.2.7", port)["data"] == CAPTURED
    assert ztunnel.run("result = seen[-1]['original']") == ["192.0.2.7", port]


def test_ipv6_link_local_is_captured(ztunnel: Worker, app: Worker) -> None:
    got = app.run(
        "s = socket.socket(socket.AF_INET6); s.settimeout(5)\n"
        "s.connect(('fe80::99', 80, 0, socket.if_nametoindex('eth0'))); s.sendall(b'hi')\n"
        "result = s.recv(64).decode()\n"
    )
    assert got == CAPTURED
    assert ztunnel.run("result = seen[-1]['original']") == ["fe80::99", 80]


def test_socket_of_the_pod_is_captured_in_whoever_s_hands_it_is(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    """SCM_RIGHTS or setns: the socket's own namespace and cgroup decide, not the connecting process."""
    outside = node.pod("b")
    process = pod.worker()
    got = process.run(
        "import ctypes\n"
        "s = socket.socket(); s.settimeout(5)\n"
        f"fd = os.open('/run/netns/{outside.netns}', os.O_RDONLY)\n"
        "assert ctypes.CDLL(None).setns(fd, 0x40000000) == 0\n"
        f"open({str(outside.cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
        "s.connect(('192.0.2.7', 80)); s.sendall(b'hi'); result = s.recv(64).decode()\n"
    )
    assert got == CAPTURED


def test_nested_namespace_is_a_stranger_and_arrives_at_15006(
    node: Node, pod: Pod, ztunnel: Worker, server: Pod
) -> None:
    """A namespace made inside the pod and routed through it: its cookie is no pod's, and ztunnel gets it."""
    nested = f"{pod.netns}-n"
    ip("netns", "add", nested)
    try:
        ip("-n", pod.netns, "link", "add", "inner0", "type", "veth", "peer", "name", "eth0", "netns", nested)
        ip("-n", pod.netns, "addr", "add", "10.214.1.1/24", "dev", "inner0")
        ip("-n", pod.netns, "link", "set", "inner0", "up")
        ip("-n", nested, "addr", "add", "10.214.1.2/24", "dev", "eth0")
        ip("-n", nested, "link", "set", "eth0", "up")
        ip("-n", nested, "route", "add", "default", "via", "10.214.1.1")
        ip("-n", node.netns, "route", "add", "10.214.1.0/24", "via", pod.ipv4)
        subprocess.run(
            ["ip", "netns", "exec", pod.netns, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True
        )
        process = Worker(nested, pod.cgroup)
        try:
            assert process.call("attempt", server.ipv4, 8080)["data"] == "inbound"
            assert process.call("attempt", pod.ipv4, 15001)["data"] == "inbound", (
                "not even its own pod's outbound"
            )
        finally:
            process.close()
    finally:
        ip("netns", "del", nested)


def test_raw_syn_has_no_record_and_arrives_at_15006(node: Node, pod: Pod, server: Pod) -> None:
    app = pod.worker()
    with node.counting() as grown:
        app.run(
            "def checksum(data):\n"
            "    total = sum(struct.unpack(f'!{len(data) // 2}H', data))\n"
            "    total = (total >> 16) + (total & 0xffff); return ~(total + (total >> 16)) & 0xffff\n"
            f"source, target = socket.inet_aton({pod.ipv4!r}), socket.inet_aton({server.ipv4!r})\n"
            "head = struct.pack('!HHIIBBHHH', 44444, 8080, 1, 0, 0x50, 2, 64240, 0, 0)\n"
            "total = checksum(source + target + struct.pack('!HH', 6, len(head)) + head)\n"
            "head = head[:16] + struct.pack('!H', total) + head[18:]\n"
            "socket.socket(socket.AF_INET, socket.SOCK_RAW, 6).sendto(head, "
            f"({server.ipv4!r}, 0))\n"
        )
        eventually(lambda: node.maps.counters()["to_inbound"])
    assert grown["to_inbound"] == 1, "its answer finds no socket in the sender, where it is dropped"


def test_reused_address_does_not_inherit_the_earlier_pods_enrolment(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    """The key is the namespace's cookie, which the kernel never gives twice."""
    later = node.pod("b")
    ip("-n", later.netns, "addr", "flush", "dev", "eth0")
    ip("-n", later.netns, "addr", "add", f"{pod.ipv4}/32", "dev", "eth0")
    assert later.cookie != pod.cookie
    with node.counting() as grown:
        assert later.worker().call("attempt", pod.ipv4, 15117) == "ECONNREFUSED"
    assert grown == {}, "no program of the earlier pod has seen it"


def test_address_claimed_by_two_pods_is_the_later_ones_until_it_leaves(node: Node, pod: Pod) -> None:
    later = node.pod("b")
    later.enroll(addresses=pod.record().addresses)
    pod.unenroll()
    assert node.maps.fill()["addresses"][0] == 2, "what the later pod claimed stays"
    later.unenroll()
    assert node.maps.fill()["addresses"][0] == 0


def test_pod_process_that_leaves_its_cgroup_needs_the_hosts_cgroup_tree(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    """Whoever can write there is the node's equal, and `check` lists it: capture follows the cgroup."""
    process = pod.worker(node.system_cgroup)
    assert process.call("attempt", "127.0.0.1", 15117) == "ECONNREFUSED"
    with node.counting() as grown:
        got = process.run(
            "s = socket.socket(); s.setblocking(False)\n"
            "s.connect_ex(('192.0.2.7', 80)); s.close(); result = 'sent'"
        )
    assert (got, grown) == ("sent", {}), "outside the pods' cgroup no hook runs"


def test_off_mesh_client_never_reaches_an_application_plainly(node: Node, server: Pod) -> None:
    outside = node.pod("c").worker()
    for address in (server.ipv4, server.ipv6):
        assert outside.call("attempt", address, 8080)["data"] == "inbound"
        assert outside.call("attempt", address, 15008)["data"] == "hbone"


def test_own_service_address_is_captured(ztunnel: Worker, app: Worker) -> None:
    """A pod that calls itself by its service: ztunnel decides, and dials directly if it draws that pod."""
    assert app.call("attempt", "10.96.0.77", 80)["data"] == CAPTURED
