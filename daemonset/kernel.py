# SPDX-License-Identifier: Apache-2.0
"""What the steps do inside network namespaces, on the running kernel (`steps.Network`).

Every call blocks for up to some milliseconds and is made from a worker thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from daemonset import cgroup, connections, mark_route, netns
from daemonset.connections import TcpSocket
from daemonset.pods import parse_resolv_conf, resolvers
from daemonset.worker import Subject
from mesh.model.address import IPAddress


class KernelNetwork:
    """`Network` on the running kernel."""

    def __init__(self, *, node: netns.Netns, pods_cgroup: Path, cluster_dns: tuple[IPAddress, ...]) -> None:
        self._node = node
        self._pods_cgroup = pods_cgroup
        self._cluster_dns = cluster_dns

    def find(self, subject: Subject) -> tuple[netns.Netns, netns.Proof]:
        """Find the pod's namespace: the CNI's path, the one known from before, those of its processes."""
        return netns.find(self._paths(subject), subject.addresses, self._node)

    def _paths(self, subject: Subject) -> Iterable[str]:
        if subject.cni_netns:
            yield subject.cni_netns
        if subject.remembered is not None:
            yield subject.remembered.netns_path
        # Oldest first: what a pod's processes make of their own comes after what they were started in.
        pids = sorted(cgroup.pod_pids(self._pods_cgroup, subject.pod.uid))
        yield from (f"/proc/{pid}/ns/net" for pid in pids)

    def reopen(self, subject: Subject) -> netns.Netns | None:
        """Open the namespace that the pod was last known by; None: it is gone, and what was in it too."""
        if subject.remembered is None:
            return None
        for path in self._paths(subject):
            try:
                space = netns.open_netns(path)
            except netns.NetnsError:
                continue
            if space.cookie == subject.remembered.cookie:
                return space
            space.close()
        return None

    def resolvers(self, subject: Subject) -> tuple[IPAddress, ...]:
        """Return the nameservers that the object tells of, else those of the pod's own resolv.conf."""
        told = resolvers(subject.pod, self._cluster_dns)
        if told is not None:
            return told
        for pid in sorted(cgroup.pod_pids(self._pods_cgroup, subject.pod.uid))[:1]:
            text = cgroup.resolv_conf_of(pid)
            if text is not None and (found := parse_resolv_conf(text)):
                return found
        return subject.remembered.resolvers if subject.remembered is not None else ()

    def install_route(self, space: netns.Netns) -> None:
        """Set the mark route inside the pod."""
        _in_pod(space, mark_route.install)

    def older(
        self, space: netns.Netns, addresses: Collection[IPAddress], ztunnels: Collection[int]
    ) -> tuple[TcpSocket, ...]:
        """Return the connections that were made before capture, asked just after it."""
        found = netns.run_in(space.fd, connections.list_sockets)
        return connections.older(iter(found), addresses, ztunnels)

    def end(self, netns_fd: int, sockets: Collection[TcpSocket]) -> int:
        """End connections; return how many were still there."""
        return netns.run_in(netns_fd, lambda: sum(connections.destroy(item) for item in sockets))

    def remove_route(self, space: netns.Netns) -> None:
        """Remove the mark route inside the pod."""
        _in_pod(space, mark_route.remove)


def _in_pod(space: netns.Netns, work: Callable[[], None]) -> None:
    try:
        netns.run_in(space.fd, work)
    except NetlinkError as error:
        raise OSError(error.code or errno.EIO, f"in {space.path}: {error}") from error
