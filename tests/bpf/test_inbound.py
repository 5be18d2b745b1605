# SPDX-License-Identifier: Apache-2.0
"""Who gets a connection that arrives in a pod: sk_lookup is the boundary."""

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from bpf.abi import MAX_SLOTS, Kind
from bpf.maps import Listener
from tests.bpf.node import Node, Pod, Worker, in_netns, ip
from tests.support.eventually import eventually


@pytest.fixture
def peer(node: Node, pod: Pod) -> Worker:
    """A process of a pod outside the mesh, on the same node."""
    return node.pod("b").worker()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_arriving_connection_goes_to_the_inbound_listener_whatever_the_application_binds(
    pod: Pod, ztunnel: Worker, app: Worker, peer: Worker, family: str
) -> None:
    address = getattr(pod, family)
    app.run("got = []; serve_both(8080, 'app', got)")
    got = peer.call("attempt", address, 8080)
    assert got["data"] == "inbound"
    seen = eventually(lambda: ztunnel.run("result = seen"))
    assert seen[0]["local"] == [address, 8080], "getsockname is the original destination"
    assert seen[0]["peer"] == got["local"], "the client's address is kept"
    assert app.run("result = got") == []


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_port_15008_goes_to_the_hbone_listener(pod: Pod, ztunnel: Worker, peer: Worker, family: str) -> None:
    assert peer.call("attempt", getattr(pod, family), 15008)["data"] == "hbone"


@pytest.mark.parametrize("port", [8080, 15001, 15006])
def test_every_other_port_goes_to_15006(pod: Pod, ztunnel: Worker, peer: Worker, port: int) -> None:
    assert peer.call("attempt", pod.ipv4, port)["data"] == "inbound"


def test_capture_ports_are_closed_to_strangers(node: Node, pod: Pod, ztunnel: Worker, peer: Worker) -> None:
    with node.counting() as grown:
        assert peer.call("attempt", pod.ipv4, 15100) == "ECONNREFUSED"
        assert peer.call("attempt", pod.ipv6, 15163) == "ECONNREFUSED"
    assert grown.keys() == {"no_record"}, "for that reason alone"


@pytest.mark.parametrize("port", [8080, 15006, 15008])
def test_without_a_listener_an_arriving_connection_is_dropped(
    node: Node, pod: Pod, app: Worker, peer: Worker, port: int
) -> None:
    """Also when a process of the pod listens there: plain traffic does not get past an absent ztunnel."""
    app.run(f"got = []; serve(listen('0.0.0.0', {port}), 'app', got)")
    with node.counting() as grown:
        assert peer.call("attempt", pod.ipv4, port) == "ECONNREFUSED"
    assert grown == {"no_hbone" if port == 15008 else "no_inbound": 1}
    assert app.run("result = got") == []


def test_pod_process_that_binds_ztunnels_ports_gets_no_arriving_connection(
    pod: Pod, ztunnel: Worker, app: Worker, peer: Worker
) -> None:
    app.run("stolen = []\nfor p in (15001, 15006, 15008): serve(listen('0.0.0.0', p), 'thief', stolen)")
    for _ in range(24):
        assert peer.call("attempt", pod.ipv4, 8080)["data"] == "inbound"
        assert peer.call("attempt", pod.ipv4, 15008)["data"] == "hbone"
    assert app.run("result = stolen") == []


def test_address_that_the_pod_added_itself_goes_to_15006_too(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker, peer: Worker
) -> None:
    ip("-n", pod.netns, "addr", "add", "10.213.77.7/32", "dev", "lo")
    ip("-n", node.netns, "route", "add", "10.213.77.7/32", "via", pod.ipv4)
    app.run("got = []; serve(listen('10.213.77.7', 8080), 'app', got)")
    assert peer.call("attempt", "10.213.77.7", 8080)["data"] == "inbound"
    seen = eventually(lambda: ztunnel.run("result = seen"))
    assert seen[0]["local"] == ["10.213.77.7", 8080]


