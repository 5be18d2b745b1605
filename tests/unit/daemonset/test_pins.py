# SPDX-License-Identifier: Apache-2.0
"""Which of ztunnel's listeners a pod lacks."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from bpf.abi import Kind
from daemonset.pins import missing

V4, V6 = ip_address("10.1.0.5"), ip_address("fd00::5")


def listeners(*families: int) -> list[tuple[int, int]]:
    return [(family, int(kind)) for family in families for kind in Kind]


def test_each_address_needs_all_kinds_of_its_family() -> None:
    both = listeners(socket.AF_INET, socket.AF_INET6)
    assert missing([V4, V6], both) == frozenset()
    assert missing([V4], listeners(socket.AF_INET)) == frozenset()
    assert missing([V4, V6], listeners(socket.AF_INET)) == {
        "outbound (IPv6)",
        "inbound (IPv6)",
        "hbone (IPv6)",
    }
    assert missing([V4], [entry for entry in both if entry[1] != Kind.HBONE]) == {"hbone (IPv4)"}


def test_a_dual_listener_serves_ipv4_as_istios_does() -> None:
    assert missing([V4, V6], listeners(socket.AF_INET6)) == frozenset()


def test_without_any_listener_all_are_missing() -> None:
    assert len(missing([V4, V6], [])) == 2 * len(Kind)
