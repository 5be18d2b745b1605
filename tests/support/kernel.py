# SPDX-License-Identifier: Apache-2.0
"""What this machine's kernel can do beyond what the mesh needs; where it cannot, tests of it are left out."""

from __future__ import annotations

import os
import socket
import subprocess
from ipaddress import ip_address

import pytest

from daemonset import connections


def ends_sockets() -> bool:
    """Whether one process can end another's sockets."""
    loopback = ip_address("127.0.0.1")
    nobody = connections.TcpSocket(
        local=loopback,
        local_port=1,
        remote=loopback,
        remote_port=1,
        mark=0,
        cgroup_id=0,
        family=socket.AF_INET,
        raw_id=bytes(48),
    )
    try:
        return not connections.destroy(nobody)
    except OSError:
        return False


def has_nftables() -> bool:
    """Whether nf_tables can look at IP and change addresses, which the lab's services are made of."""
    chain = "add table inet t; add chain inet t c { type nat hook postrouting priority 100; }"
    return subprocess.run(["unshare", "-n", "nft", chain], capture_output=True, check=False).returncode == 0


ENDS_SOCKETS = os.geteuid() == 0 and ends_sockets()
needs_destroy = pytest.mark.skipif(not ENDS_SOCKETS, reason="this kernel has no CONFIG_INET_DIAG_DESTROY")
needs_nftables = pytest.mark.skipif(
    os.geteuid() != 0 or not has_nftables(), reason="this kernel has no nf_tables for IP with NAT"
)
