# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address
from typing import Any

import pytest

from bpf import abi
from bpf.errors import LimitError
from bpf.maps import PodRecord, decode_pod, encode_pod


def pod(**changes: Any) -> PodRecord:
    fields: dict[str, Any] = {
        "netns_cookie": 77,
        "workload_id": 3,
        "addresses": (ip_address("10.0.0.1"),),
        **changes,
    }
    return PodRecord(**fields)


def addresses(count: int) -> tuple[abi.IpAddress, ...]:
    return tuple(ip_address(f"10.0.0.{index + 1}") for index in range(count))


@pytest.mark.parametrize(
    "record",
    [
        pod(),
        pod(deny_non_tcp=True),
        pod(addresses=(ip_address("10.0.0.1"), ip_address("fd00::1"))),
        pod(resolvers=(ip_address("10.96.0.10"), ip_address("fd00::a"))),
        pod(addresses=addresses(abi.MAX_ADDRESSES), resolvers=addresses(abi.MAX_RESOLVERS)),
        pod(netns_cookie=2**64 - 1, workload_id=2**32 - 1),
    ],
)
def test_record_survives_both_ways(record: PodRecord) -> None:
    assert decode_pod(record.netns_cookie, encode_pod(record)) == record


def test_first_address_of_each_family_is_where_connects_go() -> None:
    record = pod(addresses=tuple(ip_address(text) for text in ("fd00::2", "10.0.0.9", "10.0.0.8", "fd00::1")))
    value = abi.Pod.from_buffer_copy(encode_pod(record))
    assert abi.decode_address(bytes(value.self4.w)) == ip_address("10.0.0.9")
    assert abi.decode_address(bytes(value.self6.w)) == ip_address("fd00::2")


def test_family_without_an_address_stays_zero_which_connect_refuses() -> None:
    value = abi.Pod.from_buffer_copy(encode_pod(pod()))
    assert bytes(value.self6.w) == bytes(16)


def test_one_address_more_than_the_limit_is_refused_by_number() -> None:
    with pytest.raises(LimitError, match=r"9 addresses.*8"):
        encode_pod(pod(addresses=addresses(abi.MAX_ADDRESSES + 1)))


def test_one_nameserver_more_than_the_limit_is_refused_by_number() -> None:
    with pytest.raises(LimitError, match=r"4 nameservers.*3"):
        encode_pod(pod(resolvers=addresses(abi.MAX_RESOLVERS + 1)))


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_address_that_no_pod_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be a pod's address"):
        encode_pod(pod(addresses=(ip_address(text),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ()},
        {"addresses": addresses(1) * 2},
        {"netns_cookie": 0},
        {"netns_cookie": 2**64},
        {"workload_id": 0},
        {"workload_id": 2**32},
    ],
)
def test_record_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs addresses|out of range"):
        encode_pod(pod(**changes))
