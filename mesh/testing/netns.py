# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: a routed fabric with one namespace per pod.

Every pod is linked point-to-point to one fabric namespace that forwards between them, so
that pods of different "nodes" talk as over a network. Needs root and iproute2; names are
unique per `Fabric`, and `close` removes everything.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path


class NetnsError(RuntimeError):
    """A command of the set-up failed; says which and what it printed."""


def run(*command: str) -> str:
    """Run a command and return its output.

    Raises:
        NetnsError: it failed.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise NetnsError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNet:
    """One pod's namespace and addresses."""

    name: str
    netns: str
    ipv4: IPv4Address
    ipv6: IPv6Address

    @property
    def path(self) -> Path:
        """Where the namespace is mounted."""
        return Path("/run/netns") / self.netns

    def open(self) -> int:
        """Return a descriptor of the namespace, owned by the caller."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def exec(self, *command: str) -> str:
        """Run a command inside."""
        return run("ip", "netns", "exec", self.netns, *command)

    def popen(self, *command: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a command inside; the caller ends it."""
        return subprocess.Popen(["ip", "netns", "exec", self.netns, *command], **options)  # type: ignore[call-overload, no-any-return]


class Fabric:
    """Owns the namespaces of one test; use as a context manager."""

    def __init__(self, prefix: str) -> None:
        """Make the fabric; `prefix` (at most 8 characters) begins each name."""
        self._prefix = f"{prefix[:8]}-{os.getpid() % 100000}"
        self._netns = f"{self._prefix}-fab"
        self._count = 0
        self._made: list[str] = []
        self._add(self._netns)
        run("ip", "netns", "exec", self._netns, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "netns", "exec", self._netns, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")

    def _add(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")

    def pod(self, name: str) -> PodNet:
        """Add one pod with an IPv4 and an IPv6 address and a default route through the fabric."""
        self._count += 1
        number = self._count
        netns = f"{self._prefix}-{name}"
        self._add(netns)
        pod = PodNet(
            name=name,
            netns=netns,
            ipv4=IPv4Address(f"10.77.{number}.2"),
            ipv6=IPv6Address(f"fd77::{number:x}:2"),
        )
        link = f"p{number}"
        run(
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            netns,
            "type",
            "veth",
            "peer",
            "name",
            link,
            "netns",
            self._netns,
        )
        for where, device in ((netns, "eth0"), (self._netns, link)):
            run("ip", "netns", "exec", where, "sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
            run("ip", "-n", where, "link", "set", device, "up")
        run("ip", "-n", netns, "addr", "add", f"10.77.{number}.2/24", "dev", "eth0")
        run("ip", "-n", netns, "addr", "add", f"fd77::{number:x}:2/112", "dev", "eth0", "nodad")
        run("ip", "-n", self._netns, "addr", "add", f"10.77.{number}.1/24", "dev", link)
        run("ip", "-n", self._netns, "addr", "add", f"fd77::{number:x}:1/112", "dev", link, "nodad")
        run("ip", "-n", netns, "route", "add", "default", "via", f"10.77.{number}.1")
        run("ip", "-n", netns, "-6", "route", "add", "default", "via", f"fd77::{number:x}:1")
        return pod

    def close(self) -> None:
        """Remove every namespace; links and rules go with them."""
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made.clear()

    def __enter__(self) -> Fabric:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def preserve_sources(pod: PodNet) -> None:
    """Route answers of spoofed connections back to the pod's own lo, as the node agent does."""
    pod.exec("sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=1")
    for family in ("-4", "-6"):
        run(
            "ip",
            "-n",
            pod.netns,
            family,
            "rule",
            "add",
            "fwmark",
            "0x111/0xfff",
            "pref",
            "32764",
            "lookup",
            "100",
        )
        run("ip", "-n", pod.netns, family, "route", "add", "local", "default", "dev", "lo", "table", "100")


def redirect(pod: PodNet, *, mark: int = 0x77) -> None:
    """Capture by netfilter instead of BPF: marked sockets to 15001, arriving TCP to 15006."""
    rules = f"""
    table inet ambit_test {{
      chain out {{ type nat hook output priority -100; policy accept;
        meta l4proto tcp meta mark {mark} fib daddr type != local redirect to :15001;
      }}
      chain in {{ type nat hook prerouting priority -100; policy accept;
        iifname "eth0" tcp dport != {{ 15001, 15006, 15008 }} redirect to :15006;
      }}
    }}"""
    process = subprocess.run(
        ["ip", "netns", "exec", pod.netns, "nft", "-f", "-"],
        input=rules,
        text=True,
        capture_output=True,
        check=False,
    )
    if process.returncode != 0:
        raise NetnsError(f"nft in {pod.netns}: {process.stderr.strip()}")
