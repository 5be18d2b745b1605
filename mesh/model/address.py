# SPDX-License-Identifier: Apache-2.0
"""IP addresses in one canonical form.

An IPv4 address may arrive as four bytes, as sixteen bytes of the v4-mapped
range, or as text; inside the mesh it is always an `IPv4Address`, so that two
spellings of one address compare equal. BPF keys hold the sixteen-byte form.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


def canonical(address: IPAddress) -> IPAddress:
    """Return the IPv4 address inside a v4-mapped IPv6 one, else the address itself."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_ip(text: str) -> IPAddress:
    """Parse `10.0.0.1`, `fd00::1` or `::ffff:10.0.0.1` into canonical form.

    Raises:
        ValueError: the text is no IP address; names the text.
    """
    return canonical(ip_address(text))


def parse_network(text: str) -> IPNetwork:
    """Parse `10.0.0.0/8`, or a bare address as a network of that one address.

    Host bits may be set, as Kubernetes and Istio allow (`10.1.2.3/8` is `10.0.0.0/8`).

    Raises:
        ValueError: the text is no network; names the text.
    """
    return ip_network(text, strict=False)


def decode_ip(data: bytes) -> IPAddress:
    """Decode a network-order address of 4 or 16 bytes into canonical form.

    Raises:
        ValueError: any other length.
    """
    if len(data) == 4:
        return IPv4Address(data)
    if len(data) == 16:
        return canonical(IPv6Address(data))
    raise ValueError(f"an IP address has 4 or 16 bytes, not {len(data)}")


def format_host_port(address: IPAddress | str, port: int) -> str:
    """Format `10.0.0.1:80`, `[fd00::1]:80` or `host:80`, as in a CONNECT authority."""
    if isinstance(address, IPv6Address):
        return f"[{address}]:{port}"
    return f"{address}:{port}"
