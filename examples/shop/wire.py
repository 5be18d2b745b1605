# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire between the nodes: captured by tcpdump in the fabric's namespace, then read.

Reads enough of pcap, IP, TCP and TLS to say on which ports bytes went and whether each
stream is TLS 1.3 from its first byte to its last. Decrypts nothing.
"""

from __future__ import annotations

import collections
import ipaddress
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HBONE_PORT = 15008
SLL2_BYTES = 20
SNAPLEN = 262144
STOP_S = 10.0
HANDSHAKE, CHANGE_CIPHER_SPEC, ALERT, APPLICATION_DATA = 22, 20, 21, 23
SUPPORTED_VERSIONS, TLS_13 = 43, 0x0304
Stream = tuple[str, int, str, int]


class CaptureError(Exception):
    """The capture does not run or cannot be read; says why."""


@dataclass(slots=True)
class Wire:
    """What one capture holds; bytes are TCP payload unless named otherwise."""

    raw: bytes = b""
    streams: dict[Stream, bytes] = field(default_factory=dict)
    """Payload by direction of a connection, in order."""
    other: collections.Counter[str] = field(default_factory=collections.Counter)
    """Packets with a payload that are no TCP, by protocol; neighbour discovery is not counted."""
    packets: int = 0

    def by_port(self) -> dict[int, int]:
        """Return bytes by server port: 15008 if either end is that, else the lower one."""
        found: collections.Counter[int] = collections.Counter()
        for (_, source, _, destination), data in self.streams.items():
            found[HBONE_PORT if HBONE_PORT in (source, destination) else min(source, destination)] += len(
                data
            )
        return {port: count for port, count in found.items() if count}

    def holds(self, text: str) -> bool:
        """Whether a text is on the wire, in a packet or across packets of a stream."""
        wanted = text.encode()
        return wanted in self.raw or any(wanted in data for data in self.streams.values())

    def tls_faults(self) -> list[str]:
        """Say for each stream on 15008 why it is no TLS 1.3; empty: all are, from the first byte on."""
        faults = []
        for (source, sport, destination, dport), data in self.streams.items():
            if HBONE_PORT in (sport, dport) and data:
                why = _tls_fault(data, server=sport == HBONE_PORT)
                if why:
                    faults.append(f"{source}:{sport} -> {destination}:{dport}: {why}")
        return faults


def _tls_fault(data: bytes, *, server: bool) -> str:
    """Return what in a stream is not TLS 1.3 (RFC 8446, 5.1 and 4.2.1); empty: nothing."""
    first, offset = True, 0
    while offset + 5 <= len(data):
        kind, _, length = struct.unpack_from("!BHH", data, offset)
        if first and kind != HANDSHAKE:
            return f"begins with record type {kind}, not with a hello"
        if first and server and _server_version(data[offset + 5 : offset + 5 + length]) != TLS_13:
            return "the server hello does not choose TLS 1.3"
        if not first and kind not in (APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, ALERT):
            return f"record type {kind} at byte {offset}"
        first, offset = False, offset + 5 + length
    return "is shorter than a record" if first else ""


def _server_version(hello: bytes) -> int:
    """Return what supported_versions of a ServerHello says; 0: it has none."""
    try:
        offset = 4 + 2 + 32  # Message header, legacy version, random.
        offset += 1 + hello[offset] + 2 + 1  # Session id, cipher suite, compression.
        end = offset + 2 + struct.unpack_from("!H", hello, offset)[0]
        offset += 2
        while offset + 4 <= end:
            kind, length = struct.unpack_from("!HH", hello, offset)
            if kind == SUPPORTED_VERSIONS:
                return int(struct.unpack_from("!H", hello, offset + 4)[0])
            offset += 4 + length
    except (IndexError, struct.error):
        pass
    return 0


class Capture:
    """One tcpdump on all ports of a namespace, each packet once (where it comes in)."""

    def __init__(self, netns: str, path: Path) -> None:
        self._path = path
        argv = ["ip", "netns", "exec", netns, "tcpdump", "-i", "any", "-Q", "in", "-y", "LINUX_SLL2"]
        argv += [
            "-n",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-s",
            str(SNAPLEN),
            "-Z",
            "root",
            "-w",
            str(path),
        ]
        self._log = path.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + STOP_S
        while "listening on" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise CaptureError(f"tcpdump does not capture in {netns}: {self._log.read_text().strip()}")
            time.sleep(0.02)

    def stop(self) -> Wire:
        """End it and return what it saw.

        Raises:
            CaptureError: packets were lost, so that nothing can be said of them.
        """
        time.sleep(0.3)  # What is in the kernel's buffer is still written.
        self.end()
        told = self._log.read_text()
        if "0 packets dropped by kernel" not in told:
            raise CaptureError(f"the kernel dropped packets of the capture: {told.splitlines()[-1]}")
        return read(self._path.read_bytes())

    def end(self) -> None:
        """End it without reading."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(STOP_S)


def _frames(data: bytes) -> Iterator[bytes]:
    if len(data) < 24 or data[:4] != b"\xd4\xc3\xb2\xa1":
        raise CaptureError("tcpdump wrote no capture of this machine's byte order")
    offset = 24
    while offset + 16 <= len(data):
        (length,) = struct.unpack_from("<I", data, offset + 8)
        yield data[offset + 16 : offset + 16 + length]
        offset += 16 + length


def read(data: bytes) -> Wire:
    """Read a pcap file of link type LINUX_SLL2; pure.

    Raises:
        CaptureError: it is none.
    """
    wire = Wire(raw=data)
    pieces: dict[Stream, dict[int, bytes]] = collections.defaultdict(dict)
    for frame in _frames(data):
        (ethertype,) = struct.unpack_from("!H", frame, 0)
        wire.packets += 1
        packet = frame[SLL2_BYTES:]
        if ethertype == 0x0800:
            header = (packet[0] & 15) * 4
            protocol, source, destination = packet[9], packet[12:16], packet[16:20]
            payload = packet[header : struct.unpack_from("!H", packet, 2)[0]]
        elif ethertype == 0x86DD:
            protocol, source, destination = packet[6], packet[8:24], packet[24:40]
            payload = packet[40 : 40 + struct.unpack_from("!H", packet, 4)[0]]
        else:
            continue
        if protocol == 6:
            sport, dport, sequence = struct.unpack_from("!HHI", payload, 0)
            body = payload[(payload[12] >> 4) * 4 :]
            key = (str(ipaddress.ip_address(source)), sport, str(ipaddress.ip_address(destination)), dport)
            if body and len(body) > len(pieces[key].get(sequence, b"")):
                pieces[key][sequence] = body
        elif protocol != 58:
            wire.other[f"protocol {protocol}"] += 1
    wire.streams = {key: _in_order(found) for key, found in pieces.items()}
    return wire


def _in_order(pieces: dict[int, bytes]) -> bytes:
    """Join segments by sequence number; a connection here is far shorter than the 2^32 of a wrap."""
    if not pieces:
        return b""
    first = min(pieces)
    if max(pieces) - first > 1 << 31:  # It began just before the wrap.
        pieces = {(n + (1 << 32) if n < 1 << 31 else n): body for n, body in pieces.items()}
        first = min(pieces)
    joined = bytearray()
    for sequence in sorted(pieces):
        already = first + len(joined) - sequence
        if already < len(pieces[sequence]):
            joined += pieces[sequence][max(already, 0) :]
    return bytes(joined)
