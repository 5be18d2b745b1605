# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through ctypes: the few commands that this package needs, each failing by name.

Descriptors are plain ints that the caller closes, `Fd` closes by itself. Source: include/uapi/linux/bpf.h.
"""

import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bpf.errors import BpfError, KernelError

_NUMBERS = {"x86_64": 321, "aarch64": 280, "s390x": 351, "ppc64le": 361, "riscv64": 280}
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD, _PIN, _GET = range(8)
_PROG_FD_BY_ID, _MAP_FD_BY_ID, _INFO_BY_FD, _PROG_QUERY = 13, 14, 15, 16
_QUERY_EFFECTIVE, _MOST_PROGRAMS = 1, 64
_BTF_LOAD, _LINK_CREATE, _LINK_UPDATE = 18, 28, 29
_BPF_F_REPLACE = 4
_LICENSE = b"Dual BSD/GPL\0"
_LOG_BYTES = 1 << 20
_REFILLS_S = (0.001, 0.004, 0.016, 0.064)

_libc = ctypes.CDLL(None, use_errno=True)


class Fd:
    """A descriptor that is closed at the end of its `with`, or by `close`."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> "Fd":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close once; later calls do nothing."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1


def _bpf(command: int, attributes: bytes) -> int:
    """Run one bpf(2) command; return its result or minus errno."""
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)))


def _call(command: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """As `_bpf`, for commands that answer in their attributes."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise BpfError(f"bpf(2) is not known on {platform.machine()}: supported are {', '.join(_NUMBERS)}")
    result = int(_libc.syscall(number, command, buffer, len(buffer)))
    return -ctypes.get_errno() if result < 0 else result


def _pointer(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    return ctypes.addressof(buffer)


def _failed(result: int, what: str) -> KernelError:
    code = -result
    hint = {
        errno.EPERM: "needs root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN",
        errno.ENOMEM: "no memory for it (cgroup limit?)",
        errno.ENOSYS: "this kernel has no bpf(2)",
    }.get(code, "")
    return KernelError(f"{what}: {os.strerror(code)}" + (f"; {hint}" if hint else ""))


def map_create(
    kind: int,
    key_size: int,
    value_size: int,
    entries: int,
    flags: int,
    name: str,
    *,
    inner: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Create a map; return its descriptor. `btf` is (descriptor, key type id, value type id)."""
    attributes = struct.pack(
        "=7I16s5I4x", kind, key_size, value_size, entries, flags, inner, 0, name.encode()[:15], 0, *btf, 0
    )
    result = _bpf(_MAP_CREATE, attributes)
    if result < 0:
        raise _failed(result, f"cannot create map {name} ({entries} entries)")
    return result


def storage_btf(value_size: int) -> tuple[int, int, int]:
    """Load the type information that socket storage demands: an int key, a value of that many bytes.

    Returns: (descriptor, key type id, value type id).
    """
    strings = b"\0int\0u8\0"
    types = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("=IIII", 5, 1 << 24, 1, 8)
    types += struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, value_size)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    blob = ctypes.create_string_buffer(header + types + strings, len(header + types + strings))
    result = _bpf(_BTF_LOAD, struct.pack("=QQIIII", _pointer(blob), 0, len(blob), 0, 0, 0))
    if result < 0:
        raise _failed(result, "cannot load the type information for socket storage")
    return result, 1, 3


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value under a key, None if there is none."""
    k = ctypes.create_string_buffer(key, len(key))
    v = ctypes.create_string_buffer(value_size)
    result = _bpf(_LOOKUP, struct.pack("=IIQQQ", fd, 0, _pointer(k), _pointer(v), 0))
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise _failed(result, "map lookup failed")
    return v.raw


def map_update(fd: int, key: bytes, value: bytes, what: str, flags: int = 0) -> None:
    """Write one entry; raises BpfError that names `what`."""
    k = ctypes.create_string_buffer(key, len(key))
    v = ctypes.create_string_buffer(value, len(value))
    attributes = struct.pack("=IIQQQ", fd, 0, _pointer(k), _pointer(v), flags)
    result = _bpf(_UPDATE, attributes)
    for wait_s in _REFILLS_S:
        if result != -errno.ENOMEM:
            break
        # Entries come from a small per-processor stock that the kernel refills at its next interrupt.
        time.sleep(wait_s)
        result = _bpf(_UPDATE, attributes)
    if result < 0:
        raise _failed(result, what)


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one entry; return whether there was one."""
    k = ctypes.create_string_buffer(key, len(key))
    result = _bpf(_DELETE, struct.pack("=IIQQQ", fd, 0, _pointer(k), 0, 0))
    if result == -errno.ENOENT:
        return False
    if result < 0:
        raise _failed(result, "map delete failed")
    return True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Yield every key. An entry deleted meanwhile may restart the walk: keys can come twice."""
    previous: ctypes.Array[ctypes.c_char] | None = None
    while True:
        following = ctypes.create_string_buffer(key_size)
        at = _pointer(previous) if previous is not None else 0
        result = _bpf(_NEXT_KEY, struct.pack("=IIQQQ", fd, 0, at, _pointer(following), 0))
        if result == -errno.ENOENT:
            return
        if result < 0:
            raise _failed(result, "map walk failed")
        yield following.raw
        previous = following


def prog_load(kind: int, attach: int, code: bytes, name: str) -> int:
    """Load a program; return its descriptor.

    Raises:
        BpfError: the verifier refused it (the last lines of its log are in the text), or no permission.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(_LICENSE)

    def load(log: "ctypes.Array[ctypes.c_char] | None") -> int:
        attributes = struct.pack(
            "=IIQQIIQII16sII",
            kind,
            len(code) // 8,
            _pointer(instructions),
            _pointer(license_text),
            1 if log is not None else 0,
            len(log) if log is not None else 0,
            _pointer(log) if log is not None else 0,
            0,
            0,
            name.encode()[:15],
            0,
            attach,
        )
        return _bpf(_PROG_LOAD, attributes)

    result = load(None)
    if result >= 0:
        return result
    log = ctypes.create_string_buffer(_LOG_BYTES)
    again = load(log)
    if again >= 0:
        return again
    tail = " | ".join(log.value.decode(errors="replace").strip().splitlines()[-8:])
    raise _failed(result, f"kernel refuses program {name}" + (f" ({tail})" if tail else ""))


