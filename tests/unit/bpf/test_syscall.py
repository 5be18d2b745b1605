# SPDX-License-Identifier: Apache-2.0
import errno
import os
import struct

import pytest

from bpf import syscall
from bpf.errors import BpfError


def answer(monkeypatch: pytest.MonkeyPatch, result: int) -> list[tuple[int, bytes]]:
    """Let bpf(2) answer `result`; return the commands that it was given."""
    seen: list[tuple[int, bytes]] = []

    def bpf(command: int, attributes: bytes) -> int:
        seen.append((command, attributes))
        return result

    monkeypatch.setattr(syscall, "_bpf", bpf)
    return seen


def test_missing_privilege_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, -errno.EPERM)
    with pytest.raises(BpfError, match=r"cannot create map pods.*needs root with CAP_BPF"):
        syscall.map_create(1, 8, 8, 10, 0, "pods")


def test_unknown_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall.platform, "machine", lambda: "pdp11")
    with pytest.raises(BpfError, match="not known on pdp11"):
        syscall.map_by_id(1)


def test_absent_key_is_none_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, -errno.ENOENT)
    assert syscall.map_lookup(3, b"k" * 8, 8) is None
    assert syscall.map_delete(3, b"k" * 8) is False
    assert list(syscall.map_keys(3, 8)) == []


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_an_update_waits_for_the_kernel_to_refill_its_stock(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    answers = iter([-errno.ENOMEM] * failures + [0])
    waited: list[float] = []
    monkeypatch.setattr(syscall, "_bpf", lambda command, attributes: next(answers))
    monkeypatch.setattr(syscall.time, "sleep", waited.append)
    if failures == 5:
        with pytest.raises(BpfError, match=r"cannot write map pods.*no memory"):
            syscall.map_update(3, b"k" * 8, b"v", "cannot write map pods")
    else:
        syscall.map_update(3, b"k" * 8, b"v", "cannot write map pods")
    assert waited == [0.001, 0.004, 0.016, 0.064][:failures]


@pytest.mark.parametrize("call", [syscall.map_lookup, lambda fd, key, size: syscall.map_delete(fd, key)])
def test_other_faults_are_errors(monkeypatch: pytest.MonkeyPatch, call) -> None:  # type: ignore[no-untyped-def]
    answer(monkeypatch, -errno.EBADF)
    with pytest.raises(BpfError, match="Bad file descriptor"):
        call(3, b"k" * 8, 8)


def test_map_name_is_cut_to_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answer(monkeypatch, 3)
    syscall.map_create(1, 8, 8, 10, 1, "ambit_a_very_long_name", inner=4, btf=(5, 6, 7))
    command, attributes = seen[0]
    assert command == 0
    assert struct.unpack_from("=7I16s4I", attributes) == (
        1,
        8,
        8,
        10,
        1,
        4,
        0,
        b"ambit_a_very_lo\0",
        0,
        5,
        6,
        7,
    )


def test_verifier_gets_its_log_into_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "_bpf", lambda command, attributes: -errno.EACCES)
    with pytest.raises(BpfError, match="kernel refuses program p: Permission denied"):
        syscall.prog_load(9, 2, bytes(8), "p")


def test_link_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "info", lambda fd: struct.pack("=III", 99, 1, 2).ljust(64, b"\0"))
    with pytest.raises(BpfError, match="kind 99"):
        syscall.link_target(3)


def test_cgroup_and_netns_links_tell_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        syscall, "info", lambda fd: struct.pack("=IIIIQ", 3, 1, 22, 0, 2**40).ljust(64, b"\0")
    )
    assert syscall.link_target(3) == (22, 2**40)
    monkeypatch.setattr(
        syscall, "info", lambda fd: struct.pack("=IIIII", 5, 1, 22, 0, 4026532000).ljust(64, b"\0")
    )
    assert syscall.link_target(3) == (22, 4026532000)


def test_descriptor_is_closed_once() -> None:
    read, write = os.pipe()
    os.close(write)
    fd = syscall.Fd(read)
    with fd:
        os.fstat(read)
    fd.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)
