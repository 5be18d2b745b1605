# SPDX-License-Identifier: Apache-2.0
"""Where a captured connection wanted to go: read from the accepted socket, decoded purely.

The answer comes from the capture programs (`bpf/`), or from netfilter where a pod is
captured by a REDIRECT rule. A connection that neither knows about was not captured: it
is refused, never guessed at.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from mesh.model.address import decode_ip
from mesh.net.sockets import Peer, parse_sockaddr

PLAINTEXT_PORT = 15006
SO_ORIGINAL_DST = 80
SO_CAPTURE_SOURCE = 82
"""Ours: `struct {u64 netns_cookie; u32 workload_id; u32 flags}` of the caller, native order."""
_SOURCE = struct.Struct("=QII")


class NotCapturedError(Exception):
    """No capture record: someone dialled the listener itself. The message says what was missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What capture knows of an accepted connection."""

    original: Peer
    netns_cookie: int
    """Of the caller; 0: capture does not say (netfilter)."""


def decode_sockaddr(data: bytes) -> Peer:
    """Decode a `sockaddr_in` (16 bytes) or `sockaddr_in6` (28 bytes).

    Shape: family u16 native, port u16 network order at 2; IPv4 address at 4, IPv6 address at 8.

    Raises:
        ValueError: another family or too few bytes.
    """
    if len(data) < 8:
        raise ValueError(f"a socket address has 16 or 28 bytes, not {len(data)}")
    family = struct.unpack_from("=H", data)[0]
    port = struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return Peer(decode_ip(data[4:8]), port)
    if family == socket.AF_INET6 and len(data) >= 24:
        return Peer(decode_ip(data[8:24]), port)
    raise ValueError(f"socket address of family {family} in {len(data)} bytes")


def read_original_dst(sock: socket.socket, netns_cookie: int) -> Captured:
    """Read the capture record of an accepted connection of the pod with this cookie.

    Raises:
        NotCapturedError: there is none, or it is another pod's.
    """
    level = socket.IPPROTO_IPV6 if sock.family == socket.AF_INET6 else socket.IPPROTO_IP
    try:
        original = decode_sockaddr(sock.getsockopt(level, SO_ORIGINAL_DST, 28))
    except (OSError, ValueError) as error:
        raise NotCapturedError(f"no original destination: {error}") from error
    try:
        cookie = _SOURCE.unpack(sock.getsockopt(level, SO_CAPTURE_SOURCE, _SOURCE.size))[0]
    except OSError as error:
        # Unknown to the kernel: captured by netfilter, which only ever redirects a pod's own traffic.
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise NotCapturedError(f"no source record: {error}") from error
        cookie = 0
    except struct.error as error:
        raise NotCapturedError(f"malformed source record: {error}") from error
    if cookie not in (0, netns_cookie):
        raise NotCapturedError(f"the record belongs to network namespace {cookie}, this is {netns_cookie}")
    # Netfilter answers for any connection that it tracks; the capture programs only for captured ones.
    if cookie == 0 and original == parse_sockaddr(sock.getsockname()):
        raise NotCapturedError("the original destination is the listener itself")
    return Captured(original=original, netns_cookie=cookie)


def inbound_dst(sock: socket.socket) -> Peer:
    """Return where a plaintext connection into a pod wanted to go: its own local address.

    Captured by a netfilter REDIRECT the local address is the listener's; then netfilter knows.
    """
    local = parse_sockaddr(sock.getsockname())
    level = socket.IPPROTO_IPV6 if sock.family == socket.AF_INET6 else socket.IPPROTO_IP
    if local.port != PLAINTEXT_PORT:
        return local
    try:
        return decode_sockaddr(sock.getsockopt(level, SO_ORIGINAL_DST, 28))
    except (OSError, ValueError):
        return local