def test_pod_that_adds_its_neighbours_address_reaches_only_its_own_ztunnel(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    """Listeners are keyed by the namespace's cookie, which is a constant of the instance, not by address."""
    other = node.pod("b")
    other.enroll()
    own = other.ztunnel()
    ip("-n", other.netns, "addr", "add", f"{pod.ipv4}/32", "dev", "lo")
    ip("-n", other.netns, "addr", "add", f"{pod.ipv6}/128", "dev", "lo", "nodad")
    process = other.worker()
    for address in (pod.ipv4, pod.ipv6):
        for port in (8080, 15001, 15006, 15008):
            process.call("attempt", address, port)
    assert ztunnel.run("result = seen") == []
    assert all(one["original"] != "ENOENT" for one in own.run("result = seen"))


def test_local_connections_of_the_pod_pass(pod: Pod, ztunnel: Worker, app: Worker) -> None:
    app.run("got = []; serve_both(7000, 'app', got)")
    for address in ("127.0.0.1", "::1", pod.ipv4, pod.ipv6):
        assert app.call("attempt", address, 7000)["data"] == "app"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_ztunnels_dial_from_the_clients_address_reaches_the_application(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker, peer: Worker, family: str
) -> None:
    """The application sees the client's address, and no other process can use that way in."""
    address, client = getattr(pod, family), getattr(node.pods[1], family)
    number, level, option = (2, 0, 19) if family == "ipv4" else (10, 41, 75)
    version = "-4" if family == "ipv4" else "-6"
    ip("-n", pod.netns, version, "rule", "add", "fwmark", "0x111", "lookup", "100")
    ip("-n", pod.netns, version, "route", "add", "local", "default", "dev", "lo", "table", "100")
    subprocess.run(
        ["ip", "netns", "exec", pod.netns, "sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=1"], check=True
    )
    app.run(f"got = []; serve(listen({address!r}, 8080, {number}), 'app', got)")
    with node.counting() as grown:
        got = ztunnel.call(
            "attempt", address, 8080, bind=(client, 0), options=[(1, 36, 0x111), (level, option, 1)]
        )
    assert got["data"] == "app", (got, grown)
    assert app.run("result = got")[0]["peer"][0] == client
    assert (grown["dial_recorded"], grown["dial_passed"]) == (1, 1)
    assert peer.call("attempt", address, 8080)["data"] == "inbound"
    assert node.maps.records()[pod.cookie] == 0


def test_application_on_15008_is_reached_by_ztunnels_dial_only(
    pod: Pod, ztunnel: Worker, app: Worker, peer: Worker
) -> None:
    app.run(f"got = []; serve(listen({pod.ipv4!r}, 15008), 'app', got)")
    assert ztunnel.call("attempt", pod.ipv4, 15008)["data"] == "app"
    assert peer.call("attempt", pod.ipv4, 15008)["data"] == "hbone"


def test_dual_stack_listener_serves_both_families(node: Node, pod: Pod, peer: Worker) -> None:
    """A ztunnel that binds [::] only, as Istio's may, works unchanged."""
    ztunnel = pod.worker(node.ztunnel_cgroup)
    ztunnel.run("seen = []; serve(listen('::', 15006, socket.AF_INET6, v6only=False), 'inbound', seen)")
    assert peer.call("attempt", pod.ipv4, 80)["data"] == "inbound"
    assert peer.call("attempt", pod.ipv6, 80)["data"] == "inbound"


def test_connections_are_spread_over_all_live_workers(node: Node, pod: Pod, peer: Worker) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    ztunnel.run(
        "seen = []; own = [listen('127.0.0.1', 15006) for _ in range(4)]\n"
        "for n, l in enumerate(own): serve(l, str(n), seen)"
    )
    assert {listener.slot for listener in node.maps.listeners(pod.cookie)} == {0, 1, 2, 3}
    got = peer.run(f"result = [attempt({pod.ipv4!r}, 80)['data'] for _ in range(400)]")
    shares = Counter(got)
    assert set(shares) == {"0", "1", "2", "3"}
    # 100 each expected, standard deviation 8.7: outside of six is a fault of the hash, not luck.
    assert all(48 < share < 152 for share in shares.values()), shares


def test_share_of_a_retired_listener_goes_evenly_to_the_others(node: Node, pod: Pod, peer: Worker) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    cookies = ztunnel.run(
        "seen = []; own = [listen('127.0.0.1', 15006) for _ in range(4)]\n"
        "for n, l in enumerate(own): serve(l, str(n), seen)\n"
        "result = [struct.unpack('=Q', l.getsockopt(1, SO_COOKIE, 8))[0] for l in own]"
    )
    assert {one.socket_cookie for one in node.maps.listeners(pod.cookie)} == set(cookies)
    assert node.maps.retire_listener(cookies[0])
    assert node.maps.retire_listener(cookies[1])
    assert not node.maps.retire_listener(cookies[0]), "it is no longer in the table"
    shares = Counter(peer.run(f"result = [attempt({pod.ipv4!r}, 80)['data'] for _ in range(400)]"))
    assert set(shares) == {"2", "3"}
    assert all(140 < share < 260 for share in shares.values()), shares


def test_retired_listener_still_accepts_what_its_queue_holds(node: Node, pod: Pod, peer: Worker) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    cookie = ztunnel.run(
        "old = listen('127.0.0.1', 15006); result = struct.unpack('=Q', old.getsockopt(1, SO_COOKIE, 8))[0]"
    )
    peer.run(f"held = [socket.create_connection(({pod.ipv4!r}, 80)) for _ in range(20)]")
    assert node.maps.retire_listener(cookie)
    assert peer.call("attempt", pod.ipv4, 80) == "ECONNREFUSED"
    assert ztunnel.run("result = len([old.accept() for _ in range(20)])") == 20


def test_closed_listener_frees_its_slot(node: Node, pod: Pod) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    ztunnel.run("a, b = listen('127.0.0.1', 15006), listen('127.0.0.1', 15006)")
    ztunnel.run("a.close()")
    assert {one.slot for one in node.maps.listeners(pod.cookie)} == {1}
    ztunnel.run("c = listen('127.0.0.1', 15006)")
    assert {one.slot for one in node.maps.listeners(pod.cookie)} == {0, 1}


def test_listener_beyond_the_last_slot_is_counted_and_gets_nothing(node: Node, pod: Pod) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    with node.counting() as grown:
        ztunnel.run(f"own = [listen('127.0.0.1', 15006) for _ in range({MAX_SLOTS + 1})]")
    assert grown == {"listener_added": MAX_SLOTS, "listener_full": 1}
    assert len(node.maps.listeners(pod.cookie)) == MAX_SLOTS


def test_listeners_are_those_of_the_pod_asked_for(node: Node, pod: Pod, ztunnel: Worker) -> None:
    other = node.pod("b")
    other.ztunnel(ipv6=False)
    assert {(one.family, one.kind) for one in node.maps.listeners(other.cookie)} == {
        (2, Kind.OUTBOUND),
        (2, Kind.INBOUND),
        (2, Kind.HBONE),
    }
    assert len(node.maps.listeners(pod.cookie)) == 6
    assert all(isinstance(one, Listener) for one in node.maps.listeners(pod.cookie))


def test_listener_of_a_process_that_is_not_ztunnel_never_enters_the_table(
    node: Node, pod: Pod, app: Worker
) -> None:
    app.run("own = [listen('0.0.0.0', p) for p in (15001, 15006, 15008)]")
    system = pod.worker(node.system_cgroup)
    system.run("own = [listen('127.0.0.1', p) for p in (15001, 15006, 15008)]")
    assert node.maps.listeners(pod.cookie) == frozenset()


def test_unenrolled_pod_is_reached_as_before(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker, peer: Worker
) -> None:
    app.run("got = []; serve(listen('0.0.0.0', 8080), 'app', got)")
    assert peer.call("attempt", pod.ipv4, 8080)["data"] == "inbound"
    pod.unenroll()
    assert peer.call("attempt", pod.ipv4, 8080)["data"] == "app"
    peer.run("out = []; serve(listen('0.0.0.0', 9090), 'plain', out)")
    assert app.call("attempt", node.pods[1].ipv4, 9090)["data"] == "plain"
    assert node.maps.pods() == {}
    fill = node.maps.fill()
    assert {name: used for name, (used, _) in fill.items() if used} == {"ztunnels": 1}


def test_dial_that_has_no_room_for_its_record_is_refused_and_does_not_loop(
    bare: Node, bytecode: Path
) -> None:
    """Without a record it would come back to ztunnel's own inbound listener."""
    bare.load("--bytecode", bytecode, "--max-records", "4")
    pod = bare.pod("a")
    pod.enroll()
    ztunnel = pod.worker(bare.ztunnel_cgroup)
    ztunnel.run("seen = []; serve(listen('127.0.0.1', 15006), 'inbound', seen)")
    app = pod.worker()
    app.run(f"full = listen({pod.ipv4!r}, 8080); full.listen(0)")
    ztunnel.run(
        "held = []\n"
        "for index in range(12):\n"
        "    s = socket.socket(); s.setblocking(False); held.append(s)\n"
        f"    s.connect_ex(({pod.ipv4!r}, 8080))\n"
    )
    assert bare.maps.records()[pod.cookie] == 4
    with bare.counting() as grown:
        assert ztunnel.call("attempt", pod.ipv4, 8080) == "ECONNREFUSED"
    assert grown == {"dial_quota": 1}
    assert ztunnel.run("result = seen") == []


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_syn_cookies_change_nothing(node: Node, pod: Pod, ztunnel: Worker, peer: Worker, family: str) -> None:
    """The listener is chosen a second time when the last segment of the handshake comes."""
    in_netns(pod.netns, lambda: Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2"))
    app = pod.worker()
    app.run("got = []; serve_both(8080, 'app', got)")
    address = getattr(pod, family)
    assert peer.call("attempt", address, 8080)["data"] == "inbound"
    assert app.call("attempt", "192.0.2.7" if family == "ipv4" else "2001:db8::7", 80)["data"] == "outbound"
    assert ztunnel.run("result = seen[-1]['original'][1]") == 80
    assert ztunnel.call("attempt", address, 8080)["data"] == "app"
    assert node.worker().call("attempt", address, 8080)["data"] == "app", "a probe"
    assert node.maps.records()[pod.cookie] == 0


def test_sweep_forgets_namespaces_that_are_neither_enrolled_nor_listened_in(
    node: Node, pod: Pod, ztunnel: Worker
) -> None:
    stray = node.pod("b")
    listening = stray.ztunnel()
    assert node.maps.fill()["slots"][0] == 12
    listening.close()
    stray.workers.remove(listening)
    eventually(lambda: not node.maps.listeners(stray.cookie))
    node.maps.sweep()
    assert node.maps.fill()["slots"][0] == 6, "those of the enrolled pod stay"
