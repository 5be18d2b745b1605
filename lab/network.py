# SPDX-License-Identifier: Apache-2.0
"""Namespaces, links and routes of a lab: the commands as pure lists, and their execution.

Every link is point to point and routed; there is no bridge, so no neighbour can answer
for a pod.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import shell
from lab.errors import Code, LabError
from lab.layout import DNS_IP, DNS_IP6, MAX_SLOTS, POD_RANGE, POD_RANGE6, Layout, Node

LOCK = Path("/run/ambit/.lock")
FORWARDING = (
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
)
_LINK = re.compile(r"amb(\d+)n\d+")


@contextmanager
def slot_lock() -> Iterator[None]:
    """Hold the lock under which slots are chosen and their links made."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_slot(link_names: list[str]) -> int:
    """Return the lowest slot that no link on the machine bears.

    Raises:
        LabError: all are taken.
    """
    taken = {int(match[1]) for name in link_names if (match := _LINK.fullmatch(name))}
    for slot in range(MAX_SLOTS):
        if slot not in taken:
            return slot
    raise LabError(Code.NO_ADDRESSES, f"all {MAX_SLOTS} address ranges for labs are in use")


def machine_links() -> list[str]:
    """List the links in the machine's namespace."""
    return [str(link["ifname"]) for link in json.loads(shell.run("ip", "-j", "link", "show") or "[]")]


def namespaces(prefix: str) -> list[str]:
    """List the named namespaces that begin with a prefix."""
    directory = Path("/run/netns")
    return sorted(p.name for p in directory.glob(f"{prefix}*")) if directory.exists() else []


def fabric_commands(layout: Layout) -> list[str]:
    """Commands in the fabric: one port and the routes per node."""
    lines = ["link set lo up", "addr add 172.30.0.1/32 dev lo"]
    for node in layout.nodes:
        port = f"n{node.index}"
        lines += [
            f"link add {port} type veth peer name fab0 netns {node.netns}",
            f"link set {port} up",
            f"addr add fe80::1/64 dev {port} nodad",
            f"route add {node.ip}/32 dev {port} src 172.30.0.1",
            f"route add {node.pod_net} via {node.ip} dev {port} onlink",
            f"route add {node.ip6}/128 via fe80::2 dev {port}",
            f"route add {node.pod_net6} via fe80::2 dev {port}",
        ]
    return lines


def node_commands(node: Node) -> list[str]:
    """Commands in a node: its addresses, its port of the fabric, its link to the machine."""
    return [
        "link set lo up",
        *(f"addr add {address}/32 dev lo" for address in (node.gateway, DNS_IP)),
        *(f"addr add {address}/128 dev lo nodad" for address in (node.gateway6, node.ip6, DNS_IP6)),
        f"addr add {node.ip}/32 dev fab0",
        "addr add fe80::2/64 dev fab0 nodad",
        "link set fab0 up",
        f"route add 172.30.0.1/32 dev fab0 src {node.ip}",
        f"route add {POD_RANGE} via 172.30.0.1 dev fab0 src {node.ip}",
        f"route add default via 172.30.0.1 dev fab0 src {node.ip}",
        f"route add {POD_RANGE6} via fe80::1 dev fab0 src {node.ip6}",
        f"route add ::/0 via fe80::1 dev fab0 src {node.ip6}",
        f"addr add {node.uplink_ip}/30 dev up0",
        f"addr add {node.uplink_ip6}/64 dev up0 nodad",
        "link set up0 up",
    ]


def lab_alias(name: str) -> str:
    """Return the alias by which a lab's links are known, also when its state is lost."""
    return f"ambit-lab-{name}"


def machine_commands(node: Node) -> list[str]:
    """Commands in the machine's namespace: the link to one node."""
    return [
        f"link add {node.machine_link} type veth peer name up0 netns {node.netns}",
        f"addr add {node.machine_ip}/30 dev {node.machine_link}",
        f"addr add {node.machine_ip6}/64 dev {node.machine_link} nodad",
        f"link set {node.machine_link} alias {lab_alias(node.lab)}",
        f"link set {node.machine_link} up",
    ]


def pod_commands(node: Node, netns: str, veth: str, ips: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Commands that link a pod: (in the node, in the pod)."""
    on_node = [
        f"link add {veth} type veth peer name eth0 netns {netns}",
        f"addr add fe80::1/64 dev {veth} nodad",
        f"link set {veth} up",
        f"route add {ips[0]}/32 dev {veth} src {node.gateway}",
    ]
    in_pod = [
        "link set lo up",
        f"addr add {ips[0]}/32 dev eth0",
        f"addr add {ips[1]}/128 dev eth0 nodad",
        "addr add fe80::2/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add {node.gateway}/32 dev eth0 src {ips[0]}",
        f"route add default via {node.gateway} dev eth0 src {ips[0]}",
        f"route add ::/0 via fe80::1 dev eth0 src {ips[1]}",
    ]
    return on_node, in_pod


def make_network(layout: Layout) -> None:
    """Make the fabric, the nodes and their links; the caller holds the slot lock."""
    shell.run("ip", "netns", "add", layout.fabric)
    shell.sysctl(layout.fabric, FORWARDING)
    for node in layout.nodes:
        shell.run("ip", "netns", "add", node.netns)
        shell.sysctl(node.netns, FORWARDING)
        shell.ip_batch(machine_commands(node))
    shell.ip_batch(fabric_commands(layout), netns=layout.fabric)
    for node in layout.nodes:
        shell.ip_batch(node_commands(node), netns=node.netns)


def make_pod(node: Node, netns: str, veth: str, ips: tuple[str, str]) -> None:
    """Make a pod's namespace and link it to its node; what an earlier attempt left goes first."""
    if (Path("/run/netns") / netns).exists():
        shell.run("ip", "netns", "del", netns)
    # The other end of a link in a deleted namespace goes a little later than the namespace.
    shell.run("ip", "-n", node.netns, "link", "del", veth, check=False)
    shell.run("ip", "netns", "add", netns)
    shell.sysctl(netns, FORWARDING[4:])
    on_node, in_pod = pod_commands(node, netns, veth, ips)
    shell.ip_batch(on_node, netns=node.netns)
    shell.ip_batch(in_pod, netns=netns)
    shell.ip_batch([f"route add {ips[1]}/128 via fe80::2 dev {veth} src {node.gateway6}"], netns=node.netns)


def remove_pod(node: Node, netns: str, veth: str) -> None:
    """Remove a pod's link and namespace; absent ones are no error."""
    shell.run("ip", "-n", node.netns, "link", "del", veth, check=False)
    if (Path("/run/netns") / netns).exists():
        shell.run("ip", "netns", "del", netns)


def lab_links(name: str) -> list[str]:
    """List a lab's links in the machine's namespace."""
    links = json.loads(shell.run("ip", "-j", "link", "show") or "[]")
    return [str(link["ifname"]) for link in links if link.get("ifalias") == lab_alias(name)]


def remove_network(name: str) -> None:
    """Remove the links to the machine and every namespace of a lab; absent ones are no error."""
    for link in lab_links(name):
        shell.run("ip", "link", "del", link, check=False)
    for netns in namespaces(f"ambit-{name}-"):
        shell.run("ip", "netns", "del", netns, check=False)
