# SPDX-License-Identifier: Apache-2.0
"""The store's lookup tables, against naive ones."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from mesh.model.workload import NamespacedHostname
from mesh.state.index import MultiIndex, RangeIndex


def name(text: str) -> NamespacedHostname:
    return NamespacedHostname(namespace="n", hostname=text)


def test_claims_keep_their_order_and_leave_nothing_behind() -> None:
    index: MultiIndex[str, int] = MultiIndex()
    for value in (2, 1, 2):
        index.add("k", value)
    assert index.get("k") == (2, 1)
    index.remove("k", 2)
    index.remove("k", 9)
    index.remove("other", 1)
    assert index.get("k") == (1,)
    index.remove("k", 1)
    assert (index.get("k"), len(index)) == ((), 0)


_RANGES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32), st.sampled_from(["a", "b", "c"])).map(
    lambda t: (ip_network((t[0], t[1]), strict=False), t[2])
)


@given(st.lists(_RANGES, max_size=8), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_the_longest_prefix_comes_first_as_in_a_linear_scan(
    ranges: list[tuple[object, str]], value: int, drop: int
) -> None:
    index = RangeIndex()
    kept = []
    for position, (cidr, text) in enumerate(ranges):
        index.add("net", cidr, name(text))  # type: ignore[arg-type]
        if position != drop or ranges.count((cidr, text)) > 1:
            kept.append((cidr, text))
        else:
            index.remove("net", cidr, name(text))  # type: ignore[arg-type]
    address = IPv4Address(value)
    found = list(index.find("net", address))
    around = [(cidr, text) for cidr, text in kept if address in cidr]  # type: ignore[operator]
    lengths = sorted({cidr.prefixlen for cidr, _ in around}, reverse=True)  # type: ignore[attr-defined]
    naive = [{name(t) for c, t in around if c.prefixlen == length} for length in lengths]  # type: ignore[attr-defined]
    assert [set(claimants) for claimants in found] == naive


def test_networks_and_families_are_apart_and_absent_claims_are_no_error() -> None:
    index = RangeIndex()
    index.add("east", ip_network("10.0.0.0/8"), name("a"))
    index.add("east", ip_network("::/0"), name("six"))
    assert list(index.find("west", ip_address("10.0.0.1"))) == []
    assert list(index.find("east", ip_address("10.0.0.1"))) == [(name("a"),)]
    assert list(index.find("east", ip_address("fd00::1"))) == [(name("six"),)]
    index.remove("east", ip_network("11.0.0.0/8"), name("a"))
    index.remove("east", ip_network("10.0.0.0/8"), name("a"))
    assert list(index.find("east", ip_address("10.0.0.1"))) == []
