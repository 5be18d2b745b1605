# SPDX-License-Identifier: Apache-2.0
"""The layout that programs and user space share: mirror of include/ambit_abi.h and ambit_maps.h.

Byte order is in the type's name (`Be16`, `Be32`), as in the header; every other field is the host's.
`compile.check_layout` compares each map's key and value, field for field, with what clang made of the header.
Holds no I/O.
"""

import ctypes
import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Words: TypeAlias = type[ctypes.Structure] | type[ctypes.c_uint32] | type[ctypes.c_uint64]

PORT_OUTBOUND = 15001
PORT_INBOUND = 15006
PORT_HBONE = 15008
PORT_DNS = 15053
CAPTURE_FIRST = 15100
CAPTURE_COUNT = 64
MAX_ADDRESSES = 8
MAX_RESOLVERS = 3
MAX_SLOTS = 16
OPT_ORIGINAL_DST = 80
OPT_SOURCE = 82
POD_DENY_NON_TCP = 1
COOKIE_CONSTANT = 0xA3B1700C00C1E5
LOOKUP_CODE_BYTES = 65536
"""Room for the sk_lookup bytecode that per-pod instances are made from."""


class Kind(IntEnum):
    """What a listener of ztunnel serves (`enum ambit_kind`)."""

    OUTBOUND = 1
    INBOUND = 2
    HBONE = 3


class Counter(IntEnum):
    """Why a program captured, passed or dropped (`enum ambit_counter`, same order)."""

    CAPTURED = 0
    NO_ADDRESS = 1
    NO_STORAGE = 2
    NO_CAPTURE_PORT = 3
    FOREIGN_SOURCE = 4
    RECORD_QUOTA = 5
    RECORDED = 6
    DIAL_RECORDED = 7
    ACCEPTED = 8
    NO_RECORD = 9
    NO_OUTBOUND = 10
    NO_INBOUND = 11
    NO_HBONE = 12
    TO_OUTBOUND = 13
    TO_INBOUND = 14
    TO_HBONE = 15
    DIAL_QUOTA = 16
    DIAL_PASSED = 17
    PROBE_RECORDED = 18
    PROBE_QUOTA = 19
    PROBE_PASSED = 20
    DNS_REDIRECTED = 21
    NON_TCP_DENIED = 22
    LISTENER_ADDED = 23
    LISTENER_FULL = 24
    LISTENER_FAILED = 25


class Be16(ctypes.BigEndianStructure):
    """A 16-bit number in network order."""

    _fields_ = (("value", ctypes.c_uint16),)


class Address(ctypes.Structure):
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""

    _fields_ = (("w", ctypes.c_uint8 * 16),)


