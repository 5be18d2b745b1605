# SPDX-License-Identifier: Apache-2.0
"""Connections that a pod had before it was captured: listed, and ended when the user says so.

Capture decides at connect and at SYN, so what is open stays open, in plain. These are the
sockets of a pod's namespace that neither capture, nor ztunnel, nor loopback accounts for.
Decoding and choosing are pure; the two netlink calls run in the namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from daemonset.mark_route import MARK, MASK
from mesh.model.address import IPAddress, canonical, format_host_port

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_MARK, INET_DIAG_CGROUP_ID = 15, 21
STATES = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11, 12))
"""ESTABLISHED, SYN_*, FIN_WAIT*, CLOSE_WAIT, LAST_ACK, CLOSING: all that carry or may yet carry data."""

_HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port id."""
_ID = struct.Struct("!HH16s16s")
"""inet_diag_sockid, first part: ports and addresses, network order; then interface u32, cookie 2 x u32."""
_REQUEST = struct.Struct("=BBBBI")
"""inet_diag_req_v2: family, protocol, ext, pad, states; then the id."""
_MESSAGE = struct.Struct("=BBBB")
"""inet_diag_msg: family, state, timer, retransmits; then the id, then expires, rqueue, wqueue, uid, inode."""
_ID_BYTES = 48
_ATTRIBUTES_AT = _MESSAGE.size + _ID_BYTES + 20
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSocket:
    """One TCP socket of a namespace."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    mark: int
    cgroup_id: int
    family: int
    raw_id: bytes
    """inet_diag_sockid as the kernel gave it, cookie included: names this socket and no later one."""

    @property
    def cookie(self) -> bytes:
        """Its SO_COOKIE, as bytes."""
        return self.raw_id[-8:]

    def __str__(self) -> str:
        local = format_host_port(self.local, self.local_port)
        return f"{local} <-> {format_host_port(self.remote, self.remote_port)}"


def decode(data: bytes) -> Iterator[TcpSocket]:
    """Decode the answers to a dump, in as many netlink messages as there are.

    Raises:
        OSError: the kernel answered an error.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        body = data[offset + _HEADER.size : offset + length]
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            if code:
                raise OSError(code, f"sock_diag: {os.strerror(code)}")
        elif kind == SOCK_DIAG_BY_FAMILY:
            yield _socket(body)
        offset += (max(length, _HEADER.size) + 3) & ~3


def is_end(data: bytes) -> bool:
    """Whether the last message of a datagram ends the dump."""
    offset, kind = 0, 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        offset += (max(length, _HEADER.size) + 3) & ~3
    return kind in (NLMSG_DONE, NLMSG_ERROR)


def _socket(body: bytes) -> TcpSocket:
    family = _MESSAGE.unpack_from(body)[0]
    raw_id = body[_MESSAGE.size : _MESSAGE.size + _ID_BYTES]
    local_port, remote_port, local, remote = _ID.unpack_from(raw_id)
    width = 4 if family == socket.AF_INET else 16
    attributes = _attributes(body[_ATTRIBUTES_AT:])
    return TcpSocket(
        local=canonical(ip_address(local[:width])),
        local_port=local_port,
        remote=canonical(ip_address(remote[:width])),
        remote_port=remote_port,
        mark=struct.unpack("=I", attributes.get(INET_DIAG_MARK, bytes(4)))[0],
        cgroup_id=struct.unpack("=Q", attributes.get(INET_DIAG_CGROUP_ID, bytes(8)))[0],
        family=family,
        raw_id=raw_id,
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def older(
    sockets: Iterator[TcpSocket], addresses: Collection[IPAddress], ztunnels: Collection[int]
) -> tuple[TcpSocket, ...]:
    """Choose the connections that were made before capture, out of a namespace's sockets just after it.

    Not among them: what stays in the pod (loopback, own addresses, captured connects, which lead to
    one of its own), ztunnel's sockets, and what ztunnel dialled (the application's end has the mark).
    """
    own = set(addresses)
    return tuple(
        item
        for item in sockets
        if item.remote_port
        and not item.remote.is_loopback
        and item.remote not in own
        and item.cgroup_id not in ztunnels
        and item.mark & MASK != MARK
    )


def list_sockets() -> list[TcpSocket]:
    """Return the TCP sockets with a peer in the calling thread's network namespace.

    Raises:
        OSError: the kernel refused.
    """
    found: list[TcpSocket] = []
    with _netlink() as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, STATES) + bytes(_ID_BYTES)
            link.send(_packet(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, request))
            while True:
                data = link.recv(65536)
                found.extend(decode(data))
                if is_end(data):
                    break
    return found


def destroy(item: TcpSocket) -> bool:
    """End one connection of the calling thread's namespace (RST to the peer, ECONNABORTED to its owner).

    Returns:
        whether it was still there.

    Raises:
        OSError: the kernel refused (CONFIG_INET_DIAG_DESTROY is missing).
    """
    request = _REQUEST.pack(item.family, socket.IPPROTO_TCP, 0, 0, STATES) + item.raw_id
    with _netlink() as link:
        link.send(_packet(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, request))
        try:
            list(decode(link.recv(65536)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno == errno.EOPNOTSUPP:
                text = "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY); end them at their owner"
                raise OSError(error.errno, text) from error
            raise
    return True


def _netlink() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    link.settimeout(5.0)
    return link


def _packet(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body
