# SPDX-License-Identifier: Apache-2.0
"""More ways around the mesh in a lab: a nested namespace, an inherited address, an old connection, UDP.

Each way is also shown to lead somewhere: the same probe reads the page of `open`, the same server in the same
mesh whose policy takes plaintext.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import V2, inside
from lab_bed import DIAL, MANIFEST, PAGE, SERVER, STRICT, Lab, dial, in_namespace, pod

from tests.support.eventually import eventually
from tests.support.kernel import needs_destroy, needs_nftables

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(240),
]

LAB = Lab("bypassmore")
PLAIN = ", istio.io/dataplane-mode: none"
ECHO_TCP = """
import socket, threading
server = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
def echo(peer):
    while data := peer.recv(4096):
        peer.sendall(data)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""
ECHO_UDP = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("::", 9000))
while True:
    data, peer = server.recvfrom(4096)
    try:
        server.sendto(b"echo " + data, peer)
    except OSError:
        pass
"""
ASK_UDP = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1)
data = b""
for _ in range(3):
    try:
        sock.sendto(b"datagram", (host, port))
        data = sock.recv(4096)
        break
    except OSError as error:
        print("ended by", type(error).__name__, error)
print("answer:", data.decode())
"""
RAW = """
import socket
for kind, protocol in ((socket.SOCK_RAW, 6), (socket.SOCK_RAW, 255), (socket.SOCK_STREAM, 132)):
    try:
        socket.socket(socket.AF_INET, kind, protocol)
        print("made", protocol)
    except OSError as error:
        print("refused", protocol, error.strerror)
print("answer:")
"""
MASQUERADE = (
    "add table inet nested;"
    "add chain inet nested out { type nat hook postrouting priority 100; };"
    "add rule inet nested out oifname != nest0 masquerade"
)
OPEN = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open, namespace: shop}
spec: {selector: {matchLabels: {app: open}}, mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded, namespace: shop}
spec:
  selector: {matchLabels: {app: guarded}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/friend]}}]}]
---"""


def python(name: str, node: str, program: str, *, extra: str = "", annotations: str = "") -> str:
    """A pod that runs a Python program, as a document with a block scalar."""
    text = "".join(f"\n      {line}" for line in program.strip().splitlines())
    document = pod(name, node, command="COMMAND", extra=extra, annotations=annotations)
    return document.replace(
        "command: COMMAND", f"command: [/usr/bin/python3, -u, -c]\n    args:\n    - |{text}"
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A STRICT lab with one workload that takes plaintext too."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(
        MANIFEST
        + "---"
        + pod("open", "node1", account="server", command=SERVER)
        + pod("guarded", "node1", account="server", command=SERVER)
        + python("lasting", "node1", ECHO_TCP, extra=PLAIN)
        + python("late", "node1", ECHO_TCP, extra=PLAIN, annotations='ambit.io/plaintext-deadline: "2"')
        + python("chatty", "node1", ECHO_UDP)
        + python("silent", "node1", ECHO_UDP, annotations="ambit.io/non-tcp: deny")
        + python("listener", "node2", ECHO_UDP, extra=PLAIN)
        + OPEN
        + STRICT
    )
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        eventually(lambda: LAB.call("friend") == "got", "a meshed client is served")
        eventually(lambda: LAB.call("outsider") == "refused", "STRICT holds")
        open_ = LAB.addresses("open")[4]
        eventually(lambda: PAGE in dial(LAB, "outsider", open_, 8080), "the open server takes plaintext")
        yield LAB
    finally:
        LAB.run("down")


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def nested_in(pod_netns: str) -> Iterator[str]:
    """A network namespace inside a pod, behind the pod's own address, as a container engine makes one."""
    netns = f"{pod_netns}-nested"
    inside_pod = ("ip", "netns", "exec", pod_netns)
    sh("ip", "netns", "add", netns)
    try:
        ends = ("type", "veth", "peer", "name", "eth0", "netns", netns)
        sh("ip", "-n", pod_netns, "link", "add", "nest0", *ends)
        for place, device, number in ((pod_netns, "nest0", 1), (netns, "eth0", 2)):
            sh("ip", "-n", place, "addr", "add", f"10.99.7.{number}/24", "dev", device)
            sh("ip", "-n", place, "addr", "add", f"fd00:99:7::{number}/64", "dev", device, "nodad")
            sh("ip", "-n", place, "link", "set", device, "up")
        sh("ip", "-n", netns, "route", "add", "default", "via", "10.99.7.1")
        sh("ip", "-n", netns, "-6", "route", "add", "default", "via", "fd00:99:7::1")
        sh(*inside_pod, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        sh(*inside_pod, "nft", MASQUERADE)
        yield netns
    finally:
        sh("ip", "netns", "del", netns)
        subprocess.run([*inside_pod, "nft", "delete table inet nested"], check=False, capture_output=True)


def cgroup_of(lab: Lab, name: str) -> Path:
    """The pod's own v2 cgroup."""
    (found,) = V2.glob(f"ambit/{lab.name}/*/kubepods/{lab.uid(name)}")
    return found


@needs_nftables
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["friend", "outsider"])
def test_a_namespace_nested_in_a_pod(lab: Lab, client: str, version: int, tmp_path: Path) -> None:
    """Its connections bear the pod's address and pass none of its hooks: a stranger's, whoever the pod is."""
    cgroup = cgroup_of(lab, client)
    with nested_in(f"ambit-{lab.name}-shop-{client}") as netns:

        def read(server: str) -> str:
            address = lab.addresses(server)[version]
            return in_namespace(netns, tmp_path, DIAL, address, "8080", "plain", cgroup=cgroup)

        eventually(lambda: PAGE in read("open"), "control: the way leads to a server that takes plaintext")
        assert PAGE not in read("server")
        assert PAGE not in read("guarded")


