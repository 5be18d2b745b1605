# SPDX-License-Identifier: Apache-2.0
"""The proof that a network namespace is a pod's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from daemonset import netns
from daemonset.codes import Code
from daemonset.netns import Interface, NodeView, View
from mesh.model.address import IPAddress

V4, V6 = ip_address("10.1.0.5"), ip_address("fd00::5")
NODE = 0
LO = Interface(
    index=1, name="lo", addresses=frozenset({ip_address("127.0.0.1")}), peer_netns=None, peer_index=None
)


def eth0(*addresses: IPAddress, peer_netns: int | None = NODE) -> Interface:
    return Interface(
        index=2, name="eth0", addresses=frozenset(addresses), peer_netns=peer_netns, peer_index=9
    )


def view(*interfaces: Interface) -> View:
    return View(interfaces=(LO, *interfaces), node_netns=NODE)


VETH = NodeView(pod_netns=4, routed_to=9, kind="veth", device_netns=4)


def test_a_routed_veth_proves_both_families_and_is_point_to_point() -> None:
    proof = netns.check([V4, V6], view(eth0(V4, V6)), {V4: VETH, V6: VETH})
    assert proof.point_to_point


@pytest.mark.parametrize(
    "node",
    [
        NodeView(pod_netns=4, routed_to=3, kind="bridge", device_netns=None),
        NodeView(pod_netns=4, routed_to=None, kind="", device_netns=None),
        NodeView(pod_netns=4, routed_to=2, kind="vxlan", device_netns=None),
    ],
)
def test_other_networks_prove_without_being_point_to_point(node: NodeView) -> None:
    assert not netns.check([V4], view(eth0(V4)), {V4: node}).point_to_point


@pytest.mark.parametrize(
    ("addresses", "seen", "node", "code", "words"),
    [
        ([], view(eth0(V4)), VETH, Code.ADDRESS_NOT_OWNED, "no address"),
        ([V4], view(), VETH, Code.ADDRESS_NOT_OWNED, "none"),
        ([V4, V6], view(eth0(V4)), VETH, Code.ADDRESS_NOT_OWNED, "fd00::5, but 10.1.0.5"),
        ([V4], view(eth0(V4, peer_netns=None)), VETH, Code.NOT_LINKED, "eth0"),
        ([V4], view(eth0(V4, peer_netns=7)), VETH, Code.NOT_LINKED, "10.1.0.5"),
        (
            [V4],
            view(eth0(V4)),
            NodeView(pod_netns=4, routed_to=9, kind="veth", device_netns=5),
            Code.ROUTED_ELSEWHERE,
            "10.1.0.5",
        ),
    ],
)
def test_what_is_missing_is_named(
    addresses: list[IPAddress], seen: View, node: NodeView, code: Code, words: str
) -> None:
    with pytest.raises(netns.NetnsError, match=words) as refusal:
        netns.check(addresses, seen, dict.fromkeys(addresses, node))
    assert refusal.value.code is code


def test_a_namespace_that_does_not_know_the_node_proves_nothing() -> None:
    blind = View(interfaces=(LO, eth0(V4, peer_netns=None)), node_netns=None)
    with pytest.raises(netns.NetnsError, match="no link"):
        netns.check([V4], blind, {V4: VETH})
