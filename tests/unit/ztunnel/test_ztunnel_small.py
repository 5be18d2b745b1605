# SPDX-License-Identifier: Apache-2.0
"""Headers, PROXY header, original destination, resources, certificates, admin view, log queue."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import struct
import threading
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.hbone.metadata import (
    find_header,
    format_baggage,
    format_forwarded,
    format_traceparent,
    forwarded_host,
    parse_baggage,
    workload_from_baggage,
)
from mesh.identity.manager import CertificateUnavailableError
from mesh.identity.spiffe import SpiffeId
from mesh.model.locality import Locality
from mesh.model.workload import WorkloadType
from mesh.net.sockets import Peer, parse_sockaddr
from mesh.runtime.surfaces import plain
from mesh.telemetry.log_queue import BoundedLogHandler
from mesh.telemetry.logging import TextFormatter
from mesh.testing.fake_ca import FakeCa
from mesh.testing.fake_clock import FakeClock
from mesh.xds.encode import encode_address, encode_authorization
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Resource, Update
from mesh.xds.updates import decode_update
from tests.support.mesh_builders import policy, service, workload
from ztunnel.certificates import WorkerCertificates, certificate_from_message, certificate_message
from ztunnel.control import Decoder, encode
from ztunnel.original_dst import decode_sockaddr
from ztunnel.proxy_protocol import format_proxy_v2
from ztunnel.worker import update_from_message, update_message

WEB = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")


# --- headers


def test_baggage_has_istios_keys_and_comes_back() -> None:
    sent = workload(
        "web-1",
        workload_type=WorkloadType.DEPLOYMENT,
        workload_name="web, v=2",
        canonical_name="web",
        canonical_revision="v2",
        locality=Locality(region="r1", zone="z1"),
    )
    value = format_baggage(sent)
    assert value.startswith(b"k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web%2C")
    seen = workload_from_baggage(parse_baggage(value), str(WEB))
    assert seen is not None
    assert (seen.workload_name, seen.workload_type) == ("web, v=2", WorkloadType.DEPLOYMENT)
    assert (seen.canonical_name, seen.canonical_revision, seen.locality) == ("web", "v2", sent.locality)


def test_baggage_cannot_claim_a_namespace_that_the_certificate_does_not_prove() -> None:
    seen = workload_from_baggage({"k8s.namespace.name": "kube-system"}, str(WEB))
    assert seen is not None
    assert seen.namespace == "shop"
    assert workload_from_baggage({}, str(WEB)) is None


@given(st.binary(max_size=200))
def test_no_header_breaks_the_parsers(value: bytes) -> None:
    parse_baggage(value)
    forwarded_host(value)


def test_oversized_baggage_is_ignored() -> None:
    assert parse_baggage(b"a=b," * 3000) == {}


def test_forwarded_names_the_client_and_the_last_elements_host_counts() -> None:
    assert format_forwarded("10.0.0.1:5") == b'for="10.0.0.1:5"'
    assert format_forwarded("10.0.0.1:5", "web.svc") == b'for="10.0.0.1:5";host=web.svc'
    assert forwarded_host(b'for=x;host=first, for="y"; Host="Second.SVC"') == "second.svc"
    assert forwarded_host(b"for=x") == ""


def test_traceparent_has_its_55_characters() -> None:
    value = format_traceparent(bytes(range(24)))
    assert value == b"00-000102030405060708090a0b0c0d0e0f-1011121314151617-00"
    assert len(value) == 55
    assert find_header([(b"a", b"1"), (b"a", b"2")], b"a") == b"1"
    assert find_header([], b"a") == b""


# --- PROXY protocol


@pytest.mark.parametrize(
    ("source", "target", "family", "size"), [("10.0.0.1", "10.0.0.2", 0x11, 12), ("::1", "::2", 0x21, 36)]
)
def test_row_19_the_proxy_header_is_version_2_with_the_identity(
    source: str, target: str, family: int, size: int
) -> None:
    head = format_proxy_v2(Peer(ip_address(source), 1000), Peer(ip_address(target), 80), str(WEB))
    assert head[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
    assert (head[12], head[13]) == (0x21, family)
    assert int.from_bytes(head[14:16], "big") == len(head) - 16 == size + 3 + len(str(WEB))
    assert head[16 + size - 4 : 16 + size] == struct.pack("!HH", 1000, 80)
    assert head[16 + size :] == b"\xd0" + struct.pack("!H", len(str(WEB))) + str(WEB).encode()


def test_defect_6_a_service_asked_for_by_name_is_named_in_the_header() -> None:
    head = format_proxy_v2(Peer(ip_address("::1"), 1), Peer(ip_address("::2"), 80), "id", "pay.shop.svc")
    assert head.endswith(b"\xd0\x00\x02id\xd1\x00\x0cpay.shop.svc")
    assert int.from_bytes(head[14:16], "big") == len(head) - 16


def test_mixed_families_say_unspecified() -> None:
    head = format_proxy_v2(Peer(ip_address("10.0.0.1"), 1), Peer(ip_address("::2"), 80), "id")
    assert (head[13], head[14:16]) == (0, b"\x00\x05")


# --- addresses


def test_socket_addresses_are_decoded_into_canonical_form() -> None:
    four = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 80) + bytes((10, 0, 0, 1)) + bytes(8)
    assert decode_sockaddr(four) == Peer(ip_address("10.0.0.1"), 80)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 80, 0)
    assert decode_sockaddr(head + ip_address("fd00::1").packed + bytes(4)) == Peer(ip_address("fd00::1"), 80)
    mapped = head + bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 1)) + bytes(4)
    assert decode_sockaddr(mapped) == Peer(ip_address("10.0.0.1"), 80)
    for wrong in (b"", four[:7], b"\x63\x00" + four[2:], head):
        with pytest.raises(ValueError, match="socket address"):
            decode_sockaddr(wrong)


def test_names_of_sockets_are_parsed_without_their_scope() -> None:
    assert str(parse_sockaddr(("::ffff:10.0.0.1", 80, 0, 0))) == "10.0.0.1:80"
    assert str(parse_sockaddr(("fe80::1%eth0", 80, 0, 2))) == "[fe80::1]:80"
    with pytest.raises(ValueError, match="no IP socket address"):
        parse_sockaddr("/run/x")


# --- resources


def test_resources_become_a_store_update_and_bad_ones_are_named() -> None:
    web, made = workload("web", "10.0.0.1"), service("cart", "10.96.0.1")
    update = Update(
        type_url=ADDRESS_TYPE,
        upserted=(
            Resource(web.uid, "1", encode_address(web)),
            Resource(str(made.key), "1", encode_address(made)),
            Resource("bad", "1", b"\xff"),
        ),
        removed=("gone",),
    )
    state, rejected = decode_update(update)
    assert [value.name for value in (*state.workloads, *state.services)] == ["web", "cart"]
    assert state.removed_addresses == ("gone",)
    assert [rejection.name for rejection in rejected] == ["bad"]
    assert update_from_message(Decoder().feed(encode(update_message(update)))[0][0]) == update


def test_a_bad_policy_is_also_reported_as_broken() -> None:
    good = policy("ok")
    update = Update(
        type_url=AUTHORIZATION_TYPE,
        upserted=(Resource("shop/ok", "1", encode_authorization(good)), Resource("shop/bad", "1", b"\xff")),
        removed=("shop/gone",),
    )
    state, rejected = decode_update(update)
    assert [p.key for p in state.policies] == ["shop/ok"]
    assert list(state.broken_policies) == ["shop/bad"] == [rejection.name for rejection in rejected]
    assert state.removed_policies == ("shop/gone",)
    assert decode_update(Update(type_url="other"))[1] == ()


# --- certificates of a worker


def test_a_certificate_survives_the_control_channel_and_its_repr_shows_no_key() -> None:
    certificate = FakeCa().issue(WEB)
    message = Decoder().feed(encode(certificate_message(certificate)))[0][0]
    assert certificate_from_message(message) == certificate
    assert "PRIVATE" not in repr(certificate)


def test_a_missing_certificate_is_asked_for_once_and_waited_for() -> None:
    async def scenario() -> None:
        asked: list[SpiffeId] = []
        clock = FakeClock()
        held = WorkerCertificates(asked.append, clock)
        waiting = [asyncio.get_running_loop().create_task(held.get(WEB)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        certificate = FakeCa().issue(WEB)
        held.put(certificate)
        assert await waiting[1] is certificate
        assert await waiting[2] is certificate
        assert asked == [WEB]
        assert await held.get(WEB) is certificate
        clock.jump_wall(certificate.not_after_s - clock.wall())
        late = asyncio.get_running_loop().create_task(held.get(WEB))
        await asyncio.sleep(0)
        assert asked == [WEB, WEB]
        held.refuse(WEB, "the authority is down")
        with pytest.raises(CertificateUnavailableError, match="the authority is down"):
            await late
        held.forget(WEB)
        held.refuse(WEB, "nobody waits")

    asyncio.run(scenario())


# --- admin view and log


def test_model_values_become_json_in_camel_case() -> None:
    value = plain(workload("web", "10.0.0.1", "fd00::1"))
    text = json.loads(json.dumps(value))
    assert text["addresses"] == ["10.0.0.1", "fd00::1"]
    assert (text["serviceAccount"], text["tunnelProtocol"]) == ("web", "hbone")
    assert plain({"a": {1}, "b": None, "c": object}) == {"a": [1], "b": None, "c": str(object)}


class Stuck(io.StringIO):
    """A reader that stalls."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()
        self.release = threading.Event()

    def write(self, text: str) -> int:
        self.reading.set()
        self.release.wait(5)
        return super().write(text)


def test_log_lines_that_do_not_fit_are_dropped_and_counted_never_waited_for() -> None:
    stream = Stuck()
    handler = BoundedLogHandler(stream, max_lines=3)
    handler.setFormatter(TextFormatter())

    def log(text: str) -> None:
        handler.emit(logging.LogRecord("t", logging.INFO, "", 0, text, None, None))

    log("taken by the writer")
    assert stream.reading.wait(5)
    for number in range(5):
        log(f"line {number}")
    assert handler.take_dropped() == 2
    assert handler.take_dropped() == 0
    stream.release.set()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert [line.rpartition("\t")[2] for line in lines] == [
        "taken by the writer",
        "line 0",
        "line 1",
        "line 2",
    ]
