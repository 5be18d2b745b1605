# SPDX-License-Identifier: Apache-2.0
"""Row 30: the pods' resolver, asked with dig-like questions over UDP and TCP."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from ipaddress import ip_address

import pytest
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from ztunnel_mesh import Mesh, mesh, needs_root, scenario

from mesh.model.service import Visibility
from mesh.model.workload import NetworkAddress
from mesh.telemetry.metrics import DNS_DROPPED, DNS_REQUESTS, DNS_UPSTREAM_FAILURES, DNS_UPSTREAM_REQUESTS
from tests.support.eventually import eventually_async

pytestmark = needs_root


class Resolver:
    """A scripted nameserver in a pod of its own, UDP and TCP."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.truncate = False
        self.lie = ""
        """`id`, `question` or `silent`: how its first answer is wrong."""

    async def start(self, m: Mesh, name: str) -> None:
        m.net(name)
        loop = asyncio.get_running_loop()
        self.sock = m.space(name).socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((str(m.nets[name].ipv4), 53))
        loop.add_reader(self.sock.fileno(), self._datagram)

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            size = struct.unpack("!H", await reader.readexactly(2))[0]
            answer = self._answer(await reader.readexactly(size), "tcp")
            writer.write(struct.pack("!H", len(answer)) + answer)
            await writer.drain()
            writer.close()

        await m.listen(name, 53, stream)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()

    def _datagram(self) -> None:
        data, peer = self.sock.recvfrom(4096)
        if self.lie == "silent":
            return
        if self.lie:
            wrong = self._answer(data, "lie")
            if self.lie == "id":
                wrong = bytes((wrong[0] ^ 1,)) + wrong[1:]
            else:
                wrong = wrong.replace(b"\x07outside", b"\x07inside_")
            self.sock.sendto(wrong, peer)
        self.sock.sendto(self._answer(data, "udp"), peer)

    def _answer(self, data: bytes, protocol: str) -> bytes:
        record = DNSRecord.parse(data)
        self.asked.append((protocol, str(record.q.qname)))
        reply = record.reply()
        if protocol == "udp" and self.truncate:
            reply.header.tc = 1
        else:
            address = "192.0.2.66" if protocol == "lie" else "192.0.2.1"
            reply.add_answer(RR(record.q.qname, QTYPE.A, rdata=A(address), ttl=5))
        return bytes(reply.pack())


async def query(
    m: Mesh, name: str, host: str, kind: str = "A", *, port: int = 15053, timeout_s: float = 6
) -> DNSRecord:
    """Ask the resolver in a pod over UDP."""
    loop = asyncio.get_running_loop()
    question = DNSRecord.question(host, kind)
    question.header.id = random.randrange(65536)
    with m.space(name).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        await loop.sock_sendall(sock, bytes(question.pack()))
        async with asyncio.timeout(timeout_s):
            answer = DNSRecord.parse(await loop.sock_recv(sock, 4096))
    assert answer.header.id == question.header.id
    return answer


def addresses(answer: DNSRecord) -> list[str]:
    """Return the addresses of an answer, sorted."""
    return sorted(str(entry.rdata) for entry in answer.rr if entry.rtype in (QTYPE.A, QTYPE.AAAA))


