# SPDX-License-Identifier: Apache-2.0
"""Who is taken for ztunnel."""

from __future__ import annotations

from pathlib import Path

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


class HostWithV1:
    """A host whose containers share v2's root: two processes of the agent's pod, one of another."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.directory = mount / "ztunnel"
        self.procs = self.directory / "cgroup.procs"
        self.moved: list[int] = []

    def v2_mount(self) -> Path:
        return self.mount

    def v2_path(self, pid: int) -> str:
        if self.procs.exists() and (text := self.procs.read_text()) and int(text) not in self.moved:
            self.moved.append(int(text))
        return "/ztunnel" if pid in self.moved else "/"

    def v1_group(self, pid: int, uid: str) -> str | None:
        return "4:memory:/kubepods/podown/c1" if pid in (7, 8) and uid == "own" else None

    def pids_of_v1(self, group: str) -> list[int]:
        assert group.endswith("/podown/c1")
        return []

    def cgroup_id(self, directory: Path) -> int:
        return 4242 if directory == self.directory else 0


@pytest.fixture
def host_with_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostWithV1:
    host = HostWithV1(tmp_path)
    monkeypatch.setattr(gate, "cgroup", host)
    return host


def test_where_containers_share_the_root_our_pods_process_becomes_ztunnel(host_with_v1: HostWithV1) -> None:
    checked = gate.Gate(host_with_v1.directory, own_pod="own").check(Peer(pid=7, uid=0))
    assert (checked, host_with_v1.moved) == (4242, [7])


@pytest.mark.parametrize(("peer", "own_pod"), [(Peer(pid=9, uid=0), "own"), (Peer(pid=7, uid=0), None)])
def test_a_process_of_another_pod_stays_outside(
    host_with_v1: HostWithV1, peer: Peer, own_pod: str | None
) -> None:
    with pytest.raises(ForeignPeerError, match="not in ztunnel's"):
        gate.Gate(host_with_v1.directory, own_pod=own_pod).check(peer)
    assert not host_with_v1.directory.exists()


def test_nobody_but_root_is_moved(host_with_v1: HostWithV1) -> None:
    with pytest.raises(ForeignPeerError, match="not root"):
        gate.Gate(host_with_v1.directory, own_pod="own").check(Peer(pid=7, uid=1000))
    assert not host_with_v1.directory.exists()


def test_a_process_that_cannot_be_moved_is_refused_by_name(host_with_v1: HostWithV1) -> None:
    host_with_v1.directory.write_text("no directory")
    with pytest.raises(ForeignPeerError, match="cannot be put into"):
        gate.Gate(host_with_v1.directory, own_pod="own").check(Peer(pid=7, uid=0))
