# SPDX-License-Identifier: Apache-2.0
"""PROXY headers: whom a connection is for. Source: HAProxy's specification, versions 1 and 2."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from mesh.model.address import IPAddress
from waypoint.cluster.host import Socket

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXIED = 0x21
_TCP4, _TCP6 = 0x11, 0x21


def proxy_header(version: int, source: Socket, target: Socket) -> bytes:
    """Format the header of a TCP connection from `source` to `target`.

    Raises:
        ValueError: there is no such version (local fault).
    """
    four = source[0].version == target[0].version == 4
    one, other = (source[0], target[0]) if four else (_six(source[0]), _six(target[0]))
    if version == 1:
        return f"PROXY {'TCP4' if four else 'TCP6'} {one} {other} {source[1]} {target[1]}\r\n".encode()
    if version == 2:
        body = one.packed + other.packed + struct.pack("!HH", source[1], target[1])
        return _SIGNATURE + struct.pack("!BBH", _PROXIED, _TCP4 if four else _TCP6, len(body)) + body
    raise ValueError(f"PROXY version {version}")


def _six(address: IPAddress) -> IPv6Address:
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")
