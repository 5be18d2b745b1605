# SPDX-License-Identifier: Apache-2.0
"""What the kernel can do, found out by loading stubs and never by its version.

A stub is two instructions or a call; a distribution's backport passes, a kernel that was built without an
option fails, whatever uname says. Every function of the kernel that a program calls is tried in that type of
program: which types have it differs from version to version.
"""

import os
import re
import struct
from typing import NamedTuple

from bpf import abi, load, syscall
from bpf.errors import BpfError

_CALL, _EXIT, _MOV_IMM, _LOAD_WORD = 0x85, 0x95, 0xB7, 0x61
_R0, _R1, _R2 = 0, 1, 2
_NUMBERS = {
    "get_current_pid_tgid": 14,
    "sock_ops_cb_flags_set": 59,
    "sock_hash_update": 70,
    "get_current_cgroup_id": 80,
    "sk_release": 86,
    "skc_lookup_tcp": 99,
    "sk_storage_get": 107,
    "sk_storage_delete": 108,
    "get_netns_cookie": 122,
    "get_current_ancestor_cgroup_id": 123,
    "sk_assign": 124,
    "set_retval": 187,
}
"""Of the functions in include/uapi/linux/bpf.h."""
EVERYWHERE = frozenset((1, 2, 3, 5, 7, 8))
"""Map access, time, random number and processor: every type has had them since before 4.18."""
_HELPERS = {
    "sockops": ("sock_ops_cb_flags_set", "sock_hash_update", "sk_storage_get", "get_netns_cookie"),
    "probe": ("sock_ops_cb_flags_set", "sk_storage_get"),
    "getsockopt": ("get_current_cgroup_id", "sk_storage_get", "set_retval"),
    "sock_create": ("get_current_cgroup_id", "sk_storage_get", "get_netns_cookie"),
    "probe_connect": (
        "get_current_pid_tgid",
        "get_current_ancestor_cgroup_id",
        "sk_storage_get",
        "sk_storage_delete",
        "get_netns_cookie",
    ),
    "getpeername": ("sk_storage_get",),
    "recvmsg": ("get_current_cgroup_id", "get_netns_cookie"),
    "sendmsg": ("get_current_cgroup_id", "get_netns_cookie", "set_retval"),
    "connect": (
        "get_current_cgroup_id",
        "sk_release",
        "skc_lookup_tcp",
        "sk_storage_get",
        "sk_storage_delete",
        "get_netns_cookie",
        "set_retval",
    ),
    "sk_lookup": ("sk_release", "sk_assign"),
}
"""Program without its family -> functions of the kernel that it calls; a test compares the bytecode."""
_OFFERED = re.compile(r"R\d (type|!read_ok)")
"""What the verifier says of a call that it would take with other arguments."""
_UNKNOWN = re.compile(r"unknown func|cannot use helper")
"""The same of one that it does not take at all, until and from 6.9."""
_INGRESS_IFINDEX_OFFSET = 64
"""Of struct bpf_sk_lookup in include/uapi/linux/bpf.h (5.17)."""


class _Stub(NamedTuple):
    name: str
    type: abi.ProgramType
    attach: abi.AttachType
    code: bytes
    call: bool = False
    """A call without arguments: that the kernel knows it for this type is enough."""


def _insn(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, immediate)


def _end(result: int = 1) -> bytes:
    return _insn(_MOV_IMM, _R0, immediate=result) + _insn(_EXIT)


def helpers(program: str) -> dict[str, int]:
    """Return the kernel's functions that a program calls, with their numbers."""
    return {name: _NUMBERS[name] for name in _HELPERS[program.rstrip("46")]}


def _stubs() -> list[_Stub]:
    stubs = [_Stub(f"program {spec.name}", spec.type, spec.attach, _end()) for spec in abi.PROGRAMS]
    for spec in abi.PROGRAMS:
        if spec.name.endswith("6"):
            continue
        for helper, number in helpers(spec.name).items():
            name = f"bpf_{helper} in {spec.name.rstrip('4')}"
            code = _insn(_CALL, immediate=number) + _end()
            stubs.append(_Stub(name, spec.type, spec.attach, code, call=True))
    interface = _insn(_LOAD_WORD, _R2, _R1, offset=_INGRESS_IFINDEX_OFFSET)
    kind, attach = abi.ProgramType.SK_LOOKUP, abi.AttachType.SK_LOOKUP
    stubs.append(_Stub("interface in sk_lookup", kind, attach, interface + _end()))
    return stubs


def missing() -> dict[str, str]:
    """Return what this kernel lacks -> why, without what follows from a type of program that it lacks.

    Empty too where nothing can be tried for want of privilege.
    """
    found = probe()
    absent = {name: reason for name, reason in found.items() if reason}
    if len(absent) == len(found):
        return {}
    lost = {spec.name.rstrip("46") for spec in abi.PROGRAMS if f"program {spec.name}" in absent}
    return {name: reason for name, reason in absent.items() if name.partition(" in ")[2] not in lost}


def probe() -> dict[str, str]:
    """Try every feature; return feature -> why it is absent, empty where it is there.

    Leaves nothing behind. Without privilege every feature reads as absent, with the reason.
    """
    found: dict[str, str] = {}
    for stub in _stubs():
        found[stub.name] = _try(stub)
    limits = abi.Limits(pods=1, records=1, probes=1, ztunnels=1)
    made: dict[str, int] = {}
    try:
        for spec in abi.map_specs(limits):
            found[f"map {spec.name}"] = _keep(made, spec)
    finally:
        for number in made.values():
            os.close(number)
    return found


def _try(stub: _Stub) -> str:
    try:
        os.close(syscall.prog_load(stub.type, stub.attach, stub.code, "ambit_stub"))
    except BpfError as error:
        text = str(error)
        if stub.call and _UNKNOWN.search(text):
            return "this kernel does not offer it to this type of program"
        if not stub.call or not _OFFERED.search(text):
            return text
    return ""


def _keep(made: dict[str, int], spec: abi.MapSpec) -> str:
    try:
        made[spec.name] = load.create_map(spec, made)
    except BpfError as error:
        return str(error)
    except KeyError as error:
        return f"needs map {error}, which cannot be created"
    return ""
