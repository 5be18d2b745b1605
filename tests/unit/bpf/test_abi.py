# SPDX-License-Identifier: Apache-2.0
import ctypes
import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf import abi

HEADER = (Path(abi.__file__).parent / "include/ambit_abi.h").read_text()


def members(enum: str) -> list[str]:
    body = re.search(rf"enum {enum} {{(.*?)}};", HEADER, re.DOTALL)
    assert body is not None
    return re.findall(r"AMBIT_(?:C_)?(\w+)\s*(?:=\s*\d+\s*)?,", body.group(1) + ",")


def test_counters_are_those_of_the_header_in_the_same_order() -> None:
    assert members("ambit_counter") == [counter.name for counter in abi.Counter] + ["COUNT"]
    assert [counter.value for counter in abi.Counter] == list(range(len(abi.Counter)))


def test_kinds_are_those_of_the_header() -> None:
    assert members("ambit_kind") == [kind.name for kind in abi.Kind]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT_OUTBOUND", abi.PORT_OUTBOUND),
        ("PORT_INBOUND", abi.PORT_INBOUND),
        ("PORT_HBONE", abi.PORT_HBONE),
        ("PORT_DNS", abi.PORT_DNS),
        ("CAPTURE_FIRST", abi.CAPTURE_FIRST),
        ("CAPTURE_COUNT", abi.CAPTURE_COUNT),
        ("MAX_ADDRESSES", abi.MAX_ADDRESSES),
        ("MAX_RESOLVERS", abi.MAX_RESOLVERS),
        ("MAX_SLOTS", abi.MAX_SLOTS),
        ("OPT_ORIGINAL_DST", abi.OPT_ORIGINAL_DST),
        ("OPT_SOURCE", abi.OPT_SOURCE),
        ("POD_DENY_NON_TCP", abi.POD_DENY_NON_TCP),
        ("COOKIE_CONSTANT", abi.COOKIE_CONSTANT),
    ],
)
def test_numbers_are_those_of_the_header(name: str, value: int) -> None:
    found = re.search(rf"#define AMBIT_{name} (\w+?)(?:ULL)?\n", HEADER)
    assert found is not None
    assert int(found.group(1), 0) == value


def test_capture_ports_are_a_power_of_two_as_the_mask_in_connect_needs() -> None:
    assert abi.CAPTURE_COUNT & (abi.CAPTURE_COUNT - 1) == 0


@pytest.mark.parametrize(
    "kind",
    [abi.Pod, abi.Flow, abi.Record, abi.Source, abi.ListenerKey, abi.SlotsKey, abi.Node, abi.Meta],
)
def test_structs_have_no_hidden_padding(kind: type[ctypes.Structure]) -> None:
    """A key with a gap would compare bytes that nobody set."""
    end = 0
    for name, *_ in kind._fields_:
        field = getattr(kind, name)
        assert field.offset == end, name
        end += field.size
    assert end == ctypes.sizeof(kind)


@pytest.mark.parametrize("text", ["10.1.2.3", "0.0.0.0", "fd00::1", "::1", "::", "2001:db8::ffff:1:2"])
def test_addresses_survive_both_ways(text: str) -> None:
    data = abi.encode_address(ip_address(text))
    assert len(data) == 16
    assert abi.decode_address(data) == ip_address(text)


def test_ipv4_and_its_mapped_form_are_one_address() -> None:
    mapped = ip_address("::ffff:10.1.2.3")
    assert abi.encode_address(ip_address("10.1.2.3")) == abi.encode_address(mapped)


def test_inner_map_comes_before_the_map_that_holds_it() -> None:
    names = [spec.name for spec in abi.map_specs(abi.Limits())]
    for spec in abi.map_specs(abi.Limits()):
        if spec.inner:
            assert names.index(spec.inner) < names.index(spec.name)


def test_limits_decide_sizes() -> None:
    sizes = {
        spec.name: spec.entries for spec in abi.map_specs(abi.Limits(pods=3, records=5, probes=7, ztunnels=2))
    }
    assert (sizes["pods"], sizes["records"], sizes["records_of_pod"]) == (3, 3, 5)
    assert (sizes["probes"], sizes["ztunnels"], sizes["addresses"]) == (7, 4, 3 * abi.MAX_ADDRESSES)
    assert sizes["listeners"] == 3 * 2 * 3 * abi.MAX_SLOTS


def test_no_map_forgets_live_entries() -> None:
    assert all("LRU" not in spec.type.name for spec in abi.map_specs(abi.Limits()))


def test_names_fit_the_kernels_15_bytes() -> None:
    for name in [spec.name for spec in abi.PROGRAMS]:
        assert len(name) <= 15
