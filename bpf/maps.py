# SPDX-License-Identifier: Apache-2.0
"""Typed access to the pinned maps by bpf(2), with neither bcc nor a daemon in between.

Who writes what: the agent writes pods, addresses, ztunnel's cgroups and the node; programs write records,
probes, listeners and counters. This module keeps no state: what it says is what the kernel holds.
"""

import ctypes
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from bpf import abi, bpffs, load, sources, syscall
from bpf.errors import BpfError, LimitError, NotLoadedError, SchemaError
from bpf.syscall import Fd

_ZERO = bytes(4)
_COOKIE = struct.Struct("=Q")
RECORD_MAX_AGE_S = 180.0
"""A record older than this belongs to no handshake: a SYN is given up after 127 s (tcp_syn_retries 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """One enrolled pod, as the programs see it."""

    netns_cookie: int
    """SO_NETNS_COOKIE of the pod's network namespace."""
    workload_id: int
    """From `NodeMaps.allocate_workload_id`."""
    addresses: tuple[abi.IpAddress, ...]
    """The pod's own addresses; the first of a family is where its captured connects go."""
    resolvers: tuple[abi.IpAddress, ...] = ()
    """Nameservers of its resolv.conf, in order."""
    deny_non_tcp: bool = False
    """Refuse what is neither TCP nor DNS to those nameservers: UDP when sent, raw and others when made.
    Sockets from before, and packet sockets (AF_PACKET, CAP_NET_RAW), see no such hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One in-pod listener of a ztunnel."""

    family: int
    """AF_INET or AF_INET6."""
    kind: abi.Kind
    slot: int
    socket_cookie: int
    """SO_COOKIE of the listening socket."""


