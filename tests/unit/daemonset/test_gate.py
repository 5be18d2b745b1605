# SPDX-License-Identifier: Apache-2.0
"""Who is taken for ztunnel."""

from __future__ import annotations

import pytest

from daemonset import gate
from daemonset.gate import ForeignPeerError, Peer

ZTUNNEL = "/ambit/demo/n1/kubepods/ztunnel"


@pytest.mark.parametrize("cgroup", [ZTUNNEL, f"{ZTUNNEL}/worker"])
def test_root_in_ztunnels_cgroup_is_ztunnel(cgroup: str) -> None:
    gate.admit(Peer(pid=7, uid=0), peer_cgroup=cgroup, ztunnel_cgroup=ZTUNNEL)


@pytest.mark.parametrize(
    ("peer", "cgroup", "words"),
    [
        (Peer(pid=7, uid=1000), ZTUNNEL, "pid 7 uid 1000 is not root"),
        (Peer(pid=0, uid=0), None, "another pid namespace"),
        (Peer(pid=7, uid=0), None, "has ended"),
        (Peer(pid=7, uid=0), "/", "cgroup /,"),
        (Peer(pid=7, uid=0), "/ambit/demo/n1/kubepods/ztunnel2", "ztunnel2"),
        (Peer(pid=7, uid=0), "/ambit/demo/n1/kubepods", "not in ztunnel's"),
        (Peer(pid=7, uid=0), "/ambit/demo/n2/kubepods/ztunnel", "n2"),
    ],
)
def test_everyone_else_is_refused_by_name(peer: Peer, cgroup: str | None, words: str) -> None:
    with pytest.raises(ForeignPeerError, match=words):
        gate.admit(peer, peer_cgroup=cgroup, ztunnel_cgroup=ZTUNNEL)