class Pod(ctypes.Structure):
    """Value of `pods`, key the netns cookie."""

    _fields_ = (
        ("workload_id", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("address_count", ctypes.c_uint32),
        ("resolver_count", ctypes.c_uint32),
        ("self4", Address),
        ("self6", Address),
        ("addresses", Address * MAX_ADDRESSES),
        ("resolvers", Address * MAX_RESOLVERS),
    )


class Flow(ctypes.Structure):
    """Key of `records` (inner maps) and `probes`: one connection from the side that opened it."""

    _fields_ = (
        ("source", Address),
        ("destination", Address),
        ("source_port", Be16),
        ("destination_port", Be16),
        ("pad", ctypes.c_uint32),
    )


class Record(ctypes.Structure):
    """What an application asked for."""

    _fields_ = (
        ("destination", Address),
        ("port", Be16),
        ("pad", ctypes.c_uint16),
        ("workload_id", ctypes.c_uint32),
        ("netns_cookie", ctypes.c_uint64),
        ("born_ns", ctypes.c_uint64),
    )


class Source(ctypes.Structure):
    """Answer of getsockopt(SOL_IP, 82)."""

    _fields_ = (
        ("netns_cookie", ctypes.c_uint64),
        ("workload_id", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class ListenerKey(ctypes.Structure):
    """Key of `listeners`."""

    _fields_ = (
        ("netns_cookie", ctypes.c_uint64),
        ("family", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class SlotsKey(ctypes.Structure):
    """Key of `slots`; the value is one more than the highest slot ever used there."""

    _fields_ = (("netns_cookie", ctypes.c_uint64), ("family", ctypes.c_uint32), ("kind", ctypes.c_uint32))


class Node(ctypes.Structure):
    """The one value of `node`: whose connects are probes."""

    _fields_ = (
        ("netns_cookie", ctypes.c_uint64),
        ("pods_cgroup", ctypes.c_uint64),
        ("pods_level", ctypes.c_uint32),
        ("kubelet_tgid", ctypes.c_uint32),
    )


class Meta(ctypes.Structure):
    """The one value of `meta`: what layout the pins have, and the next workload id."""

    _fields_ = (
        ("schema", ctypes.c_uint8 * 32),
        ("next_workload_id", ctypes.c_uint64),
        ("records_quota", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class MapType(IntEnum):
    """Map types of bpf(2) that are used here."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    HASH_OF_MAPS = 13
    SOCKHASH = 18
    SK_STORAGE = 24


class ProgramType(IntEnum):
    """Program types of bpf(2) that are used here."""

    CGROUP_SOCK = 9
    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    SK_LOOKUP = 30


class AttachType(IntEnum):
    """Attach types of bpf(2) that are used here."""

    SOCK_CREATE = 2
    SOCK_OPS = 3
    CONNECT4 = 10
    CONNECT6 = 11
    SENDMSG4 = 14
    SENDMSG6 = 15
    RECVMSG4 = 19
    RECVMSG6 = 20
    GETSOCKOPT = 21
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    SK_LOOKUP = 36


class Place(IntEnum):
    """Where a program is attached."""

    PODS = 1
    """The cgroup v2 directory above the node's pods."""
    NODE = 2
    """The cgroup v2 directory above everything on the node."""
    POD_NETNS = 3
    """Each pod's network namespace, an instance of its own."""


NO_PREALLOC = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the maps hold; each is reported by `NodeMaps.fill` and refused by name when reached."""

    pods: int = 1024
    """Enrolled pods on the node; kubelet's own default is 110."""
    records: int = 8192
    """Connects of one pod whose handshake is not over: its quota."""
    probes: int = 16384
    """Connects of the node to pods whose handshake is not over."""
    ztunnels: int = 64
    """cgroups in which a ztunnel runs; two during an upgrade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSpec:
    """One map: its name is that of its pin and of the table in ambit_maps.h."""

    name: str
    type: MapType
    key: Words
    value: Words
    entries: int
    flags: int = 0
    inner: str = ""
    """For a map of maps: name of the map that each value is like."""
    pinned: bool = True
    compiled: bool = True
    """False for a map that no program reads."""


class LookupCode(ctypes.Structure):
    """The one value of `lookup_code`: a stored program (`bytecode.Program.encode`) and its length."""

    _fields_ = (("length", ctypes.c_uint32), ("data", ctypes.c_uint8 * (LOOKUP_CODE_BYTES - 4)))


def map_specs(limits: Limits) -> tuple[MapSpec, ...]:
    """Return every map, an inner map before the map that holds it."""
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    t = MapType
    kinds_and_families = 2 * len(Kind)
    return (
        MapSpec(name="meta", type=t.ARRAY, key=u32, value=Meta, entries=1),
        MapSpec(name="lookup_code", type=t.ARRAY, key=u32, value=LookupCode, entries=1, compiled=False),
        MapSpec(name="node", type=t.ARRAY, key=u32, value=Node, entries=1),
        MapSpec(name="counters", type=t.PERCPU_ARRAY, key=u32, value=u64, entries=len(Counter)),
        MapSpec(name="pods", type=t.HASH, key=u64, value=Pod, entries=limits.pods, flags=NO_PREALLOC),
        MapSpec(
            name="addresses",
            type=t.HASH,
            key=Address,
            value=u64,
            entries=limits.pods * MAX_ADDRESSES,
            flags=NO_PREALLOC,
        ),
        # Twice the limit: the new ones are written before the old ones go.
        MapSpec(
            name="ztunnels", type=t.HASH, key=u64, value=u32, entries=2 * limits.ztunnels, flags=NO_PREALLOC
        ),
        MapSpec(
            name="records_of_pod",
            type=t.HASH,
            key=Flow,
            value=Record,
            entries=limits.records,
            flags=NO_PREALLOC,
            pinned=False,
        ),
        MapSpec(
            name="records",
            type=t.HASH_OF_MAPS,
            key=u64,
            value=u32,
            entries=limits.pods,
            inner="records_of_pod",
        ),
        MapSpec(name="probes", type=t.HASH, key=Flow, value=u64, entries=limits.probes, flags=NO_PREALLOC),
        MapSpec(
            name="listeners",
            type=t.SOCKHASH,
            key=ListenerKey,
            value=u64,
            entries=limits.pods * kinds_and_families * MAX_SLOTS,
        ),
        MapSpec(
            name="slots",
            type=t.HASH,
            key=SlotsKey,
            value=u32,
            entries=limits.pods * kinds_and_families,
            flags=NO_PREALLOC,
        ),
        MapSpec(name="origins", type=t.SK_STORAGE, key=u32, value=Record, entries=0, flags=NO_PREALLOC),
        MapSpec(name="accepted", type=t.SK_STORAGE, key=u32, value=Record, entries=0, flags=NO_PREALLOC),
        MapSpec(name="made", type=t.SK_STORAGE, key=u32, value=u32, entries=0, flags=NO_PREALLOC),
        MapSpec(name="probing", type=t.SK_STORAGE, key=u32, value=u32, entries=0, flags=NO_PREALLOC),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program: function of that name in progs/SOURCE.c, and where it is attached."""

    name: str
    source: str
    type: ProgramType
    attach: AttachType
    place: Place = Place.PODS


PROGRAMS: tuple[ProgramSpec, ...] = (
    # sockops first: a listener opened while the rest is attached must not be missed.
    ProgramSpec(name="sockops", source="sockops", type=ProgramType.SOCK_OPS, attach=AttachType.SOCK_OPS),
    ProgramSpec(
        name="probe",
        source="probe",
        type=ProgramType.SOCK_OPS,
        attach=AttachType.SOCK_OPS,
        place=Place.NODE,
    ),
    ProgramSpec(
        name="getsockopt",
        source="getsockopt",
        type=ProgramType.CGROUP_SOCKOPT,
        attach=AttachType.GETSOCKOPT,
    ),
    ProgramSpec(
        name="sock_create",
        source="sock_create",
        type=ProgramType.CGROUP_SOCK,
        attach=AttachType.SOCK_CREATE,
    ),
    *(
        ProgramSpec(
            name=f"probe_connect{family}",
            source="probe_connect",
            type=ProgramType.CGROUP_SOCK_ADDR,
            attach=AttachType[f"CONNECT{family}"],
            place=Place.NODE,
        )
        for family in (4, 6)
    ),
    *(
        ProgramSpec(
            name=name,
            source=source,
            type=ProgramType.CGROUP_SOCK_ADDR,
            attach=AttachType[name.upper()],
        )
        for source, names in (
            ("getpeername", ("getpeername4", "getpeername6")),
            ("dns", ("recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6")),
            ("connect", ("connect4", "connect6")),
        )
        for name in names
    ),
    ProgramSpec(
        name="sk_lookup",
        source="sk_lookup",
        type=ProgramType.SK_LOOKUP,
        attach=AttachType.SK_LOOKUP,
        place=Place.POD_NETNS,
    ),
)


def encode_address(address: IpAddress) -> bytes:
    """Return the canonical 16 bytes of an address."""
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def decode_address(data: bytes) -> IpAddress:
    """Return the address of 16 canonical bytes; ::ffff:a.b.c.d becomes IPv4."""
    address = ipaddress.IPv6Address(data)
    return address.ipv4_mapped or address