class NodeMaps:
    """The maps of one node; holds their descriptors until `close`."""

    def __init__(self, descriptors: Mapping[str, int], limits: abi.Limits) -> None:
        self._fds = dict(descriptors)
        self._limits = limits
        self._fd_stack = [Fd(number) for number in descriptors.values()]

    @classmethod
    def open(cls, root: Path) -> "NodeMaps":
        """Open the pins under `root`.

        Raises:
            NotLoadedError: nothing is pinned there.
            SchemaError: what is pinned has another layout than this version.
        """
        if not bpffs.map_pin(root, "meta").exists():
            raise NotLoadedError(f"nothing is pinned in {root}; run `python3 -m bpf load --bpffs {root} ...`")
        fault = load.pins_fault(root, None, sources.schema_hash())
        if fault:
            raise SchemaError(
                f"pins in {root} do not fit this version: {fault}; run `python3 -m bpf load` again"
            )
        opened: dict[str, int] = {}
        try:
            for spec in abi.map_specs(abi.Limits()):
                if spec.pinned:
                    opened[spec.name] = syscall.get(bpffs.map_pin(root, spec.name))
            limits = _limits(opened)
        except BaseException:
            for number in opened.values():
                os.close(number)
            raise
        return cls(opened, limits)

    def close(self) -> None:
        """Close the descriptors; the pins stay."""
        for fd in self._fd_stack:
            fd.close()

    @property
    def limits(self) -> abi.Limits:
        """The sizes that the maps were loaded with."""
        return self._limits

    def enroll(self, pod: PodRecord) -> None:
        """Capture a pod from now on, or change its record; all of it or nothing.

        The record of the pod is one map value and is written last: until then nothing is captured.

        Raises:
            LimitError: too many addresses, resolvers or pods; the text names the limit.
            BpfError: the kernel refused a write.
        """
        value = encode_pod(pod)
        key = _COOKIE.pack(pod.netns_cookie)
        before = self._pod(pod.netns_cookie)
        if before is None and len(self._keys("pods", 8)) >= self._limits.pods:
            raise LimitError(
                f"{self._limits.pods} pods are enrolled, the limit of this node (load --max-pods)"
            )
        wanted = {abi.encode_address(address) for address in pod.addresses}
        had = {abi.encode_address(address) for address in before.addresses} if before else set()
        added: list[tuple[bytes, bytes | None]] = []
        made_records = False
        try:
            if syscall.map_lookup(self._fds["records"], key, 4) is None:
                self._make_records(key)
                made_records = True
            for address in wanted:
                added.append((address, syscall.map_lookup(self._fds["addresses"], address, 8)))
                syscall.map_update(self._fds["addresses"], address, key, "cannot write map addresses")
            syscall.map_update(self._fds["pods"], key, value, "cannot write map pods")
        except BpfError:
            for address, owner in added:
                if owner is None:
                    syscall.map_delete(self._fds["addresses"], address)
                else:
                    syscall.map_update(self._fds["addresses"], address, owner, "cannot restore map addresses")
            if made_records:
                syscall.map_delete(self._fds["records"], key)
            raise
        self._forget_addresses(had - wanted, key)

    def unenroll(self, netns_cookie: int) -> None:
        """Stop capturing a pod and forget all of it; it is no error if it is not enrolled."""
        key = _COOKIE.pack(netns_cookie)
        before = self._pod(netns_cookie)
        syscall.map_delete(self._fds["pods"], key)
        if before is not None:
            self._forget_addresses({abi.encode_address(address) for address in before.addresses}, key)
        syscall.map_delete(self._fds["records"], key)
        for name, size in (
            ("listeners", ctypes.sizeof(abi.ListenerKey)),
            ("slots", ctypes.sizeof(abi.SlotsKey)),
        ):
            for entry in self._keys(name, size):
                if entry.startswith(key):
                    syscall.map_delete(self._fds[name], entry)

    def pods(self) -> dict[int, PodRecord]:
        """Return netns cookie -> record of every enrolled pod."""
        found: dict[int, PodRecord] = {}
        for key in self._keys("pods", 8):
            cookie = int(_COOKIE.unpack(key)[0])
            record = self._pod(cookie)
            if record is not None:
                found[cookie] = record
        return found

    def set_ztunnel(self, cgroup_ids: frozenset[int]) -> None:
        """Say which cgroups' processes are ztunnel: not captured, and their listeners get connections."""
        wanted = {_COOKIE.pack(number) for number in cgroup_ids}
        if len(wanted) > self._limits.ztunnels:
            raise LimitError(f"{len(wanted)} ztunnel cgroups, {self._limits.ztunnels} is the limit")
        for key in wanted:
            syscall.map_update(self._fds["ztunnels"], key, struct.pack("=I", 1), "cannot write map ztunnels")
        for key in self._keys("ztunnels", 8) - wanted:
            syscall.map_delete(self._fds["ztunnels"], key)

    def ztunnel(self) -> frozenset[int]:
        """Return the cgroup ids that `set_ztunnel` wrote."""
        return frozenset(int(_COOKIE.unpack(key)[0]) for key in self._keys("ztunnels", 8))

    def set_node(self, netns_cookie: int, kubelet_tgid: int = 0) -> None:
        """Say whose connects pass as probes.

        Args:
            netns_cookie: the node's own network namespace.
            kubelet_tgid: only this process, where pods and the node share the v2 root; 0: every process of
                that namespace outside the pods' cgroup.
        """
        fd = self._fds["node"]
        node = abi.Node.from_buffer_copy(self._array(fd, abi.Node))
        node.netns_cookie, node.kubelet_tgid = netns_cookie, kubelet_tgid
        syscall.map_update(fd, _ZERO, bytes(node), "cannot write map node")

    def allocate_workload_id(self) -> int:
        """Return an id that no pod of this node has had since the maps were made.

        The agent alone calls this: it reads and writes one entry, without a lock.
        """
        fd = self._fds["meta"]
        meta = abi.Meta.from_buffer_copy(self._array(fd, abi.Meta))
        number = int(meta.next_workload_id)
        if number > 0xFFFFFFFF:
            raise LimitError("4294967295 workload ids are used up: unload and load this node's programs")
        meta.next_workload_id = number + 1
        syscall.map_update(fd, _ZERO, bytes(meta), "cannot write map meta")
        return number

    def counters(self) -> dict[str, int]:
        """Return reason -> count since the maps were made, summed over processors."""
        width = 8 * possible_cpus()
        found: dict[str, int] = {}
        for counter in abi.Counter:
            value = syscall.map_lookup(self._fds["counters"], struct.pack("=I", counter), width)
            assert value is not None
            found[counter.name.lower()] = sum(struct.unpack(f"={width // 8}Q", value))
        return found

    def fill(self) -> dict[str, tuple[int, int]]:
        """Return map -> (entries, capacity); `records` is the fullest pod's share of its quota."""
        found: dict[str, tuple[int, int]] = {}
        for name in ("pods", "addresses", "ztunnels", "probes", "listeners", "slots"):
            _, key, _, entries, _ = syscall.map_shape(self._fds[name])
            found[name] = (len(self._keys(name, key)), entries)
        found["records"] = (
            max((count for count in self.records().values()), default=0),
            self._limits.records,
        )
        return found

    def records(self) -> dict[int, int]:
        """Return netns cookie -> connects of that pod whose handshake is not over."""
        found: dict[int, int] = {}
        for key in self._keys("records", 8):
            with self._records(key) as fd:
                found[int(_COOKIE.unpack(key)[0])] = len(
                    set(syscall.map_keys(fd.number, ctypes.sizeof(abi.Flow)))
                )
        return found

    def sweep(self, max_age_s: float = RECORD_MAX_AGE_S) -> int:
        """Delete records and probes whose handshake never ended; return how many. Call it once a minute.

        Also forgets how many listeners namespaces had that are neither enrolled nor have any.
        """
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(max_age_s * 1e9)
        removed = _sweep(self._fds["probes"], 8, 0, before_ns)
        for key in self._keys("records", 8):
            with self._records(key) as fd:
                removed += _sweep(fd.number, ctypes.sizeof(abi.Record), abi.Record.born_ns.offset, before_ns)
        used = self._keys("pods", 8) | {
            key[:8] for key in self._keys("listeners", ctypes.sizeof(abi.ListenerKey))
        }
        for key in self._keys("slots", ctypes.sizeof(abi.SlotsKey)):
            if key[:8] not in used:
                syscall.map_delete(self._fds["slots"], key)
        return removed

    def listeners(self, netns_cookie: int) -> frozenset[Listener]:
        """Return ztunnel's listeners in one pod."""
        found: set[Listener] = set()
        for data in self._keys("listeners", ctypes.sizeof(abi.ListenerKey)):
            key = abi.ListenerKey.from_buffer_copy(data)
            value = (
                syscall.map_lookup(self._fds["listeners"], data, 8)
                if key.netns_cookie == netns_cookie
                else None
            )
            if value is not None:
                found.add(
                    Listener(
                        family=key.family,
                        kind=abi.Kind(key.kind),
                        slot=key.slot,
                        socket_cookie=int(_COOKIE.unpack(value)[0]),
                    )
                )
        return frozenset(found)

    def retire_listener(self, socket_cookie: int) -> bool:
        """Give a listener no further connection; return whether it was in the table.

        What its queue holds is still accepted from it: close it only when that is empty.
        """
        for data in self._keys("listeners", ctypes.sizeof(abi.ListenerKey)):
            if syscall.map_lookup(self._fds["listeners"], data, 8) == _COOKIE.pack(socket_cookie):
                return syscall.map_delete(self._fds["listeners"], data)
        return False

    def _keys(self, name: str, size: int) -> set[bytes]:
        return set(syscall.map_keys(self._fds[name], size))

    def _array(self, fd: int, kind: type[ctypes.Structure]) -> bytes:
        value = syscall.map_lookup(fd, _ZERO, ctypes.sizeof(kind))
        assert value is not None, "arrays have all their entries"
        return value

    def _pod(self, netns_cookie: int) -> PodRecord | None:
        value = syscall.map_lookup(self._fds["pods"], _COOKIE.pack(netns_cookie), ctypes.sizeof(abi.Pod))
        return None if value is None else decode_pod(netns_cookie, value)

    def _make_records(self, key: bytes) -> None:
        spec = next(s for s in abi.map_specs(self._limits) if s.name == "records_of_pod")
        with Fd(load.create_map(spec, {})) as inner:
            syscall.map_update(
                self._fds["records"], key, struct.pack("=I", inner.number), "cannot write map records"
            )

    def _records(self, key: bytes) -> Fd:
        value = syscall.map_lookup(self._fds["records"], key, 4)
        if value is None:
            raise BpfError("a pod was un-enrolled while its records were read: try again")
        return Fd(syscall.map_by_id(struct.unpack("=I", value)[0]))

    def _forget_addresses(self, addresses: set[bytes], owner: bytes) -> None:
        for address in addresses:
            if syscall.map_lookup(self._fds["addresses"], address, 8) == owner:
                syscall.map_delete(self._fds["addresses"], address)


