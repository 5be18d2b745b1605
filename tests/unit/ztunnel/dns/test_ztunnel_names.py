# SPDX-License-Identifier: Apache-2.0
"""Which names the mesh answers, for whom and with what."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.service import IpFamilies, Visibility
from mesh.model.workload import NetworkAddress
from tests.support.mesh_builders import member, service, store, workload
from ztunnel.dns.names import Found, resolve_name

CLIENT = workload("web", "10.0.0.1")
DOMAIN = "cluster.local"


def texts(found: Found | None) -> list[str] | None:
    return None if found is None else [str(address) for address in found.addresses]


@pytest.mark.parametrize("name", ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local"])
def test_short_names_mean_the_clients_namespace(name: str) -> None:
    found = resolve_name(store(service("cart", "10.96.0.1")), CLIENT, name, DOMAIN)
    assert texts(found) == ["10.96.0.1"]
    assert found is not None
    assert found.canonical == name


@pytest.mark.parametrize("suffix", ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"])
def test_a_search_domain_is_stripped_and_named_as_an_alias(suffix: str) -> None:
    state = store(service("ext", "240.0.0.1", hostname="api.example.com"))
    found = resolve_name(state, CLIENT, f"api.example.com.{suffix}", DOMAIN)
    assert found is not None
    assert found.canonical == "api.example.com"


def test_wildcards_match_any_depth_and_an_exact_name_beats_them() -> None:
    state = store(
        service("any", "240.0.0.1", hostname="*.example.com"),
        service("one", "240.0.0.2", hostname="one.example.com"),
    )
    assert texts(resolve_name(state, CLIENT, "a.b.example.com", DOMAIN)) == ["240.0.0.1"]
    assert texts(resolve_name(state, CLIENT, "one.example.com", DOMAIN)) == ["240.0.0.2"]
    assert resolve_name(state, CLIENT, "example.com", DOMAIN) is None


def test_unknown_foreign_and_private_names_are_not_ours() -> None:
    state = store(
        service("hidden", "10.96.0.1", namespace="other", visibility=Visibility.NAMESPACE,
                hostname="hidden.other.svc.cluster.local"),
        service("bare", hostname="bare.example.com"),
    )  # fmt: skip
    for name in ("nobody", "hidden.other", "bare.example.com", "", "x" * 254):
        assert resolve_name(state, CLIENT, name, DOMAIN) is None


def test_a_cluster_name_without_addresses_exists_and_is_empty() -> None:
    assert texts(resolve_name(store(service("cart")), CLIENT, "cart", DOMAIN)) == []


def test_only_addresses_of_the_clients_network_and_the_services_families() -> None:
    made = service(
        "cart",
        "10.96.0.1",
        "fd96::1",
        ip_families=IpFamilies.IPV6_ONLY,
    )
    assert texts(resolve_name(store(made), CLIENT, "cart", DOMAIN)) == ["fd96::1"]
    far = service("far", addresses=(NetworkAddress(network="east", address=ip_address("10.96.0.2")),))
    assert texts(resolve_name(store(far), CLIENT, "far", DOMAIN)) == []


def test_headless_services_answer_their_ready_endpoints() -> None:
    state = store(
        service("db"),
        workload("ready", "10.0.0.2", "fd00::2", services=member("db")),
        workload("sick", "10.0.0.3", services=member("db"), healthy=False),
    )
    assert texts(resolve_name(state, CLIENT, "db", DOMAIN)) == ["10.0.0.2", "fd00::2"]


@given(st.text(alphabet="abc.*-", max_size=30))
def test_no_name_breaks_it(name: str) -> None:
    resolve_name(store(service("any", "240.0.0.1", hostname="*.a.b")), CLIENT, name, DOMAIN)