@scenario
async def test_mesh_names_are_answered_with_virtual_addresses() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        m.service(
            "web",
            "",
            80,
            8080,
            [],
            addresses=(
                NetworkAddress(network="", address=ip_address("10.96.0.10")),
                NetworkAddress(network="", address=ip_address("fd96::10")),
                NetworkAddress(network="other", address=ip_address("10.97.0.10")),
            ),
        )
        for name in ("web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "WEB.Default"):
            answer = await query(m, "a", name)
            assert addresses(answer) == ["10.96.0.10"], name
            assert (answer.header.aa, answer.header.ra) == (1, 1)
            assert answer.rr[-1].ttl == 30
        assert addresses(await query(m, "a", "web", "AAAA")) == ["fd96::10"]
        ((labels, count),) = [(k, v) for k, v in m.values("na", DNS_REQUESTS).items() if k[0] == "A"]
        assert (labels[1:], count) == (("udp", "a", "v1"), 5)


@scenario
async def test_a_known_name_without_that_family_is_empty_and_no_error() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        m.service("web", "10.96.0.10", 80, 8080, [])
        answer = await query(m, "a", "web.default.svc.cluster.local", "AAAA")
        assert (answer.header.rcode, answer.rr) == (RCODE.NOERROR, [])


@scenario
async def test_row_24_headless_services_answer_their_ready_endpoints() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.pod("c", "nb")
        m.service("db", "", 5432, 5432, ["b", "c"])
        both = sorted(str(m.nets[name].ipv4) for name in ("b", "c"))
        assert addresses(await query(m, "a", "db.default.svc.cluster.local")) == both
        m.change("c", healthy=False)
        assert addresses(await query(m, "a", "db")) == [str(m.nets["b"].ipv4)]


@scenario
async def test_external_names_wildcards_and_stripped_search_domains() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        m.service("ext", "240.240.0.5", 443, 443, [], hostname="api.example.com")
        m.service("any", "240.240.0.6", 443, 443, [], hostname="*.wild.example.com")
        assert addresses(await query(m, "a", "api.example.com")) == ["240.240.0.5"]
        assert addresses(await query(m, "a", "x.y.wild.example.com")) == ["240.240.0.6"]
        answer = await query(m, "a", "api.example.com.default.svc.cluster.local")
        assert addresses(answer) == ["240.240.0.5"]
        assert [str(entry.rdata) for entry in answer.rr if entry.rtype == QTYPE.CNAME] == ["api.example.com."]


@scenario
async def test_a_private_service_is_hidden_from_other_namespaces() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        m.service(
            "own",
            "10.96.0.11",
            80,
            80,
            [],
            namespace="other",
            visibility=Visibility.NAMESPACE,
            hostname="own.other.svc.cluster.local",
        )
        answer = await query(m, "a", "own.other.svc.cluster.local")
        assert answer.header.rcode == RCODE.SERVFAIL  # No nameserver to pass it on to, and none of ours.


@scenario
async def test_other_names_go_to_the_nameserver_that_the_pod_asked() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        first, second = Resolver(), Resolver()
        await first.start(m, "r1")
        await second.start(m, "r2")
        m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4, m.nets["r2"].ipv4)
        assert addresses(await query(m, "a", "outside.example")) == ["192.0.2.1"]
        assert (first.asked, second.asked) == ([("udp", "outside.example.")], [])
        assert addresses(await query(m, "a", "outside.example", port=15054)) == ["192.0.2.1"]
        assert second.asked == [("udp", "outside.example.")]
        assert (await query(m, "a", "outside.example", port=15055)).header.rcode == RCODE.SERVFAIL
        assert sum(m.values("na", DNS_UPSTREAM_REQUESTS).values()) == 2
        first.stop()
        second.stop()


@pytest.mark.parametrize("lie", ["id", "question"])
def test_an_answer_that_does_not_fit_is_not_believed(lie: str) -> None:
    @scenario
    async def run() -> None:
        async with mesh("ztd") as m:
            await m.pod("a", "na")
            resolver = Resolver()
            resolver.lie = lie
            await resolver.start(m, "r1")
            m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4,)
            assert addresses(await query(m, "a", "outside.example")) == ["192.0.2.1"]
            resolver.stop()

    run()


@scenario
async def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        resolver = Resolver()
        resolver.truncate = True
        await resolver.start(m, "r1")
        m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4,)
        assert addresses(await query(m, "a", "outside.example")) == ["192.0.2.1"]
        assert [protocol for protocol, _ in resolver.asked] == ["udp", "tcp"]
        resolver.stop()


