# SPDX-License-Identifier: Apache-2.0
"""The store: lookups, precedence, what a change touches, and that order does not matter."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from mesh.model.policy import Action, Scope
from mesh.model.service import CidrVip, Visibility
from mesh.model.workload import NetworkMode, TunnelProtocol
from mesh.state.store import Changes, StateUpdate, Store
from tests.support.mesh_builders import key, member, policy, service, store, workload

ADDRESS = ip_address("10.0.0.1")


def test_a_local_workload_must_agree_in_name_namespace_account_and_node() -> None:
    state = store(workload("web", "10.0.0.1"))
    wanted = {"name": "web", "namespace": "shop", "service_account": "web", "node": "n1"}
    assert state.find_local(**wanted) is not None
    for field in wanted:
        assert state.find_local(**(wanted | {field: "other"})) is None


def test_row_28_a_meshed_pod_wins_a_shared_address_and_host_network_never_does() -> None:
    entry = workload("entry", "10.0.0.1", uid="Kubernetes/networking/ServiceEntry/shop/entry/10.0.0.1")
    plain = workload("plain", "10.0.0.1", tunnel_protocol=TunnelProtocol.NONE)
    meshed = workload("meshed", "10.0.0.1")
    host = workload("host", "10.0.0.1", network_mode=NetworkMode.HOST_NETWORK)
    state = store(host, entry, plain, meshed)
    found = state.find_workload(ADDRESS)
    assert found == meshed
    state.apply(StateUpdate(removed_addresses=(meshed.uid,)))
    assert state.find_workload(ADDRESS) == plain
    state.apply(StateUpdate(removed_addresses=(plain.uid, entry.uid)))
    assert state.find_workload(ADDRESS) is None


def test_row_26_the_longest_range_wins_and_an_exact_address_beats_it() -> None:
    wide = service("wide", cidr_addresses=(CidrVip(network="", cidr=ip_network("10.96.0.0/16")),))
    narrow = service("narrow", cidr_addresses=(CidrVip(network="", cidr=ip_network("10.96.1.0/24")),))
    exact = service("exact", "10.96.1.1")
    state = store(wide, narrow, exact)
    for address, name in (("10.96.1.1", "exact"), ("10.96.1.2", "narrow"), ("10.96.2.1", "wide")):
        found = state.find_service(ip_address(address), "shop")
        assert found is not None
        assert found.name == name
    assert state.find_service(ip_address("10.97.0.1"), "shop") is None
    state.apply(StateUpdate(removed_addresses=(str(narrow.key),)))
    found = state.find_service(ip_address("10.96.1.2"), "shop")
    assert found is not None
    assert found.name == "wide"


def test_row_27_client_namespace_then_canonical_then_preferred_then_first() -> None:
    first = service("a", "10.96.0.1", namespace="ns-a", hostname="x.example")
    preferred = service("p", "10.96.0.1", namespace="ns-p", hostname="x.example")
    canonical = service("c", "10.96.0.1", namespace="ns-c", hostname="x.example", canonical=True)
    state = store(first, preferred, canonical, preferred_namespace="ns-p")

    def winner(namespace: str) -> str:
        found = state.find_hostname("x.example", namespace)
        assert found is not None
        assert found == state.find_service(ip_address("10.96.0.1"), namespace)
        return found.name

    assert winner("ns-a") == "a"
    assert winner("elsewhere") == "c"
    state.apply(StateUpdate(removed_addresses=(str(canonical.key),)))
    assert winner("elsewhere") == "p"
    state.apply(StateUpdate(removed_addresses=(str(preferred.key),)))
    assert winner("elsewhere") == "a"


def test_a_private_service_exists_in_its_own_namespace_only() -> None:
    state = store(service("own", "10.96.0.1", visibility=Visibility.NAMESPACE))
    assert state.find_service(ip_address("10.96.0.1"), "shop") is not None
    assert state.find_service(ip_address("10.96.0.1"), "other") is None


def test_endpoints_may_come_before_their_service() -> None:
    state = store(workload("cart", "10.0.0.1", services=member("cart")))
    assert state.staged() == {key("cart"): ("Kubernetes//v1/Pod/shop/cart",)}
    state.apply(StateUpdate(services=(service("cart"),)))
    assert state.staged() == {}
    assert [e.workload.name for e in state.endpoints(key("cart"))] == ["cart"]


def test_a_changed_workload_leaves_what_it_no_longer_names() -> None:
    before = workload("cart", "10.0.0.1", services=member("cart", "pay"))
    state = store(before, service("cart"), service("pay"))
    after = dataclasses.replace(before, addresses=(ip_address("10.0.0.9"),), services=member("pay"))
    changes = state.apply(StateUpdate(workloads=(after,)))
    assert changes.workloads == {before.uid}
    assert state.find_workload(ADDRESS) is None
    assert state.find_workload(ip_address("10.0.0.9")) == after
    assert state.endpoints(key("cart")) == []
    assert len(state.endpoints(key("pay"))) == 1


def test_policies_in_force_are_mesh_wide_of_the_namespace_and_named() -> None:
    state = store(
        policy("all", scope=Scope.GLOBAL, namespace="istio-system"),
        policy("ours"),
        policy("theirs", namespace="other"),
        policy("picked", scope=Scope.WORKLOAD_SELECTOR),
        policy("unpicked", scope=Scope.WORKLOAD_SELECTOR),
    )
    local = workload("cart", authorization_policies=("shop/picked",))
    assert [p.name for p in state.policies_for(local).policies] == ["all", "ours", "picked"]


def test_a_malformed_policy_closes_its_namespace_or_the_mesh_until_it_is_mended() -> None:
    state = store(policy("ok"))
    state.apply(StateUpdate(broken_policies={"shop/bad": "why"}))
    assert "why" in state.policies_for(workload("cart")).unusable
    assert state.policies_for(workload("cart", namespace="other")).unusable == ""
    state.apply(StateUpdate(broken_policies={"istio-system/bad": "mesh"}))
    assert "mesh" in state.policies_for(workload("cart", namespace="other")).unusable
    state.apply(StateUpdate(policies=(policy("bad"),), removed_policies=("istio-system/bad",)))
    assert state.policies_for(workload("cart")).unusable == ""


def test_a_malformed_update_of_a_known_policy_keeps_the_good_version() -> None:
    state = store(policy("p", Action.DENY))
    state.apply(StateUpdate(broken_policies={"shop/p": "why"}))
    found = state.policies_for(workload("cart"))
    assert found.unusable == ""
    assert [p.name for p in found.policies] == ["p"]


def test_changes_touch_whom_they_concern() -> None:
    local = workload("cart", authorization_policies=("shop/picked",))
    assert Changes(everything=True).touches(local)
    assert Changes(workloads=frozenset({local.uid})).touches(local)
    assert Changes(namespaces=frozenset({"shop"})).touches(local)
    assert Changes(policies=frozenset({"shop/picked"})).touches(local)
    other = Changes(
        workloads=frozenset({"x"}), namespaces=frozenset({"other"}), policies=frozenset({"other/picked"})
    )
    assert not other.touches(local)
    assert not Changes()
    state = store()
    changes = state.apply(StateUpdate(policies=(policy("p", scope=Scope.GLOBAL, namespace="istio-system"),)))
    assert changes.everything


def test_removals_come_first_so_that_a_name_may_move_within_one_update() -> None:
    old = workload("web", "10.0.0.1")
    state = store(old)
    moved = dataclasses.replace(old, uid="Kubernetes//v1/Pod/shop/web-2")
    state.apply(StateUpdate(workloads=(moved,), removed_addresses=(old.uid,)))
    assert state.find_workload(ADDRESS) == moved
    state.apply(StateUpdate(removed_addresses=("never/heard/of/it", "no/such")))
    assert state.find_workload(ADDRESS) == moved


_POOL = [
    workload("a", "10.0.0.1", services=member("cart")),
    workload("b", "10.0.0.1", services=member("cart", "pay"), tunnel_protocol=TunnelProtocol.NONE),
    workload("c", "10.0.0.2", services=member("pay")),
    service("cart", "10.96.0.1"),
    service("pay", "10.96.0.1", canonical=True),
    policy("p"),
]


@given(st.permutations(range(len(_POOL))), st.sets(st.integers(0, len(_POOL) - 1)))
def test_the_same_resources_give_the_same_store_whatever_their_order(
    order: list[int], gone: set[int]
) -> None:
    state = Store()
    for index in order:
        value = _POOL[index]
        state.apply(
            StateUpdate(
                workloads=(value,) if hasattr(value, "uid") else (),  # type: ignore[arg-type]
                services=(value,) if hasattr(value, "hostname") and not hasattr(value, "uid") else (),  # type: ignore[arg-type]
                policies=(value,) if hasattr(value, "rules") else (),  # type: ignore[arg-type]
            )
        )
    for index in gone:
        value = _POOL[index]
        if hasattr(value, "rules"):
            state.apply(StateUpdate(removed_policies=(value.key,)))
        else:
            name = value.uid if hasattr(value, "uid") else str(value.key)
            state.apply(StateUpdate(removed_addresses=(name,)))
    left = [value for index, value in enumerate(_POOL) if index not in gone]
    fresh = store(*left)
    assert state.workloads == fresh.workloads
    assert state.services == fresh.services
    assert state.policies == fresh.policies
    for name in ("cart", "pay"):
        assert {e.workload.uid for e in state.endpoints(key(name))} == {
            e.workload.uid for e in fresh.endpoints(key(name))
        }
    assert state.find_workload(ADDRESS) == fresh.find_workload(ADDRESS)
    assert state.find_service(ip_address("10.96.0.1"), "x") == fresh.find_service(
        ip_address("10.96.0.1"), "x"
    )