def test_a_pod_with_the_address_of_an_earlier_one(lab: Lab, tmp_path: Path) -> None:
    """Neither its enrolment nor its identity is inherited, though both knew it by the same address."""
    path = tmp_path / "heir.yaml"
    guarded, server, open_ = (lab.addresses(name)[4] for name in ("guarded", "server", "open"))

    def run(name: str, document: str) -> str:
        path.write_text(document)
        lab.ambit("apply", "-f", str(path))
        eventually(lambda: lab.call(name, f"http://{open_}:8080/") == "got", f"{name} runs")
        return eventually(lambda: lab.addresses(name)[4], f"the controller knows {name}")

    def leave(name: str) -> None:
        lab.ambit("delete", "-f", str(path))
        status = lab.state / "status/Pod/shop" / f"{name}.yaml"
        eventually(lambda: not status.exists(), f"{name} has left its node")

    def inherit(name: str, document: str) -> bool:
        """Whether the pod got the address; it is free a moment after its last holder left."""
        if run(name, document) == address:
            return True
        leave(name)
        return False

    address = run("testator", pod("testator", "node2", account="friend"))
    eventually(lambda: PAGE in dial(lab, "testator", guarded, 8080), "its identity may read")
    leave("testator")
    eventually(lambda: inherit("heir", pod("heir", "node2", extra=PLAIN)), "a plain pod gets the address")
    assert PAGE not in dial(lab, "heir", guarded, 8080)
    assert PAGE not in dial(lab, "heir", server, 8080)
    leave("heir")
    eventually(lambda: inherit("cousin", pod("cousin", "node2", account="snoop")), "a meshed one gets it")
    eventually(lambda: PAGE in dial(lab, "cousin", server, 8080), "control: any identity may read this one")
    assert PAGE not in dial(lab, "cousin", guarded, 8080)
    leave("cousin")


def connected(lab: Lab, name: str) -> socket.socket:
    """Open a connection from the outsider's pod, while the server is not captured."""
    address = lab.addresses(name)[4]
    made = inside(
        f"ambit-{lab.name}-shop-outsider", lambda: socket.create_connection((address, 9000), timeout=10)
    )
    made.sendall(b"before")
    assert made.recv(64) == b"before"
    return made


def enrol(lab: Lab, name: str) -> None:
    """Take a running pod into the mesh, and wait until STRICT holds for it."""
    lab.ambit("label", "pod", f"shop/{name}", "istio.io/dataplane-mode-")
    address = lab.addresses(name)[4]
    netns = f"ambit-{lab.name}-shop-outsider"

    def refused() -> bool:
        try:
            peer = inside(netns, lambda: socket.create_connection((address, 9000), timeout=5))
        except OSError:
            return True
        with peer:
            try:
                peer.sendall(b"after")
                return not peer.recv(64)
            except OSError:
                return True

    eventually(refused, f"{name} takes no new plaintext connection")


@needs_destroy
def test_a_connection_older_than_capture_ends_at_the_deadline(lab: Lab) -> None:
    """A pod with two seconds, and one with the default, which is long enough to finish one's work."""
    with connected(lab, "late") as late, connected(lab, "lasting") as lasting:
        enrol(lab, "late")
        enrol(lab, "lasting")
        eventually(lambda: "go on in plain for 2 s" in lab.log("node1", "agent"), "the agent tells of one")
        eventually(lambda: "go on in plain for 3600 s" in lab.log("node1", "agent"), "and of the other")
        with pytest.raises(ConnectionResetError):
            late.recv(64)
        lasting.sendall(b"still there")
        assert lasting.recv(64) == b"still there", "control: what ends the other is its deadline"


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_to_a_strict_workload_that_denies_what_is_not_tcp(
    lab: Lab, version: int, tmp_path: Path
) -> None:
    """UDP is not captured: a workload that is to have none says so, and then neither sends nor gets any."""

    def ask(client: str, server: str) -> str:
        address = lab.addresses(server)[version]
        done = lab.run("exec", f"shop/{client}", "--", "/usr/bin/python3", "-c", ASK_UDP, address, "9000")
        assert "answer:" in done.stdout, done.stderr
        return done.stdout

    assert "echo datagram" in ask("outsider", "chatty"), "control: a workload that does not"
    assert "echo" not in ask("outsider", "silent")
    assert "echo" not in ask("friend", "silent")
    assert "echo datagram" in ask("chatty", "listener"), "control: and outwards"
    assert "echo" not in ask("silent", "listener")


def test_sockets_of_other_protocols_are_not_to_be_had_there(lab: Lab) -> None:
    def kinds(name: str) -> list[str]:
        done = lab.run("exec", f"shop/{name}", "--", "/usr/bin/python3", "-c", RAW)
        assert "answer:" in done.stdout, done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()[:-1]]

    assert "made" in kinds("chatty"), "control: a raw socket is among a container's default rights"
    assert set(kinds("silent")) == {"refused"}