def _sweep(fd: int, value_size: int, offset: int, before_ns: int) -> int:
    stale: set[bytes] = set()
    for key in syscall.map_keys(fd, ctypes.sizeof(abi.Flow)):
        value = syscall.map_lookup(fd, key, value_size)
        if value is not None and _COOKIE.unpack_from(value, offset)[0] < before_ns:
            stale.add(key)
    return sum(syscall.map_delete(fd, key) for key in stale)


def _limits(descriptors: Mapping[str, int]) -> abi.Limits:
    def entries(name: str) -> int:
        return syscall.map_shape(descriptors[name])[3]

    meta = syscall.map_lookup(descriptors["meta"], _ZERO, ctypes.sizeof(abi.Meta))
    assert meta is not None
    quota = abi.Meta.from_buffer_copy(meta).records_quota
    return abi.Limits(
        pods=entries("pods"), records=quota, probes=entries("probes"), ztunnels=entries("ztunnels") // 2
    )


def encode_pod(pod: PodRecord) -> bytes:
    """Return the value of `pods`.

    Raises:
        LimitError: more addresses or resolvers than a record holds.
        ValueError: no address, a repeated one, or one that cannot be a pod's.
    """
    if not pod.addresses or len(set(pod.addresses)) != len(pod.addresses):
        raise ValueError(f"a pod needs addresses, each once: {[str(a) for a in pod.addresses]}")
    for address in pod.addresses:
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            raise ValueError(f"{address} cannot be a pod's address")
    if len(pod.addresses) > abi.MAX_ADDRESSES:
        raise LimitError(f"{len(pod.addresses)} addresses, a pod's record holds {abi.MAX_ADDRESSES}")
    if len(pod.resolvers) > abi.MAX_RESOLVERS:
        raise LimitError(f"{len(pod.resolvers)} nameservers, a pod's record holds {abi.MAX_RESOLVERS}")
    if not 0 < pod.netns_cookie < 1 << 64 or not 0 < pod.workload_id < 1 << 32:
        raise ValueError(f"cookie {pod.netns_cookie} or workload id {pod.workload_id} is out of range")
    value = abi.Pod(
        workload_id=pod.workload_id,
        flags=abi.POD_DENY_NON_TCP if pod.deny_non_tcp else 0,
        address_count=len(pod.addresses),
        resolver_count=len(pod.resolvers),
    )
    for index, address in enumerate(pod.addresses):
        value.addresses[index].w[:] = abi.encode_address(address)
    for index, address in enumerate(pod.resolvers):
        value.resolvers[index].w[:] = abi.encode_address(address)
    for address in reversed(pod.addresses):
        own = value.self4 if isinstance(address, IPv4Address) else value.self6
        own.w[:] = abi.encode_address(address)
    return bytes(value)


def decode_pod(netns_cookie: int, data: bytes) -> PodRecord:
    """Return the record that `encode_pod` made."""
    value = abi.Pod.from_buffer_copy(data)
    return PodRecord(
        netns_cookie=netns_cookie,
        workload_id=value.workload_id,
        addresses=tuple(abi.decode_address(bytes(a.w)) for a in value.addresses[: value.address_count]),
        resolvers=tuple(abi.decode_address(bytes(a.w)) for a in value.resolvers[: value.resolver_count]),
        deny_non_tcp=bool(value.flags & abi.POD_DENY_NON_TCP),
    )


def possible_cpus() -> int:
    """Return how many values a per-processor map gives for one key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1
