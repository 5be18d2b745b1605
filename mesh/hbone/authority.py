# SPDX-License-Identifier: Apache-2.0
"""The authority of a CONNECT: what a tunnel is asked for. Pure."""

from __future__ import annotations

from mesh.model.address import IPAddress, parse_ip


def parse_authority(authority: str) -> tuple[IPAddress | str, int] | None:
    """Parse `ip:port`, `[ipv6]:port` or `host:port`; None if it is none of these.

    Source: RFC 9110 section 9.3.6 (CONNECT), RFC 3986 section 3.2.
    """
    host, colon, digits = authority.rpartition(":")
    # isdigit alone would take other scripts' digits, which int() accepts too.
    if not colon or not host or not (digits.isascii() and digits.isdigit()) or len(digits) > 5:
        return None
    port = int(digits)
    if not 0 < port < 65536:
        return None
    if host.startswith("["):
        if not host.endswith("]") or ":" not in host:
            return None
        host = host[1:-1]
        try:
            return parse_ip(host), port
        except ValueError:
            return None
    if ":" in host:
        return None
    try:
        return parse_ip(host), port
    except ValueError:
        pass
    name = host.lower().removesuffix(".")
    if not name or len(name) > 253 or not all(c.isalnum() or c in "-_." for c in name) or not name.isascii():
        return None
    return name, port
