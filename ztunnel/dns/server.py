# SPDX-License-Identifier: Apache-2.0
"""The resolver inside each pod: UDP on loopback, TCP as captured connections to a nameserver.

Port 15053+i stands for the pod's i-th nameserver; questions that are not the mesh's go to
that one. A pod whose workload is not known gets SERVFAIL, never an answer meant for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSError, DNSHeader, DNSRecord

from mesh.model.address import IPAddress
from mesh.model.workload import Workload
from mesh.net.sockets import DialError, Peer, reset
from mesh.runtime.tasks import create_task
from mesh.telemetry.metrics import (
    DNS_DROPPED,
    DNS_REQUESTS,
    DNS_UPSTREAM_FAILURES,
    DNS_UPSTREAM_REQUESTS,
    DNS_UPSTREAM_SECONDS,
    UNKNOWN,
)
from ztunnel.access import Flow
from ztunnel.dns.forward import ForwardError, forward
from ztunnel.dns.names import Found, resolve_name
from ztunnel.inpod import families
from ztunnel.plane import Plane, Pod
from ztunnel.sockets import udp_listener

_log = logging.getLogger("dns")

FIRST_PORT = 15053
MAX_RESOLVERS = 3
"""Nameservers of one pod; as many as resolv.conf may have."""
TTL_S = 30
MAX_QUESTIONS = 512
"""Questions of one pod in flight; more are dropped, the client asks again."""
STREAM_IDLE_S = 10.0
_PLAIN_UDP_BYTES = 512

Resolvers = Callable[[int], tuple[IPAddress, ...]]
"""netns cookie -> nameservers of that pod, in the order of its resolv.conf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Who asks, by what protocol, and which nameserver the question was meant for."""

    pod: Pod
    protocol: str
    resolver: Peer | None


class DnsServer:
    """Answers questions of all pods of a worker; loop thread only."""

    def __init__(self, plane: Plane, resolvers: Resolvers) -> None:
        self._plane = plane
        self._resolvers = resolvers

    def pod(self, pod: Pod) -> PodDns:
        """Prepare the resolver of one pod."""
        return PodDns(self, pod, self._plane.config.ipv6)

    def dropped(self) -> None:
        """Count a question that was not looked at."""
        self._plane.recorder.add(DNS_DROPPED)

    def resolver(self, pod: Pod, index: int) -> Peer | None:
        """Return the nameserver behind a port; None: the pod has no such one."""
        known = self._resolvers(pod.namespace.cookie)
        return Peer(known[index], 53) if index < len(known) else None

    def take_stream(self, pod: Pod, sock: socket.socket, flow: Flow) -> bool:
        """Take a captured connection to one of the pod's own nameservers; others pass as any TCP."""
        if flow.destination.address not in self._resolvers(pod.namespace.cookie) or pod.tasks.closed:
            return False
        asked = _Asked(pod=pod, protocol="tcp", resolver=flow.destination)
        create_task(self._serve_stream(sock, asked), name="dns", owner=pod.tasks)
        return True

    async def _serve_stream(self, sock: socket.socket, asked: _Asked) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=sock)
        except OSError:
            reset(sock)
            return
        try:
            while True:
                async with asyncio.timeout(STREAM_IDLE_S):
                    size = struct.unpack("!H", await reader.readexactly(2))[0]
                    query = await reader.readexactly(size)
                answer = await self.answer(query, asked)
                if answer is None:
                    return
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass  # The client is done.
        finally:
            writer.close()

    async def answer(self, query: bytes, asked: _Asked) -> bytes | None:
        """Answer one question; None: it is no DNS, say nothing."""
        try:
            record = DNSRecord.parse(query)
        except (DNSError, UnicodeError, ValueError):
            return _format_error(query)
        if record.header.qr or len(record.questions) != 1:
            return _format_error(query)
        try:
            client = await asked.pod.known_workload()
        except DialError as error:
            _log.warning("%s", error.detail)
            return _failure(record)
        kind = QTYPE.get(record.q.qtype)
        labels = (
            str(kind),
            asked.protocol,
            client.canonical_name or UNKNOWN,
            client.canonical_revision or UNKNOWN,
        )
        self._plane.recorder.add(DNS_REQUESTS, labels)
        name = str(record.q.qname).rstrip(".").lower()
        if kind in ("A", "AAAA"):
            found = resolve_name(self._plane.store, client, name, self._plane.config.cluster_domain)
            if found is not None:
                _log.debug("%s %s for %s: %s", kind, name, asked.pod.info, found.addresses)
                return _own_answer(record, found, kind, asked.protocol)
        return await self._forward(query, record, asked, labels, client)

    async def _forward(
        self, query: bytes, record: DNSRecord, asked: _Asked, labels: tuple[str, ...], client: Workload
    ) -> bytes:
        recorder, clock = self._plane.recorder, self._plane.clock
        if asked.resolver is None:
            _log.warning(
                "%s of %s is not the mesh's and the pod's nameservers are not known",
                record.q.qname,
                client.uid,
            )
            recorder.add(DNS_UPSTREAM_FAILURES, labels)
            return _failure(record)
        recorder.add(DNS_UPSTREAM_REQUESTS, labels)
        started = clock.monotonic()
        try:
            answer = await forward(asked.pod.namespace, asked.resolver, query, tcp=asked.protocol == "tcp")
        except ForwardError as error:
            recorder.add(DNS_UPSTREAM_FAILURES, labels)
            _log.warning("%s for %s: %s", record.q.qname, asked.pod.info, error)
            return _failure(record)
        recorder.observe(DNS_UPSTREAM_SECONDS, labels, clock.monotonic() - started)
        if asked.protocol == "udp" and len(answer) > _udp_size(record):
            return _truncated(record)
        return answer


