# SPDX-License-Identifier: Apache-2.0
"""What a CONNECT may reach: authorities, hostnames, waypoints, application tunnels."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.hbone.authority import parse_authority
from mesh.model.address import format_host_port
from mesh.model.workload import ApplicationProtocol, ApplicationTunnel, GatewayAddress
from mesh.telemetry.reasons import Reason
from tests.support.mesh_builders import key, member, service, store, workload
from ztunnel.resolve.admit import Admitted, Refused, admit

LOCAL = workload("cart", "10.0.0.2", "fd00::2", services=member("cart"))
DIALLED = ip_address("10.0.0.2")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.2:80", (DIALLED, 80)),
        ("[fd00::2]:80", (ip_address("fd00::2"), 80)),
        ("[::ffff:10.0.0.2]:80", (DIALLED, 80)),
        ("Cart.Shop.svc.cluster.local.:80", ("cart.shop.svc.cluster.local", 80)),
        ("a_b-c.d:65535", ("a_b-c.d", 65535)),
    ],
)
def test_authorities_are_parsed_into_one_form(text: str, parsed: object) -> None:
    assert parse_authority(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "80", "10.0.0.2", "10.0.0.2:", ":80", "10.0.0.2:0", "10.0.0.2:65536", "10.0.0.2:+80"),
        *("10.0.0.2: 80", "10.0.0.2:\uff18\uff10", "fd00::2:80", "[fd00::2:80", "[10.0.0.2]:80", "[]:80"),
        *("a b:80", "ü:80", "x" * 254 + ":80", "user@host:80", "host/path:80", "10.0.0.2:80:80"),
        *("[fd00::2]]:80", "10.0.0.2:000080"),
    ],
)
def test_what_is_no_authority_is_none(text: str) -> None:
    assert parse_authority(text) is None


@given(st.ip_addresses(), st.integers(1, 65535))
def test_formatting_and_parsing_agree(address: object, port: int) -> None:
    parsed = parse_authority(format_host_port(address, port))  # type: ignore[arg-type]
    assert parsed is not None
    assert parsed[1] == port


@given(st.text(max_size=40))
def test_any_text_gives_an_answer(text: str) -> None:
    found = admit(store(LOCAL), LOCAL, DIALLED, text, "shop")
    assert isinstance(found, Admitted | Refused)


def refused(found: Admitted | Refused) -> tuple[int, Reason]:
    assert isinstance(found, Refused)
    return found.status, found.reason


def test_the_dialled_address_is_admitted_on_any_port_but_ours() -> None:
    state = store(LOCAL)
    assert admit(state, LOCAL, DIALLED, "10.0.0.2:8080", "x") == Admitted(address=DIALLED, port=8080)
    for port in (15001, 15006, 15008):
        assert refused(admit(state, LOCAL, DIALLED, f"10.0.0.2:{port}", "x")) == (503, Reason.ILLEGAL_PORT)


def test_another_address_is_a_bad_authority_even_if_it_is_the_pods_own() -> None:
    state = store(LOCAL)
    for text in ("10.0.0.3:8080", "[fd00::2]:8080", "127.0.0.1:8080"):
        assert refused(admit(state, LOCAL, DIALLED, text, "x")) == (400, Reason.BAD_AUTHORITY)


def test_a_hostname_is_translated_by_the_endpoints_own_port() -> None:
    local = workload("cart", "10.0.0.2", services=member("cart", ports={80: 9090}))
    state = store(local, service("cart", "10.96.0.1"))
    found = admit(state, local, DIALLED, "cart.shop.svc.cluster.local:80", "shop")
    assert isinstance(found, Admitted)
    assert (found.address, found.port) == (DIALLED, 9090)
    assert found.service is not None


def test_unknown_hosts_ports_and_other_peoples_services_are_503() -> None:
    state = store(LOCAL, service("cart", "10.96.0.1"), service("other", "10.96.0.2"))
    for text in ("nobody.example:80", "cart.shop.svc.cluster.local:81", "other.shop.svc.cluster.local:80"):
        assert refused(admit(state, LOCAL, DIALLED, text, "shop")) == (503, Reason.UNKNOWN_DESTINATION)


def test_a_waypoint_is_reached_for_what_names_it_always_on_its_own_address() -> None:
    waypoint = workload("wp", "10.0.0.9", services=member("wp"))
    gateway = GatewayAddress(destination=key("wp"), hbone_mtls_port=15008)
    state = store(
        waypoint,
        service("wp"),
        workload("cart", "10.0.0.2", waypoint=gateway),
        service("pay", "10.96.0.1", waypoint=gateway),
        service("web", "10.96.0.2"),
    )
    dialled = ip_address("10.0.0.9")
    for text in ("10.0.0.2:8080", "10.96.0.1:8080"):
        found = admit(state, waypoint, dialled, text, "shop")
        assert isinstance(found, Admitted)
        assert (found.address, found.port) == (dialled, 8080)
    assert refused(admit(state, waypoint, dialled, "10.96.0.2:80", "shop")) == (400, Reason.BAD_AUTHORITY)


def test_an_application_tunnel_takes_everything_on_its_port_and_names_the_target() -> None:
    tunnel = ApplicationTunnel(protocol=ApplicationProtocol.PROXY, port=15088)
    local = workload("wp", "10.0.0.2", application_tunnel=tunnel)
    state = store(local, service("pay", "fd96::1", "10.96.0.1"))
    found = admit(state, local, DIALLED, "10.50.0.1:443", "shop")
    assert found == Admitted(address=DIALLED, port=15088, proxied=(ip_address("10.50.0.1"), 443))
    found = admit(state, local, DIALLED, "pay.shop.svc.cluster.local:443", "shop")
    assert isinstance(found, Admitted)
    assert found.proxied == (ip_address("10.96.0.1"), 443)
    assert found.host == "pay.shop.svc.cluster.local"
    assert refused(admit(state, local, DIALLED, "nobody:443", "shop")) == (503, Reason.UNKNOWN_DESTINATION)
    plain = workload(
        "wp", "10.0.0.2", application_tunnel=ApplicationTunnel(protocol=ApplicationProtocol.NONE, port=0)
    )
    assert admit(state, plain, DIALLED, "10.50.0.1:443", "shop") == Admitted(address=DIALLED, port=443)
