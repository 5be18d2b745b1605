# SPDX-License-Identifier: Apache-2.0
"""Ways around the mesh, end to end in a lab: none gets plaintext in or out of a STRICT workload.

What the hooks do with each is in tests/bpf/test_bypass.py; here a real server answers, or must not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_bed import DIAL, MANIFEST, PAGE, STRICT, Lab, dial, in_namespace, pod

from tests.support.eventually import eventually
from tests.support.kernel import needs_nftables

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(240),
]

LAB = Lab("bypass")
STACK = """
import random, socket, struct, subprocess, sys
host, port = sys.argv[1], int(sys.argv[2])
me = sys.argv[3]
subprocess.run(["/usr/sbin/nft", "add table ip own;"
    " add chain ip own out { type filter hook output priority 0; };"
    " add rule ip own out tcp sport 50505 tcp flags & rst == rst drop"], check=True)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.settimeout(3)
def segment(seq, ack, flags, data=b""):
    head = struct.pack("!HHIIBBHHH", 50505, port, seq, ack, 5 << 4, flags, 65535, 0, 0)
    fields = socket.inet_aton(me) + socket.inet_aton(host) + struct.pack("!BBH", 0, 6, len(head) + len(data))
    whole = fields + head + data + b"\\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    raw.sendto(head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:] + data, (host, 0))
def answers():
    while True:
        packet = raw.recv(65536)
        tcp = packet[(packet[0] & 15) * 4:]
        if struct.unpack("!HH", tcp[:4]) == (port, 50505):
            seq, ack = struct.unpack("!II", tcp[4:12])
            yield seq, ack, tcp[13], tcp[(tcp[12] >> 4) * 4:]
start = random.getrandbits(31)
segment(start, 0, 2)
data = b""
try:
    for seq, ack, flags, payload in answers():
        if flags & 0x12 == 0x12:
            print("handshake done")
            segment(start + 1, seq + 1, 0x10)
            segment(start + 1, seq + 1, 0x18, b"GET / HTTP/1.0\\r\\n\\r\\n")
        data += payload
        if flags & 5:
            print("ended by the server")
            break
except TimeoutError:
    print("silence")
finally:
    subprocess.run(["/usr/sbin/nft", "delete table ip own"], check=True)
print("answer:", data.decode("latin-1"))
"""
"""A TCP client of its own over a raw socket: no hook of the kernel's sockets sees it connect."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose workloads are STRICT, with strangers on both nodes."""
    directory = tmp_path_factory.mktemp("objects")
    neighbour = pod("neighbour", "node1", extra=", istio.io/dataplane-mode: none")
    (directory / "shop.yaml").write_text(MANIFEST + "---" + neighbour + STRICT)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        eventually(lambda: LAB.call("friend") == "got", "a meshed client is served")
        eventually(lambda: LAB.call("outsider") == "refused", "STRICT holds")
        yield LAB
    finally:
        LAB.run("down")


@pytest.fixture(scope="module")
def server(lab: Lab) -> dict[int, str]:
    """Addresses of the server's pod by IP version."""
    return lab.addresses("server")


def test_control_a_meshed_client_reads_the_page(lab: Lab, server: dict[int, str]) -> None:
    for address in server.values():
        assert PAGE in dial(lab, "friend", address, 8080)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["outsider", "neighbour"])
def test_direct_dial_from_outside_the_mesh(
    lab: Lab, server: dict[int, str], client: str, version: int
) -> None:
    assert dial(lab, client, server[version], 8080).rstrip().endswith("answer:")


def test_direct_dial_of_a_mapped_address(lab: Lab, server: dict[int, str]) -> None:
    assert PAGE in dial(lab, "friend", f"::ffff:{server[4]}", 8080)
    assert PAGE not in dial(lab, "outsider", f"::ffff:{server[4]}", 8080)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_direct_dial_of_the_ports_of_ztunnel(lab: Lab, server: dict[int, str], port: int) -> None:
    for address in server.values():
        assert PAGE not in dial(lab, "outsider", address, port)


def test_direct_dial_of_15008_without_a_certificate(lab: Lab, server: dict[int, str]) -> None:
    assert PAGE not in dial(lab, "outsider", server[4], 15008, "tls")


@pytest.mark.parametrize(
    "how", ["mark=1337", "mark=0x111", "mark=0x539", "uid=1337", "port=15008", "port=15006"]
)
def test_no_mark_uid_or_port_opens_the_door(lab: Lab, server: dict[int, str], how: str) -> None:
    assert PAGE not in dial(lab, "outsider", server[4], 8080, how)


@pytest.mark.parametrize("how", ["mark=1337", "mark=0x111", "uid=1337", "port=22"])
def test_a_meshed_client_with_them_is_still_carried_with_its_identity(
    lab: Lab, server: dict[int, str], how: str
) -> None:
    def carried() -> int:
        return sum(
            'src.identity="spiffe://cluster.local/ns/shop/sa/friend"' in line
            and 'direction="inbound"' in line
            for line in lab.log("node1").splitlines()
        )

    before = carried()
    assert PAGE in dial(lab, "friend", server[4], 8080, how)
    eventually(lambda: carried() > before, "the server's node names the client")


@needs_nftables
def test_a_tcp_stack_of_the_clients_own(lab: Lab, server: dict[int, str], tmp_path: Path) -> None:
    address = lab.addresses("friend")[4]
    # Run by the node: the pod itself may not write firewall rules, a privileged one may.
    done = in_namespace(f"ambit-{lab.name}-shop-friend", tmp_path, STACK, server[4], "8080", address)
    assert "handshake done" in done
    assert PAGE not in done


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_process_of_the_node_itself(lab: Lab, server: dict[int, str], node: str, tmp_path: Path) -> None:
    for address in server.values():
        assert PAGE not in in_namespace(f"ambit-{lab.name}-{node}", tmp_path, DIAL, address, "8080", "plain")


def test_own_service_address_goes_through_the_mesh(lab: Lab) -> None:
    # The bare name is the pod's own in its hosts file, as in Kubernetes.
    assert lab.call("server", "http://server.shop/") == "got"


def test_localhost_inside_the_pod_stays_inside(lab: Lab) -> None:
    assert PAGE in dial(lab, "server", "127.0.0.1", 8080)


def test_a_killed_ztunnel_opens_nothing(lab: Lab, server: dict[int, str]) -> None:
    lab.ambit("restart", "ztunnel", "node1", "--force")
    for _ in range(10):
        assert PAGE not in dial(lab, "outsider", server[4], 8080)
    eventually(lambda: lab.call("friend") == "got", "the meshed client is served again")
    assert PAGE not in dial(lab, "outsider", server[4], 8080)
