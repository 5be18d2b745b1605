# SPDX-License-Identifier: Apache-2.0
"""The cluster's resolver: answers of names, bytes in and bytes out."""

from __future__ import annotations

import pytest
from dnslib import EDNS0, RCODE, DNSRecord

from lab.dns import answer, for_udp
from lab.services import Name

DOMAIN = "cluster.local"
NAMES = {
    "web.shop.svc.cluster.local": Name(addresses=("10.96.0.20", "fd00:10:96::14")),
    "_http._tcp.web.shop.svc.cluster.local": Name(srv=((80, "web.shop.svc.cluster.local"),)),
    "many.shop.svc.cluster.local": Name(addresses=tuple(f"10.244.0.{n}" for n in range(2, 120))),
    "far.shop.svc.cluster.local": Name(alias="example.com"),
}


def ask(name: str, kind: str = "A") -> DNSRecord:
    reply = answer(DNSRecord.question(name, kind).pack(), NAMES, DOMAIN)
    assert reply is not None
    return DNSRecord.parse(reply)


@pytest.mark.parametrize(("kind", "address"), [("A", "10.96.0.20"), ("AAAA", "fd00:10:96::14")])
def test_a_service_has_its_addresses_of_the_family_asked(kind: str, address: str) -> None:
    assert [str(r.rdata) for r in ask("web.shop.svc.cluster.local", kind).rr] == [address]


def test_names_are_compared_without_case() -> None:
    reply = ask("WEB.Shop.svc.cluster.local")
    assert str(reply.rr[0].rdata) == "10.96.0.20"
    assert str(reply.q.qname) == "WEB.Shop.svc.cluster.local."


def test_a_port_by_name() -> None:
    (record,) = ask("_http._tcp.web.shop.svc.cluster.local", "SRV").rr
    assert (record.rdata.port, str(record.rdata.target)) == (80, "web.shop.svc.cluster.local.")


def test_an_external_name_is_an_alias() -> None:
    (record,) = ask("far.shop.svc.cluster.local").rr
    assert str(record.rdata.label) == "example.com."


def test_an_unknown_name_of_the_cluster_does_not_exist() -> None:
    assert ask("nobody.shop.svc.cluster.local").header.rcode == RCODE.NXDOMAIN


def test_a_name_above_known_ones_exists_without_addresses() -> None:
    reply = ask("shop.svc.cluster.local")
    assert (reply.header.rcode, reply.rr) == (RCODE.NOERROR, [])


def test_names_elsewhere_are_refused() -> None:
    assert ask("example.com").header.rcode == RCODE.REFUSED


@pytest.mark.parametrize("junk", [b"", b"\0" * 5, b"\xff" * 40, b"\x12\x34\x01\0\0\x01"])
def test_what_is_no_query_gets_no_answer(junk: bytes) -> None:
    assert answer(junk, NAMES, DOMAIN) is None


def test_an_answer_is_not_answered() -> None:
    reply = answer(DNSRecord.question("web.shop.svc.cluster.local").pack(), NAMES, DOMAIN)
    assert reply is not None
    assert answer(reply, NAMES, DOMAIN) is None


def test_an_answer_too_long_for_a_datagram_is_truncated() -> None:
    query = DNSRecord.question("many.shop.svc.cluster.local").pack()
    reply = answer(query, NAMES, DOMAIN)
    assert reply is not None
    short = for_udp(query, reply)
    assert len(short) <= 512
    assert DNSRecord.parse(short).header.tc == 1


def test_a_client_that_takes_more_gets_more() -> None:
    question = DNSRecord.question("many.shop.svc.cluster.local")
    question.add_ar(EDNS0(udp_len=4096))
    query = question.pack()
    reply = answer(query, NAMES, DOMAIN)
    assert reply is not None
    assert for_udp(query, reply) == reply
