# SPDX-License-Identifier: Apache-2.0
"""The agent's view of the node's pins: records, listeners and per-pod links (`steps.Maps`).

Thin on purpose: it turns the agent's values into `bpf`'s and `bpf`'s errors into OSError,
which the steps give a code. The calls are a few system calls each.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

from bpf import bpffs, load, syscall
from bpf.abi import Kind
from bpf.errors import BpfError
from bpf.maps import NodeMaps, PodRecord
from daemonset.store import Remembered
from mesh.model.address import IPAddress

BPF_LINK_DETACH = 34
"""bpf(2) command (linux/bpf.h)."""


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (BpfError, ValueError) as error:
        raise OSError(errno.EIO, str(error)) from error


def _detach_now(root: Path, uid: str) -> None:
    """Detach a pod's link at once: one that only loses its pin goes on working for some milliseconds."""
    directory = bpffs.pod_directory(root, uid)
    for pin in directory.iterdir() if directory.is_dir() else ():
        with syscall.Fd(syscall.get(pin)) as link:
            # A kernel that cannot (before 5.9) lets go of it when the pin is removed, a little later.
            syscall._bpf(BPF_LINK_DETACH, struct.pack("=I", link.number))


def missing(addresses: Iterable[IPAddress], listeners: Iterable[tuple[int, int]]) -> frozenset[str]:
    """Return which listeners are not there for a pod of these addresses; pure.

    `listeners` are (family, kind). An IPv6 listener may serve IPv4 too, as Istio's ztunnel's do.
    """
    have = set(listeners)
    lacking = set()
    for kind in Kind:
        v6 = (int(socket.AF_INET6), int(kind)) in have
        v4 = v6 or (int(socket.AF_INET), int(kind)) in have
        for address in addresses:
            served = v6 if isinstance(address, IPv6Address) else v4
            if not served:
                lacking.add(f"{kind.name.lower()} (IPv{address.version})")
    return frozenset(lacking)


class Pins:
    """Implements `daemonset.steps.Maps` on pinned maps and links."""

    def __init__(self, bpffs: Path) -> None:
        """Open the node's pins.

        Raises:
            OSError: they are absent or of another version; the loader makes them.
        """
        self._bpffs = bpffs
        with _as_os_error():
            self._maps = NodeMaps.open(bpffs)

    def allocate_workload_id(self) -> int:
        """Return an id that was never used on this node."""
        with _as_os_error():
            return self._maps.allocate_workload_id()

    def record_id(self, cookie: int) -> int | None:
        """Return the workload id of a cookie's record, if it has one."""
        with _as_os_error():
            record = self._maps.pods().get(cookie)
        return record.workload_id if record is not None else None

    def write_record(self, pod: Remembered, *, deny_non_tcp: bool) -> None:
        """Write a pod's record, replacing an older one of its cookie."""
        with _as_os_error():
            self._maps.enroll(
                PodRecord(
                    netns_cookie=pod.cookie,
                    workload_id=pod.workload_id,
                    addresses=pod.addresses,
                    resolvers=pod.resolvers,
                    deny_non_tcp=deny_non_tcp,
                )
            )

    def remove_record(self, cookie: int) -> None:
        """Remove a pod's record, if there is one."""
        with _as_os_error():
            self._maps.unenroll(cookie)

    def missing_listeners(self, cookie: int, addresses: Iterable[IPAddress]) -> Collection[str]:
        """Return which of ztunnel's listeners are not in the map."""
        with _as_os_error():
            found = [(int(item.family), int(item.kind)) for item in self._maps.listeners(cookie)]
        return missing(addresses, found)

    def attach_lookup(self, uid: str, netns_fd: int, cookie: int) -> None:
        """Attach the pod's sk_lookup link; one of the same namespace is brought up to date."""
        with _as_os_error():
            load.attach_pod_lookup(self._bpffs, uid=uid, netns_fd=netns_fd, netns_cookie=cookie)

    def detach_lookup(self, uid: str) -> None:
        """Detach the pod's sk_lookup link, if there is one."""
        with _as_os_error():
            _detach_now(self._bpffs, uid)
            load.detach_pod_lookup(self._bpffs, uid)

    # For the agent itself.

    def set_node(self, netns_cookie: int, kubelet_tgid: int) -> None:
        """Say whose connects are probes."""
        with _as_os_error():
            self._maps.set_node(netns_cookie, kubelet_tgid)

    def set_ztunnel(self, cgroup_ids: frozenset[int]) -> None:
        """Say who ztunnel is."""
        with _as_os_error():
            self._maps.set_ztunnel(cgroup_ids)

    def ztunnel(self) -> frozenset[int]:
        """Return the cgroup ids that `set_ztunnel` wrote."""
        with _as_os_error():
            return self._maps.ztunnel()

    def records(self) -> frozenset[int]:
        """Return the netns cookies that have a record."""
        with _as_os_error():
            return frozenset(self._maps.pods())

    def lookups(self) -> Mapping[str, int]:
        """Return pod uid -> netns cookie of the pinned sk_lookup links."""
        with _as_os_error():
            return {uid: lookup.netns_cookie for uid, lookup in load.pod_lookups(self._bpffs).items()}

    def counters(self) -> Mapping[str, int]:
        """Return how often the programs did what, by reason."""
        with _as_os_error():
            return self._maps.counters()

    def fill(self) -> Mapping[str, tuple[int, int]]:
        """Return map -> (entries, capacity)."""
        with _as_os_error():
            return self._maps.fill()

    def sweep(self) -> int:
        """Drop connection records whose handshake never ended; return how many."""
        with _as_os_error():
            return self._maps.sweep()
