# SPDX-License-Identifier: Apache-2.0
"""Sockets out of sock_diag's answers, and which of them are older than capture."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from daemonset import connections
from daemonset.connections import TcpSocket

COOKIE = struct.pack("=II", 7, 0)


def sockid(local: str, local_port: int, remote: str, remote_port: int, family: int) -> bytes:
    pack = [socket.inet_pton(family, text).ljust(16, b"\0") for text in (local, remote)]
    return struct.pack("!HH", local_port, remote_port) + pack[0] + pack[1] + struct.pack("=I", 0) + COOKIE


def message(raw_id: bytes, family: int, *, mark: int = 0, cgroup: int = 0, kind: int = 20) -> bytes:
    """Encode one answer as linux/inet_diag.h lays it out."""
    body = struct.pack("=BBBB", family, 1, 0, 0) + raw_id + struct.pack("=IIIII", 0, 0, 0, 0, 99)
    body += struct.pack("=HHB3x", 5, 8, 0)  # INET_DIAG_SHUTDOWN, one byte and its padding
    body += struct.pack("=HHI", 8, 15, mark) + struct.pack("=HHQ", 12, 21, cgroup)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


V4 = sockid("10.1.0.5", 8080, "10.9.0.1", 40000, socket.AF_INET)
V6 = sockid("fd00::5", 8080, "fd00::9", 40001, socket.AF_INET6)
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def test_both_families_are_decoded_with_mark_and_cgroup() -> None:
    data = message(V4, socket.AF_INET, mark=0x111, cgroup=42) + message(V6, socket.AF_INET6) + DONE
    first, second = connections.decode(data)
    assert str(first) == "10.1.0.5:8080 <-> 10.9.0.1:40000"
    assert (first.mark, first.cgroup_id, first.cookie, first.raw_id) == (0x111, 42, COOKIE, V4)
    assert str(second) == "[fd00::5]:8080 <-> [fd00::9]:40001"
    assert connections.is_end(data)
    assert not connections.is_end(message(V4, socket.AF_INET))


def test_a_v4_mapped_socket_is_an_ipv4_connection() -> None:
    mapped = sockid("::ffff:10.1.0.5", 80, "::ffff:10.9.0.1", 1, socket.AF_INET6)
    (found,) = connections.decode(message(mapped, socket.AF_INET6))
    assert found.local == ip_address("10.1.0.5")


def test_an_error_of_the_kernel_is_raised_and_an_acknowledgement_is_none() -> None:
    def answer(code: int) -> bytes:
        return struct.pack("=IHHIIi16x", 36, 2, 0, 1, 0, code)

    assert list(connections.decode(answer(0))) == []
    with pytest.raises(OSError, match="sock_diag") as failure:
        list(connections.decode(answer(-1)))
    assert failure.value.errno == 1


def test_a_truncated_attribute_ends_the_list() -> None:
    broken = message(V4, socket.AF_INET)[:-12] + struct.pack("=HHQ", 2, 21, 5)
    (found,) = connections.decode(broken)
    assert found.cgroup_id == 0


PLAIN = TcpSocket(
    local=ip_address("10.1.0.5"),
    local_port=8080,
    remote=ip_address("10.9.0.1"),
    remote_port=40000,
    mark=0,
    cgroup_id=3,
    family=socket.AF_INET,
    raw_id=V4,
)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, remote_port=0),
        replace(PLAIN, remote=ip_address("127.0.0.1")),
        replace(PLAIN, remote=ip_address("::1")),
        replace(PLAIN, remote=ip_address("10.1.0.5"), remote_port=15104),
        replace(PLAIN, cgroup_id=42),
        replace(PLAIN, mark=0x111),
        replace(PLAIN, mark=0x7000111),
    ],
)
def test_what_capture_or_ztunnel_accounts_for_is_not_older(other: TcpSocket) -> None:
    assert connections.older(iter([PLAIN, other]), [ip_address("10.1.0.5")], {42}) == (PLAIN,)


def test_a_kernel_without_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(connections, "_netlink", lambda: ours)
    kernel.send(struct.pack("=IHHIIi", 20, connections.NLMSG_ERROR, 0, 1, 0, -errno.EOPNOTSUPP))
    with kernel, pytest.raises(OSError, match=r"cannot end sockets \(CONFIG_INET_DIAG_DESTROY\)"):
        connections.destroy(PLAIN)
