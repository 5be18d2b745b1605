# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of a lab."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

import pytest

from lab import network
from lab.errors import Code, LabError
from lab.layout import MAX_NODES, MAX_SLOTS, Layout, check_name, check_paths, load_layout


def layout(slot: int = 0, nodes: int = 3, state: Path = Path("/run/ambit/t")) -> Layout:
    return Layout(name="t", state=state, slot=slot, node_names=tuple(f"node{n + 1}" for n in range(nodes)))


@pytest.mark.parametrize("name", ["a", "ambit", "lab2", "a" * 20])
def test_names_that_can_be(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "..", "a" * 21, "a b", "a-b"])
def test_names_that_cannot_be_end_with_a_usage_error(name: str) -> None:
    with pytest.raises(LabError) as error:
        check_name(name)
    assert error.value.code.exit_code == 64


def test_no_two_nodes_of_any_lab_share_a_link_network() -> None:
    nodes = [*layout(0, MAX_NODES).nodes, *layout(1, MAX_NODES).nodes, *layout(MAX_SLOTS - 1, 2).nodes]
    networks = [ip_network(f"{node.machine_ip}/30", strict=False) for node in nodes]
    assert len(set(networks)) == len(nodes)
    assert len({node.machine_link for node in nodes}) == len(nodes)
    for node, found in zip(nodes, networks, strict=True):
        assert ip_address(node.uplink_ip) in found
        assert found.subnet_of(ip_network("198.18.0.0/15"))
        assert len(node.machine_link) <= 15


def test_pod_ranges_of_nodes_are_disjoint_and_hold_their_pods() -> None:
    for one, other in combinations(layout().nodes, 2):
        assert not ip_network(one.pod_net).overlaps(ip_network(other.pod_net))
        assert not ip_network(one.pod_net6).overlaps(ip_network(other.pod_net6))
    for node in layout().nodes:
        ip4, ip6 = node.pod_ips(251)
        assert ip_address(ip4) in ip_network(node.pod_net)
        assert ip_address(ip6) in ip_network(node.pod_net6)
        assert ip6 == str(ip_address(ip6)), "others compare addresses as text: canonical form"


def test_a_saved_layout_is_read_again(tmp_path: Path) -> None:
    saved = layout(slot=7, state=tmp_path)
    saved.save()
    assert load_layout(tmp_path) == saved


def test_no_lab_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="ambit lab up") as error:
        load_layout(tmp_path)
    assert error.value.code is Code.NOT_UP


def test_a_state_directory_too_deep_for_sockets_is_refused() -> None:
    check_paths(layout())
    with pytest.raises(LabError, match="107 bytes"):
        check_paths(layout(state=Path("/run") / ("d" * 90)))


def test_the_lowest_free_slot_is_taken() -> None:
    assert network.free_slot(["lo", "eth0", "amb0n0", "amb0n1", "amb2n0", "ambient7n1"]) == 1


def test_no_free_slot_is_an_error() -> None:
    with pytest.raises(LabError, match="in use"):
        network.free_slot([f"amb{slot}n0" for slot in range(MAX_SLOTS)])


def test_a_link_tells_its_lab_also_without_state() -> None:
    (node,) = layout(nodes=1).nodes
    assert f"link set {node.machine_link} alias ambit-lab-t" in network.machine_commands(node)


def test_a_pod_is_reached_over_its_own_link_only() -> None:
    node = layout().nodes[1]
    on_node, in_pod = network.pod_commands(node, "ambit-t-shop-web", "p5", node.pod_ips(5))
    assert "link add p5 type veth peer name eth0 netns ambit-t-shop-web" in on_node
    assert "route add 10.244.1.5/32 dev p5 src 10.244.1.1" in on_node
    assert "addr add 10.244.1.5/32 dev eth0" in in_pod
    assert not any("bridge" in line for line in (*on_node, *in_pod))
