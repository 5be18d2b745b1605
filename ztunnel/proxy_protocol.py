# SPDX-License-Identifier: Apache-2.0
"""The PROXY v2 header that tells a waypoint behind `application_tunnel` who calls. Pure, write only.

Source: haproxy's proxy-protocol.txt section 2.2; TLVs as `istio.workload.ApplicationTunnel` documents them.
"""

from __future__ import annotations

import struct

from mesh.net.sockets import Peer

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_PROXY = 0x21
_TCP4, _TCP6 = 0x11, 0x21
TLV_SOURCE_IDENTITY = 0xD0
"""SPIFFE id of the client, as text."""


TLV_SERVICE_HOST = 0xD1
"""Hostname that the client asked for, when it asked by name."""


def format_proxy_v2(source: Peer, destination: Peer, identity: str, host: str = "") -> bytes:
    """Encode the header for a TCP connection; `host` is the service's name, if it was asked for by that.

    Shape: signature 12, version and command 1, family 1, length 2 big-endian, addresses, ports, TLVs.
    """
    same = source.address.version == destination.address.version
    if same:
        addresses = source.address.packed + destination.address.packed
        family = _TCP4 if source.address.version == 4 else _TCP6
        body = addresses + struct.pack("!HH", source.port, destination.port)
    else:
        family, body = 0, b""
    for kind, text in ((TLV_SOURCE_IDENTITY, identity), (TLV_SERVICE_HOST, host)):
        if text:
            body += struct.pack("!BH", kind, len(text.encode())) + text.encode()
    return _SIGNATURE + struct.pack("!BBH", _VERSION_PROXY, family, len(body)) + body
