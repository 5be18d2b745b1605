# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and paths of a lab: pure arithmetic on its name, slot and number of nodes.

Pods and services have the same ranges in every lab, since each fabric is closed; only
the links to the machine's namespace differ, by slot.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from lab.errors import Code, LabError

MAX_NODES = 32
"""Nodes of a lab."""
MAX_SLOTS = 250
"""Labs on one machine; each has a /24 of 198.18.0.0/15 and a loopback address."""
PODS_PER_NODE = 250
SERVICE_NET = "10.96"
SERVICE_NET6 = "fd00:10:96::"
DNS_IP = "10.96.0.10"
DNS_IP6 = "fd00:10:96::a"
CLUSTER_DOMAIN = "cluster.local"
POD_RANGE = "10.244.0.0/16"
POD_RANGE6 = "fd00:10:244::/48"
XDS_PORT = 15012
ADMIN_PORT = 15014
MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path (sun_path without its end)."""

# Without a dash: `ambit-LAB-` must not begin the names of another lab's namespaces.
_NAME = re.compile(r"[a-z0-9]{1,20}")


def check_name(name: str) -> str:
    """Return a lab's name if it can be one.

    Raises:
        LabError: it cannot (usage).
    """
    if not _NAME.fullmatch(name):
        raise LabError(Code.BAD_NAME, f"{name!r} cannot be the name of a lab")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node; `index` counts from 0."""

    name: str
    index: int
    slot: int
    lab: str

    @property
    def netns(self) -> str:
        """Its network namespace."""
        return f"ambit-{self.lab}-{self.name}"

    @property
    def ip(self) -> str:
        """Its address on the fabric."""
        return f"172.30.0.{self.index + 10}"

    @property
    def ip6(self) -> str:
        """Its IPv6 address on the fabric."""
        return f"fd00:172:30::{self.index + 10:x}"

    @property
    def gateway(self) -> str:
        """Its address towards its pods, from where probes come."""
        return f"10.244.{self.index}.1"

    @property
    def gateway6(self) -> str:
        """Its IPv6 address towards its pods."""
        return str(ip_address(f"fd00:10:244:{self.index:x}::1"))

    @property
    def pod_net(self) -> str:
        """Range of its pods."""
        return f"10.244.{self.index}.0/24"

    @property
    def pod_net6(self) -> str:
        """IPv6 range of its pods."""
        return str(ip_network(f"fd00:10:244:{self.index:x}::/64"))

    @property
    def machine_link(self) -> str:
        """Interface in the machine's namespace."""
        return f"amb{self.slot}n{self.index}"

    @property
    def machine_ip(self) -> str:
        """The machine's address on that link: where the node reaches the controller."""
        return f"198.18.{self.slot}.{self.index * 4 + 1}"

    @property
    def uplink_ip(self) -> str:
        """The node's address on that link."""
        return f"198.18.{self.slot}.{self.index * 4 + 2}"

    @property
    def machine_ip6(self) -> str:
        """The machine's IPv6 address on that link."""
        return str(ip_address(f"fd00:198:{self.slot:x}:{self.index:x}::1"))

    @property
    def uplink_ip6(self) -> str:
        """The node's IPv6 address on that link."""
        return str(ip_address(f"fd00:198:{self.slot:x}:{self.index:x}::2"))

    def pod_ips(self, number: int) -> tuple[str, str]:
        """Return the addresses of the pod of this number (2 to 251)."""
        return f"10.244.{self.index}.{number}", str(ip_address(f"fd00:10:244:{self.index:x}::{number:x}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything that has a name in one lab; `state` and `cgroup_mount` are absolute."""

    name: str
    state: Path
    slot: int = 0
    node_names: tuple[str, ...] = ("node1",)
    mesh: bool = True
    cgroup_mount: Path = Path("/sys/fs/cgroup")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes in order."""
        return tuple(
            Node(name=name, index=index, slot=self.slot, lab=self.name)
            for index, name in enumerate(self.node_names)
        )

    def node(self, name: str) -> Node:
        """Return a node by name; KeyError: there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def fabric(self) -> str:
        """Namespace of the router between the nodes."""
        return f"ambit-{self.name}-fabric"

    @property
    def objects(self) -> Path:
        """What the user applied."""
        return self.state / "objects"

    @property
    def status(self) -> Path:
        """What the lab and the agents found."""
        return self.state / "status"

    @property
    def generated(self) -> Path:
        """What the controller writes."""
        return self.state / "generated"

    @property
    def assigned(self) -> Path:
        """Pods as the manager gave them to nodes, before a kubelet adds their status."""
        return self.state / "assigned"

    @property
    def cgroup(self) -> Path:
        """The v2 directory above everything of the lab."""
        return self.cgroup_mount / "ambit" / self.name

    def node_dir(self, node: str) -> Path:
        """Files of one node."""
        return self.state / "nodes" / node

    def pod_dir(self, namespace: str, name: str) -> Path:
        """Files of one pod."""
        return self.state / "pods" / namespace / name

    def pod_netns(self, namespace: str, name: str) -> str:
        """Namespace of one pod."""
        return f"ambit-{self.name}-{namespace}-{name}"

    def node_cgroup(self, node: str) -> Path:
        """The v2 directory above everything on a node."""
        return self.cgroup / node

    def kubepods(self, node: str) -> Path:
        """The v2 directory above a node's pods."""
        return self.cgroup / node / "kubepods"

    def bpffs(self, node: str) -> Path:
        """Directory of a node's BPF pins."""
        return Path("/sys/fs/bpf/ambit") / self.name / node

    @property
    def admin_address(self) -> tuple[str, int]:
        """The controller's admin port: a loopback address of the lab's own."""
        return f"127.0.0.{self.slot + 1}", ADMIN_PORT

    def save(self) -> None:
        """Write lab.json."""
        value = {
            "name": self.name,
            "slot": self.slot,
            "nodes": list(self.node_names),
            "mesh": self.mesh,
            "cgroupMount": str(self.cgroup_mount),
            "podRanges": [POD_RANGE, POD_RANGE6],
            "serviceRanges": [f"{SERVICE_NET}.0.0/16", f"{SERVICE_NET6}/112"],
            "dns": [DNS_IP, DNS_IP6],
            "addresses": {node.name: [node.ip, node.ip6] for node in self.nodes},
        }
        path = self.state / "lab.json"
        beside = path.with_name(".lab.json.new")
        beside.write_text(json.dumps(value, indent=1))
        beside.rename(path)


def load_layout(state: Path) -> Layout:
    """Read lab.json.

    Raises:
        LabError: there is no lab in the directory.
    """
    try:
        value: dict[str, Any] = json.loads((state / "lab.json").read_text())
        return Layout(
            name=str(value["name"]),
            state=state,
            slot=int(value["slot"]),
            node_names=tuple(value["nodes"]),
            mesh=bool(value["mesh"]),
            cgroup_mount=Path(value["cgroupMount"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise LabError(Code.NOT_UP, f"no lab is up in {state}") from error


def check_paths(layout: Layout) -> None:
    """Refuse state directories in which a socket's path would not fit.

    Raises:
        LabError: names the path.
    """
    for name in layout.node_names:
        path = layout.node_dir(name) / "zds.sock"
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise LabError(
                Code.PATH_TOO_LONG, f"{path} is longer than the {MAX_SOCKET_PATH} bytes of a socket's path"
            )
