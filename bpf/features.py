# SPDX-License-Identifier: Apache-2.0
"""What the kernel can do, found out by loading stubs and never by its version.

A stub is two instructions or a call; a distribution's backport passes, a kernel that was built without an
option fails, whatever uname says.
"""

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from bpf import abi, load, syscall
from bpf.errors import BpfError

_CALL, _EXIT, _MOV_IMM, _MOV_REG, _ADD_IMM = 0x85, 0x95, 0xB7, 0xBF, 0x07
_LOAD_WORD, _STORE_DWORD, _JUMP_EQ_IMM = 0x61, 0x7A, 0x15
_R0, _R1, _R2, _R3, _R4, _R5, _R10 = 0, 1, 2, 3, 4, 5, 10
_HELPERS = {
    "get_current_cgroup_id": 80,
    "get_netns_cookie": 122,
    "get_current_ancestor_cgroup_id": 123,
}
_SET_RETVAL, _SKC_LOOKUP_TCP, _SK_RELEASE = 187, 99, 86
_INGRESS_IFINDEX_OFFSET = 64
"""Of struct bpf_sk_lookup in include/uapi/linux/bpf.h (5.17)."""


class _Stub(NamedTuple):
    name: str
    type: abi.ProgramType
    attach: abi.AttachType
    code: bytes


def _insn(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, immediate)


def _end(result: int = 1) -> bytes:
    return _insn(_MOV_IMM, _R0, immediate=result) + _insn(_EXIT)


def _stubs() -> list[_Stub]:
    attach, kind = abi.AttachType, abi.ProgramType
    stubs = [_Stub(f"program {spec.name}", spec.type, spec.attach, _end()) for spec in abi.PROGRAMS]
    cookie = _insn(_CALL, immediate=_HELPERS["get_netns_cookie"])
    for name, program, at in (
        ("connect", kind.CGROUP_SOCK_ADDR, attach.CONNECT4),
        ("sockops", kind.SOCK_OPS, attach.SOCK_OPS),
        ("sock_create", kind.CGROUP_SOCK, attach.SOCK_CREATE),
    ):
        stubs.append(_Stub(f"netns cookie in {name}", program, at, cookie + _end()))
    ancestor = _insn(_MOV_IMM, _R1) + _insn(_CALL, immediate=_HELPERS["get_current_ancestor_cgroup_id"])
    stubs.append(_Stub("ancestor cgroup in sockops", kind.SOCK_OPS, attach.SOCK_OPS, ancestor + _end()))
    group = _insn(_CALL, immediate=_HELPERS["get_current_cgroup_id"])
    for name, program, at in (
        ("connect", kind.CGROUP_SOCK_ADDR, attach.CONNECT4),
        ("sockops", kind.SOCK_OPS, attach.SOCK_OPS),
        ("getsockopt", kind.CGROUP_SOCKOPT, attach.GETSOCKOPT),
    ):
        stubs.append(_Stub(f"cgroup id in {name}", program, at, group + _end()))
    own_errno = _insn(_MOV_IMM, _R1, immediate=-111) + _insn(_CALL, immediate=_SET_RETVAL)
    for name, program, at in (
        ("connect", kind.CGROUP_SOCK_ADDR, attach.CONNECT4),
        ("getsockopt", kind.CGROUP_SOCKOPT, attach.GETSOCKOPT),
    ):
        stubs.append(_Stub(f"own errno in {name}", program, at, own_errno + _end()))
    lookup = _insn(_STORE_DWORD, _R10, offset=-16) + _insn(_STORE_DWORD, _R10, offset=-8)
    lookup += _insn(_MOV_REG, _R2, _R10) + _insn(_ADD_IMM, _R2, immediate=-16)
    lookup += _insn(_MOV_IMM, _R3, immediate=12) + _insn(_MOV_IMM, _R4, immediate=-1) + _insn(_MOV_IMM, _R5)
    lookup += _insn(_CALL, immediate=_SKC_LOOKUP_TCP) + _insn(_JUMP_EQ_IMM, _R0, offset=2)
    lookup += _insn(_MOV_REG, _R1, _R0) + _insn(_CALL, immediate=_SK_RELEASE)
    stubs.append(_Stub("socket lookup in connect", kind.CGROUP_SOCK_ADDR, attach.CONNECT4, lookup + _end()))
    interface = _insn(_LOAD_WORD, _R2, _R1, offset=_INGRESS_IFINDEX_OFFSET)
    stubs.append(_Stub("interface in sk_lookup", kind.SK_LOOKUP, attach.SK_LOOKUP, interface + _end()))
    return stubs


def probe() -> dict[str, str]:
    """Try every feature; return feature -> why it is absent, empty where it is there.

    Leaves nothing behind. Without privilege every feature reads as absent, with the reason.
    """
    found: dict[str, str] = {}
    for stub in _stubs():
        found[stub.name] = _try(lambda s=stub: syscall.prog_load(s.type, s.attach, s.code, "ambit_stub"))  # type: ignore[misc]
    limits = abi.Limits(pods=1, records=1, probes=1, ztunnels=1)
    made: dict[str, int] = {}
    try:
        for spec in abi.map_specs(limits):
            found[f"map {spec.name}"] = _keep(made, spec)
    finally:
        for number in made.values():
            os.close(number)
    return found


def _try(action: Callable[[], int]) -> str:
    try:
        os.close(action())
    except BpfError as error:
        return str(error)
    return ""


def _keep(made: dict[str, int], spec: abi.MapSpec) -> str:
    try:
        made[spec.name] = load.create_map(spec, made)
    except BpfError as error:
        return str(error)
    except KeyError as error:
        return f"needs map {error}, which cannot be created"
    return ""
