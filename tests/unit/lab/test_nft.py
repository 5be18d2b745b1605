# SPDX-License-Identifier: Apache-2.0
"""Kernel services as text for nft."""

from __future__ import annotations

from lab.nft import TABLE, Forward, ruleset


def test_one_endpoint_is_the_target() -> None:
    text = ruleset([Forward(vip="10.96.0.20", port=80, protocol="tcp", endpoints=(("10.244.0.2", 8080),))])
    assert "ip daddr 10.96.0.20 tcp dport 80 dnat ip to 10.244.0.2:8080" in text


def test_ipv6_targets_are_bracketed() -> None:
    text = ruleset([Forward(vip="fd00:10:96::14", port=80, protocol="tcp", endpoints=(("fd00::2", 8080),))])
    assert "ip6 daddr fd00:10:96::14 tcp dport 80 dnat ip6 to [fd00::2]:8080" in text


def test_several_endpoints_are_drawn_with_equal_weight() -> None:
    endpoints = (("10.244.0.2", 8080), ("10.244.1.2", 8081))
    text = ruleset([Forward(vip="10.96.0.20", port=80, protocol="udp", endpoints=endpoints)])
    assert "numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.1.2 . 8081 }" in text


def test_no_endpoint_is_refused_not_dropped() -> None:
    text = ruleset([Forward(vip="10.96.0.20", port=80, protocol="tcp", endpoints=())])
    assert "ip daddr 10.96.0.20 tcp dport 80 reject with tcp reset" in text
    assert "dnat" not in text


def test_a_pod_that_reaches_itself_through_a_service_is_masqueraded() -> None:
    text = ruleset([Forward(vip="10.96.0.20", port=80, protocol="tcp", endpoints=(("10.244.0.2", 8080),))])
    assert "ct status dnat ip saddr . ip daddr { 10.244.0.2 . 10.244.0.2 } masquerade" in text


def test_the_table_is_replaced_as_a_whole() -> None:
    lines = ruleset([]).splitlines()
    assert lines[:3] == [f"table inet {TABLE} {{}}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]


def test_equal_services_give_equal_text_whatever_their_order() -> None:
    one = Forward(vip="10.96.0.20", port=80, protocol="tcp", endpoints=(("10.244.0.2", 1),))
    other = Forward(vip="10.96.0.21", port=80, protocol="tcp", endpoints=())
    assert ruleset([one, other]) == ruleset([other, one])