@scenario
async def test_a_silent_nameserver_is_a_servfail_in_time_for_the_next() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        resolver = Resolver()
        resolver.lie = "silent"
        await resolver.start(m, "r1")
        m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4,)
        answer = await query(m, "a", "outside.example", timeout_s=4)
        assert answer.header.rcode == RCODE.SERVFAIL
        assert sum(m.values("na", DNS_UPSTREAM_FAILURES).values()) == 1
        resolver.stop()


@scenario
async def test_tcp_questions_to_the_pods_nameserver_are_answered_here() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        resolver = Resolver()
        await resolver.start(m, "r1")
        m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4,)
        m.service("web", "10.96.0.10", 80, 8080, [])
        reader, writer = await m.connect("a", m.nets["r1"].ipv4, 53)
        for host, wanted in (("web", "10.96.0.10"), ("outside.example", "192.0.2.1")):
            question = bytes(DNSRecord.question(host).pack())
            writer.write(struct.pack("!H", len(question)) + question)
            size = struct.unpack("!H", await reader.readexactly(2))[0]
            assert addresses(DNSRecord.parse(await reader.readexactly(size))) == [wanted]
        writer.close()
        assert [protocol for protocol, _ in resolver.asked] == ["tcp"]
        resolver.stop()


@scenario
async def test_row_3_an_unknown_pod_gets_servfail() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na", known=False)
        m.service("web", "10.96.0.10", 80, 8080, [])
        assert (await query(m, "a", "web")).header.rcode == RCODE.SERVFAIL


@scenario
async def test_noise_is_answered_with_a_format_error_or_not_at_all() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        m.service("web", "10.96.0.10", 80, 8080, [])
        loop = asyncio.get_running_loop()
        with m.space("a").socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", 15053))
            # Too short, an answer instead of a question: silence. A cut question: FORMERR.
            for noise in (b"", b"\x01", b"\x12\x34\x81\x80" + bytes(8)):
                await loop.sock_sendall(sock, noise)
            await loop.sock_sendall(sock, b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x05ab")
            async with asyncio.timeout(5):
                answer = DNSRecord.parse(await loop.sock_recv(sock, 512))
        assert (answer.header.id, answer.header.rcode) == (0x1234, RCODE.FORMERR)
        assert addresses(await query(m, "a", "web")) == ["10.96.0.10"]


@scenario
async def test_an_answer_too_long_for_udp_is_truncated() -> None:
    async with mesh("ztd") as m:
        await m.pod("a", "na")
        vips = tuple(NetworkAddress(network="", address=ip_address(f"10.96.1.{n}")) for n in range(1, 60))
        m.service("big", "", 80, 80, [], addresses=vips)
        answer = await query(m, "a", "big")
        assert answer.header.tc == 1


def test_too_many_questions_of_one_pod_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztunnel.dns.server.MAX_QUESTIONS", 2)

    @scenario
    async def run() -> None:
        async with mesh("ztd") as m:
            await m.pod("a", "na")
            m.service("web", "10.96.0.10", 80, 8080, [])
            resolver = Resolver()
            resolver.lie = "silent"
            await resolver.start(m, "r1")
            m.resolvers[m.space("a").cookie] = (m.nets["r1"].ipv4,)
            loop = asyncio.get_running_loop()
            stuck = [loop.create_task(query(m, "a", f"{n}.example")) for n in range(2)]
            await eventually_async(lambda: sum(m.values("na", DNS_UPSTREAM_REQUESTS).values()) == 2)
            with pytest.raises(TimeoutError):
                await query(m, "a", "web", timeout_s=0.3)
            assert m.values("na", DNS_DROPPED) == {(): 1}
            for task in stuck:
                assert (await task).header.rcode == RCODE.SERVFAIL
            assert addresses(await query(m, "a", "web")) == ["10.96.0.10"]
            resolver.stop()

    run()
