# SPDX-License-Identifier: Apache-2.0
"""The cluster's resolver, one per node: answers as a pure function, and a UDP and TCP server.

Names outside the cluster's domain are refused: a lab has no way out.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Mapping
from typing import cast

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, SRV, A, DNSError, DNSRecord

from lab.services import Name

TTL_S = 5
MAX_UDP_BYTES = 512
"""Longer answers are truncated and asked again over TCP, unless the question offers more (EDNS)."""
MAX_TCP_CONNECTIONS = 256
IDLE_S = 10.0


def answer(query: bytes, names: Mapping[str, Name], domain: str) -> bytes | None:
    """Return the answer to a query; None: it is no query, and no answer is given.

    Source: Kubernetes DNS-based service discovery 1.1.0; RFC 1035, RFC 2308 (an existing
    name without addresses of that family is NOERROR with no records).
    """
    try:
        request = DNSRecord.parse(query)
    except (DNSError, ValueError, IndexError, struct.error):
        return None
    if request.header.qr or len(request.questions) != 1:
        return None
    reply = request.reply(ra=1, aa=1)
    name = str(request.q.qname).rstrip(".").lower()
    kind = str(QTYPE.get(request.q.qtype, ""))
    found = names.get(name)
    if found is None:
        inside = name == domain or name.endswith(f".{domain}")
        exists = any(known.endswith(f".{name}") for known in names) or name == domain
        if not (inside and exists):
            reply.header.rcode = RCODE.NXDOMAIN if inside or "." not in name else RCODE.REFUSED
    else:
        for record in _records(name, found, kind):
            reply.add_answer(record)
    return bytes(reply.pack())


def _records(name: str, found: Name, kind: str) -> list[RR]:
    records: list[RR] = []
    if found.alias:
        records.append(RR(name, QTYPE.CNAME, rdata=CNAME(found.alias), ttl=TTL_S))
    for address in found.addresses:
        if kind in ("A", "ANY") and ":" not in address:
            records.append(RR(name, QTYPE.A, rdata=A(address), ttl=TTL_S))
        elif kind in ("AAAA", "ANY") and ":" in address:
            records.append(RR(name, QTYPE.AAAA, rdata=AAAA(address), ttl=TTL_S))
    if kind in ("SRV", "ANY"):
        records += [
            RR(name, QTYPE.SRV, rdata=SRV(0, 100, port, target), ttl=TTL_S) for port, target in found.srv
        ]
    random.shuffle(records)  # Headless clients take the first.
    return records


def for_udp(query: bytes, reply: bytes) -> bytes:
    """Return an answer as it fits into a datagram."""
    limit = MAX_UDP_BYTES
    record = DNSRecord.parse(query)
    for extra in record.ar:
        if extra.rtype == QTYPE.OPT:
            limit = max(limit, min(int(extra.rclass), 4096))
    return reply if len(reply) <= limit else bytes(DNSRecord.parse(reply).truncate().pack())


class DnsServer:
    """Serves on UDP and TCP; `names` gives the current names."""

    def __init__(self, names: Callable[[], Mapping[str, Name]], domain: str) -> None:
        self._names = names
        self._domain = domain
        self._transports: list[asyncio.DatagramTransport] = []
        self._servers: list[asyncio.Server] = []
        self._connections = 0

    async def start(self, address: str, port: int = 53) -> None:
        """Listen on one more address.

        Raises:
            OSError: the address is in use.
        """
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self.reply), local_addr=(address, port)
        )
        self._transports.append(transport)
        self._servers.append(await asyncio.start_server(self._serve, address, port))

    def reply(self, query: bytes) -> bytes | None:
        """Answer one query."""
        return answer(query, self._names(), self._domain)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while self._connections <= MAX_TCP_CONNECTIONS:
                async with asyncio.timeout(IDLE_S):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    query = await reader.readexactly(length)
                if (reply := self.reply(query)) is None:
                    break
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # The client's business.
        finally:
            self._connections -= 1
            writer.close()

    def close(self) -> None:
        """Stop listening."""
        for transport in self._transports:
            transport.close()
        for server in self._servers:
            server.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if (reply := self._reply(data)) is not None and self._transport is not None:
            self._transport.sendto(for_udp(data, reply), addr)
