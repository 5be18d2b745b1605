# SPDX-License-Identifier: Apache-2.0
"""PROXY headers, byte for byte as HAProxy's specification has them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from waypoint.transport.proxy_header import proxy_header

FOUR = (ip_address("192.0.2.1"), 56324)
OTHER = (ip_address("192.0.2.2"), 443)
SIX = (ip_address("2001:db8::1"), 1)


def test_version_1_is_a_line() -> None:
    assert proxy_header(1, FOUR, OTHER) == b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
    assert proxy_header(1, SIX, SIX) == b"PROXY TCP6 2001:db8::1 2001:db8::1 1 1\r\n"


def test_version_2_is_binary() -> None:
    header = proxy_header(2, FOUR, OTHER)
    assert header[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert header[12:16] == bytes([0x21, 0x11, 0, 12])
    assert header[16:] == bytes([192, 0, 2, 1, 192, 0, 2, 2, 0xDC, 0x04, 0x01, 0xBB])
    assert proxy_header(2, SIX, SIX)[13:16] == bytes([0x21, 0, 36])


def test_families_that_differ_are_both_written_as_ipv6() -> None:
    assert b"::ffff:" in proxy_header(1, FOUR, SIX) or b"::ffff:c000:201" in proxy_header(1, FOUR, SIX)
    assert proxy_header(2, FOUR, SIX)[16:32] == bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])


def test_there_is_no_other_version() -> None:
    with pytest.raises(ValueError, match="version 3"):
        proxy_header(3, FOUR, OTHER)
