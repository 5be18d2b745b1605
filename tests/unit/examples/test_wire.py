# SPDX-License-Identifier: Apache-2.0
"""The demo's reading of a capture: what counts as TLS 1.3, which port bytes went to, what is in the clear."""

from __future__ import annotations

import ipaddress
import ssl
import struct
import sys
from pathlib import Path

import pytest

from tests.support.pki import Authority, spiffe

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "shop"))

import wire

CLIENT, SERVER = "10.244.0.5", "10.244.1.6"
HBONE = wire.HBONE_PORT
SECRET = "marker-0123456789abcdef"


def tcp(sport: int, dport: int, sequence: int, body: bytes, *, version: int = 4) -> bytes:
    """Return one frame of link type LINUX_SLL2."""
    segment = struct.pack("!HHIIBBHHH", sport, dport, sequence % (1 << 32), 0, 5 << 4, 0x18, 64, 0, 0) + body
    if version == 4:
        source, destination = (ipaddress.IPv4Address(a).packed for a in (CLIENT, SERVER))
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + source + destination
        return struct.pack("!H", 0x0800) + bytes(18) + header + segment + b"pad"
    addresses = ipaddress.IPv6Address("fd00::1").packed + ipaddress.IPv6Address("fd00::2").packed
    header = struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + addresses
    return struct.pack("!H", 0x86DD) + bytes(18) + header + segment


def pcap(*frames: bytes) -> bytes:
    """Return a capture file."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, wire.SNAPLEN, 276)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in frames)


def conversation(directory: Path, version: ssl.TLSVersion) -> tuple[bytes, bytes]:
    """Return what OpenSSL sends both ways in a mutual handshake and one message."""
    authority = Authority()
    ends = []
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    for server in (False, True):
        context = authority.leaf(spiffe()).context(directory, server=server)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        incoming, outgoing = pipes if server else pipes[::-1]
        ends.append(context.wrap_bio(incoming, outgoing, server_side=server))
    sent = [b"", b""]
    done = [False, False]
    while not all(done):
        for side, end in enumerate(ends):
            try:
                if not done[side]:
                    end.do_handshake()
                    done[side] = True
                    end.write(SECRET.encode())
            except ssl.SSLWantReadError:
                pass
            data = pipes[side].read()
            sent[side] += data
            pipes[side].write(data)
    return sent[0], sent[1]


def both_ways(client: bytes, server: bytes) -> wire.Wire:
    return wire.read(pcap(tcp(40000, HBONE, 1, client), tcp(HBONE, 40000, 1, server)))


def test_tls_1_3_of_openssl_has_no_fault_and_hides_the_marker(tmp_path: Path) -> None:
    seen = both_ways(*conversation(tmp_path, ssl.TLSVersion.TLSv1_3))
    assert seen.tls_faults() == []
    assert not seen.holds(SECRET)
    assert set(seen.by_port()) == {HBONE}


def test_tls_1_2_of_openssl_is_a_fault(tmp_path: Path) -> None:
    (fault,) = both_ways(*conversation(tmp_path, ssl.TLSVersion.TLSv1_2)).tls_faults()
    assert "does not choose TLS 1.3" in fault


def test_plaintext_on_the_tunnels_port_is_a_fault() -> None:
    seen = both_ways(f"GET / {SECRET}".encode(), b"HTTP/1.1 200 OK\r\n")
    assert len(seen.tls_faults()) == 2
    assert seen.holds(SECRET)


def test_plaintext_after_a_handshake_is_a_fault(tmp_path: Path) -> None:
    client, server = conversation(tmp_path, ssl.TLSVersion.TLSv1_3)
    (fault,) = both_ways(client + b"GET / HTTP/1.1\r\n", server).tls_faults()
    assert f"at byte {len(client)}" in fault


@pytest.mark.parametrize("version", [4, 6])
def test_bytes_count_by_port_without_padding(version: int) -> None:
    seen = wire.read(pcap(tcp(40000, 8080, 1, b"12345", version=version), tcp(50000, 50001, 1, b"")))
    assert seen.by_port() == {8080: 5}
    assert seen.packets == 2


def test_a_marker_across_segments_is_found_in_any_order() -> None:
    first, second = SECRET[:9].encode(), SECRET[9:].encode()
    near_wrap = (1 << 32) - 4
    frames = [tcp(40000, 8080, near_wrap + 9, second), tcp(40000, 8080, near_wrap, first)]
    seen = wire.read(pcap(*frames, frames[0]))
    assert seen.holds(SECRET)
    assert seen.by_port() == {8080: len(SECRET)}


def test_other_protocols_are_told() -> None:
    frame = bytearray(tcp(1, 2, 3, b"x"))
    frame[wire.SLL2_BYTES + 9] = 17
    assert wire.read(pcap(bytes(frame))).other == {"protocol 17": 1}


def test_another_file_is_refused() -> None:
    with pytest.raises(wire.CaptureError, match="no capture"):
        wire.read(b"GET / HTTP/1.1")
