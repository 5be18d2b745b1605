# SPDX-License-Identifier: Apache-2.0
"""Every limit at its limit: refused by name, reported, and nothing that was there is lost."""

from ipaddress import ip_address

import pytest

from bpf import abi
from bpf.bytecode import Bytecode
from bpf.errors import LimitError
from tests.bpf.node import Node
from tests.support.eventually import eventually


def test_pod_beyond_the_limit_is_refused_and_the_others_stay(bare: Node, code: Bytecode) -> None:
    bare.load_here(code, limits=abi.Limits(pods=2))
    first, second, third = bare.pod("a"), bare.pod("b"), bare.pod("c")
    first.enroll()
    second.enroll()
    with pytest.raises(LimitError, match=r"2 pods are enrolled.*--max-pods"):
        bare.maps.enroll(third.record())
    assert bare.maps.pods().keys() == {first.cookie, second.cookie}
    assert bare.maps.fill()["pods"] == (2, 2)
    assert bare.maps.fill()["addresses"][0] == 4
    second.enroll()  # one that is enrolled can still be changed
    second.unenroll()
    third.enroll()
    assert bare.maps.pods().keys() == {first.cookie, third.cookie}


def test_ztunnel_cgroup_beyond_the_limit_is_refused_before_any_is_written(bare: Node, code: Bytecode) -> None:
    bare.load_here(code, limits=abi.Limits(ztunnels=2))
    bare.maps.set_ztunnel(frozenset({7, 8}))
    with pytest.raises(LimitError, match="3 ztunnel cgroups, 2"):
        bare.maps.set_ztunnel(frozenset({1, 2, 3}))
    assert bare.maps.ztunnel() == {7, 8}


def test_probe_beyond_the_limit_goes_to_ztunnel_and_is_counted(bare: Node, code: Bytecode) -> None:
    """It is then like any stranger's connection: never a way around the mesh."""
    bare.load_here(code, limits=abi.Limits(probes=2))
    pod = bare.pod("a")
    pod.enroll()
    pod.ztunnel()
    pod.worker().run("full = listen('0.0.0.0', 8080); full.listen(0)")
    kubelet = bare.worker()
    kubelet.run(
        f"held = [socket.create_connection(({pod.ipv4!r}, 8080))]\n"
        "for _ in range(8):\n"
        "    s = socket.socket(); s.setblocking(False); held.append(s)\n"
        f"    s.connect_ex(({pod.ipv4!r}, 8080))\n"
    )
    eventually(lambda: bare.maps.fill()["probes"] == (2, 2))
    with bare.counting() as grown:
        assert isinstance(kubelet.call("attempt", pod.ipv4, 8080, recv=False), dict)
    assert (grown["probe_quota"], grown["to_inbound"]) == (1, 1)
    kubelet.run("for s in held: s.close()")
    eventually(lambda: bare.maps.fill()["probes"][0] == 0)


def test_enrolling_again_changes_the_record_and_keeps_the_listeners(node: Node) -> None:
    pod = node.pod("a")
    first = pod.enroll()
    pod.ztunnel()
    listeners = node.maps.listeners(pod.cookie)
    second = pod.enroll(addresses=(first.addresses[0], ip_address("10.213.1.77")), deny_non_tcp=True)
    assert node.maps.pods() == {pod.cookie: second}
    assert node.maps.listeners(pod.cookie) == listeners
    assert node.maps.fill()["addresses"][0] == 2, "the address that left is forgotten"
    assert pod.worker().call("attempt", "192.0.2.7", 80)["data"] == "outbound"


def test_all_eight_addresses_are_the_pods_own(node: Node) -> None:
    pod = node.pod("a")
    own = tuple(ip_address(f"10.213.1.{index}") for index in range(2, 2 + abi.MAX_ADDRESSES))
    pod.enroll(addresses=own)
    app = pod.worker()
    pod.ztunnel()
    for address in own:
        got = app.call("attempt", str(address), 9999, timeout=1)
        assert got in ("ECONNREFUSED", "EHOSTUNREACH", "TIMEOUT"), "not captured: dialled as the pod's own"
    assert node.maps.counters()["captured"] == 0
    assert app.call("attempt", "10.213.1.10", 80)["data"] == "outbound", "the next is somebody else's"
