# SPDX-License-Identifier: Apache-2.0
"""Who may be ztunnel: root, visible here, and in the cgroup that is ztunnel's.

The same cgroup is what the BPF programs know ztunnel by, so a process that is not in it
could not open listeners that count, whatever it is handed. Where containers have no v2
cgroup of their own (the runtime keeps to v1), a process of the agent's own pod is put
into ztunnel's first; which pod it is of, its v1 cgroups tell, which no container can change.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from daemonset import cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Credentials of a connected process, as the kernel gives them."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


class ForeignPeerError(Exception):
    """The process is not ztunnel; says what it is."""


def admit(peer: Peer, *, peer_cgroup: str | None, ztunnel_cgroup: str) -> None:
    """Check a peer's credentials and cgroup; pure. Both cgroups are v2 paths below the mount.

    Raises:
        ForeignPeerError: it is not ztunnel.
    """
    if peer.uid != 0:
        raise ForeignPeerError(f"{peer} is not root")
    if peer.pid == 0:
        raise ForeignPeerError("the process is in another pid namespace, so it cannot be told who it is")
    if peer_cgroup is None:
        raise ForeignPeerError(f"{peer} has ended")
    if peer_cgroup != ztunnel_cgroup and not peer_cgroup.startswith(ztunnel_cgroup + "/"):
        raise ForeignPeerError(f"{peer} runs in cgroup {peer_cgroup}, not in ztunnel's {ztunnel_cgroup}")


class Gate:
    """Admits peers and tells their cgroup ids."""

    def __init__(self, ztunnel_cgroup: Path, *, own_pod: str | None = None) -> None:
        """Create it; `own_pod` is the uid of the agent's pod, where that has ztunnel in it.

        Raises:
            OSError: cgroup v2 is not mounted, or the directory is not below it.
        """
        mount = cgroup.v2_mount()
        if mount is None:
            raise OSError("cgroup v2 is not mounted; mount it (mount -t cgroup2 none /sys/fs/cgroup/unified)")
        if not ztunnel_cgroup.is_relative_to(mount):
            raise OSError(f"{ztunnel_cgroup} is not below the cgroup v2 mount {mount}")
        self._mount = mount
        self._directory = ztunnel_cgroup
        self._own_pod = own_pod
        self._wanted = "/" + str(ztunnel_cgroup.relative_to(mount))

    def check(self, peer: Peer) -> int:
        """Return the cgroup id of an admitted peer.

        Raises:
            ForeignPeerError: it is not ztunnel.
        """
        path = cgroup.v2_path(peer.pid) if peer.pid else None
        if self._own_pod and path is not None and not self._inside(path) and peer.uid == 0:
            path = self._adopt(peer, self._own_pod)
        admit(peer, peer_cgroup=path, ztunnel_cgroup=self._wanted)
        assert path is not None
        try:
            return cgroup.cgroup_id(self._mount / path.lstrip("/"))
        except OSError as error:
            raise ForeignPeerError(f"{peer} has ended") from error

    def _inside(self, path: str) -> bool:
        return path == self._wanted or path.startswith(self._wanted + "/")

    def _adopt(self, peer: Peer, own_pod: str) -> str | None:
        """Put the peer and what else runs in its container into ztunnel's cgroup; return its path then."""
        group = cgroup.v1_group(peer.pid, own_pod)
        if group is not None:
            try:
                self._directory.mkdir(exist_ok=True)
                # The peer first: what it forks from here on is born inside.
                for pid in (peer.pid, *cgroup.pids_of_v1(group)):
                    with contextlib.suppress(ProcessLookupError):
                        (self._directory / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                raise ForeignPeerError(f"{peer} cannot be put into {self._directory}: {error}") from error
        return cgroup.v2_path(peer.pid)

    def living(self, ids: frozenset[int]) -> frozenset[int]:
        """Return those of several cgroup ids that ztunnel's directory and those below it still have."""
        present = set()
        for path, _, _ in os.walk(self._directory):
            with contextlib.suppress(OSError):
                present.add(cgroup.cgroup_id(Path(path)))
        return ids & present