def link_create(program: int, target: int, attach: int, what: str) -> int:
    """Attach a program to a cgroup or network namespace; the link lives as long as its descriptor or pin."""
    result = _bpf(_LINK_CREATE, struct.pack("=IIII48x", program, target, attach, 0))
    if result < 0:
        raise _failed(result, f"cannot attach {what}")
    return result


def link_update(link: int, program: int, what: str) -> None:
    """Replace the program of a link, with no moment without one."""
    result = _bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))
    if result < 0:
        raise _failed(result, f"cannot replace {what}")


def pin(fd: int, path: Path) -> None:
    """Pin an object in bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    result = _bpf(_PIN, struct.pack("=QII", _pointer(name), fd, 0))
    if result < 0:
        raise _failed(result, f"cannot pin {path}")


def get(path: Path) -> int:
    """Return a descriptor of a pinned object."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    result = _bpf(_GET, struct.pack("=QII", _pointer(name), 0, 0))
    if result < 0:
        raise _failed(result, f"cannot open pin {path}")
    return result


def map_by_id(number: int) -> int:
    """Return a descriptor of the map with that id."""
    result = _bpf(_MAP_FD_BY_ID, struct.pack("=III", number, 0, 0))
    if result < 0:
        raise _failed(result, f"cannot open map {number}")
    return result


def program_by_id(number: int) -> int:
    """Return a descriptor of the program with that id."""
    result = _bpf(_PROG_FD_BY_ID, struct.pack("=III", number, 0, 0))
    if result < 0:
        raise _failed(result, f"cannot open program {number}")
    return result


def info(fd: int, size: int = 256) -> bytes:
    """Return the kernel's info struct of any BPF object, zero-padded."""
    buffer = ctypes.create_string_buffer(size)
    result = _bpf(_INFO_BY_FD, struct.pack("=IIQ", fd, size, _pointer(buffer)))
    if result < 0:
        raise _failed(result, "cannot read a BPF object's info")
    return buffer.raw


def map_shape(fd: int) -> tuple[int, int, int, int, int]:
    """Return (type, key size, value size, entries, flags) of a map."""
    kind, _, key, value, entries, flags = struct.unpack_from("=6I", info(fd))
    return kind, key, value, entries, flags


def program_tag(fd: int) -> tuple[int, str]:
    """Return (id, tag) of a program; the tag is the kernel's hash of the instructions."""
    data = info(fd)
    return struct.unpack_from("=I", data, 4)[0], data[8:16].hex()


def program_name(fd: int) -> str:
    """Return the name that a program was loaded with, at most 15 characters."""
    return info(fd)[64:80].split(b"\0")[0].decode(errors="replace")


def effective_programs(cgroup: int, attach: int) -> tuple[int, ...]:
    """Return the ids of all programs that run for a cgroup's sockets at one hook, first to last."""
    ids = ctypes.create_string_buffer(4 * _MOST_PROGRAMS)
    attributes = struct.pack("=IIIIQI4x", cgroup, attach, _QUERY_EFFECTIVE, 0, _pointer(ids), _MOST_PROGRAMS)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _call(_PROG_QUERY, buffer)
    if result < 0:
        raise _failed(result, "cannot ask which programs run for a cgroup")
    count = struct.unpack_from("=I", buffer.raw, 24)[0]
    return struct.unpack_from(f"={count}I", ids.raw)


def link_target(fd: int) -> tuple[int, int]:
    """Return (program id, cgroup id or netns inode) of a link; the target is 0 once it is gone."""
    data = info(fd)
    kind, _, program = struct.unpack_from("=III", data)
    cgroup_link, netns_link = 3, 5
    if kind == cgroup_link:
        return program, int(struct.unpack_from("=Q", data, 16)[0])
    if kind == netns_link:
        return program, int(struct.unpack_from("=I", data, 16)[0])
    raise BpfError(f"pinned link has kind {kind}: not made by this package")