class PodDns:
    """The UDP sockets of one pod; opened all or none."""

    def __init__(self, server: DnsServer, pod: Pod, ipv6: bool) -> None:
        self.questions = 0
        self._server = server
        self._pod = pod
        self._ipv6 = ipv6
        self._transports: list[asyncio.DatagramTransport] = []

    async def open(self) -> None:
        """Open one socket per nameserver and family.

        Raises:
            OSError: a port is taken inside the pod.
        """
        loop = asyncio.get_running_loop()
        namespace = self._pod.namespace
        try:
            for family in families(namespace, ipv6=self._ipv6):
                for index in range(MAX_RESOLVERS):
                    sock = udp_listener(namespace, family, FIRST_PORT + index)
                    protocol = _Udp(self._server, self, self._pod, index)
                    transport, _ = await loop.create_datagram_endpoint(lambda p=protocol: p, sock=sock)  # type: ignore[misc]
                    self._transports.append(transport)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop answering."""
        for transport in self._transports:
            transport.close()
        self._transports.clear()


class _Udp(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, server: DnsServer, dns: PodDns, pod: Pod, index: int) -> None:
        self._server = server
        self._dns = dns
        self._pod = pod
        self._index = index
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Sequence[object]) -> None:
        if self._pod.tasks.closed:
            return
        if self._dns.questions >= MAX_QUESTIONS:
            self._server.dropped()
            return
        self._dns.questions += 1
        create_task(self._serve(data, addr), name="dns", owner=self._pod.tasks)

    def error_received(self, exc: Exception) -> None:
        """Ignore: a client that left before its answer is no concern of ours."""

    async def _serve(self, data: bytes, addr: Sequence[object]) -> None:
        try:
            asked = _Asked(
                pod=self._pod, protocol="udp", resolver=self._server.resolver(self._pod, self._index)
            )
            answer = await self._server.answer(data, asked)
            if answer is not None and self._transport is not None and not self._transport.is_closing():
                self._transport.sendto(answer, tuple(addr))
        finally:
            self._dns.questions -= 1


def _own_answer(record: DNSRecord, found: Found, kind: str, protocol: str) -> bytes:
    """Build an authoritative answer; addresses in random order, so that clients spread."""
    reply = record.reply(ra=1, aa=1)
    owner = record.q.qname
    name = str(owner).rstrip(".").lower()
    if found.canonical != name and found.addresses:
        reply.add_answer(RR(owner, QTYPE.CNAME, rdata=CNAME(found.canonical), ttl=TTL_S))
        owner = found.canonical
    version = 4 if kind == "A" else 6
    addresses = [address for address in found.addresses if address.version == version]
    random.shuffle(addresses)
    for address in addresses:
        data = A(str(address)) if version == 4 else AAAA(str(address))
        reply.add_answer(RR(owner, record.q.qtype, rdata=data, ttl=TTL_S))
    packed = bytes(reply.pack())
    if protocol == "udp" and len(packed) > _udp_size(record):
        return _truncated(record)
    return packed


def _udp_size(record: DNSRecord) -> int:
    """How long a UDP answer may be: the client's EDNS size, or 512 without (RFC 6891)."""
    for extra in record.ar:
        if extra.rtype == QTYPE.OPT:
            return max(int(extra.rclass), _PLAIN_UDP_BYTES)
    return _PLAIN_UDP_BYTES


def _truncated(record: DNSRecord) -> bytes:
    reply = record.reply(ra=1, aa=0)
    reply.header.tc = 1
    return bytes(reply.pack())


def _failure(record: DNSRecord) -> bytes:
    reply = record.reply(ra=1, aa=0)
    reply.header.rcode = RCODE.SERVFAIL
    return bytes(reply.pack())


def _format_error(query: bytes) -> bytes | None:
    """Answer FORMERR to what has a query's header at least; nothing to answers and noise."""
    if len(query) < 12 or query[2] & 0x80:
        return None
    header = DNSHeader(id=int.from_bytes(query[:2], "big"), qr=1, rcode=RCODE.FORMERR)
    with contextlib.suppress(DNSError):
        return bytes(DNSRecord(header).pack())
    return None
