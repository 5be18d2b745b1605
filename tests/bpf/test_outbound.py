# SPDX-License-Identifier: Apache-2.0
"""What a pod dials reaches ztunnel with the destination that was asked for, and nothing else does."""

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.bpf.node import Node, Pod, Worker, in_netns, ip
from tests.support.eventually import eventually

FREEBIND, TRANSPARENT = 15, 19
TRANSPARENT6, FREEBIND6 = 75, 78
BINDTODEVICE = 25


def last(ztunnel: Worker) -> dict[str, object]:
    found: dict[str, object] = eventually(lambda: ztunnel.run("result = seen[-1] if seen else None"))
    return found


@pytest.mark.parametrize("destination", ["192.0.2.7", "2001:db8::7", "169.254.169.254"])
def test_connect_lands_on_ztunnel_with_its_original_destination(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker, destination: str
) -> None:
    got = app.call("attempt", destination, 8080)
    assert got["data"] == "outbound", (got, node.counted())
    seen = last(ztunnel)
    assert seen["original"] == [destination, 8080]
    assert seen["peer"] == got["local"]
    assert seen["data"] == "hi"


def test_source_record_names_the_callers_pod(node: Node, ztunnel: Worker, app: Worker, pod: Pod) -> None:
    app.call("attempt", "192.0.2.7", 8080)
    assert last(ztunnel)["source"] == [pod.cookie, node.maps.pods()[pod.cookie].workload_id, 0]


def test_v4_mapped_connect_is_captured_as_ipv4(ztunnel: Worker, app: Worker) -> None:
    got = app.call("attempt", "::ffff:192.0.2.7", 8080)
    assert got["data"] == "outbound"
    assert got["peer"] == ["::ffff:192.0.2.7", 8080]
    assert last(ztunnel)["original"] == ["192.0.2.7", 8080]


def test_original_destination_is_answered_on_both_levels(node: Node, pod: Pod, app: Worker) -> None:
    ztunnel = pod.worker(node.ztunnel_cgroup)
    ztunnel.run(
        "own = []\n"
        "def take(l):\n"
        "    c, _ = l.accept()\n"
        "    own.append([original(c), original(c, 41), source(c), source(c, 41)]); c.close()\n"
        "for l in (listen('127.0.0.1', 15001), listen('::1', 15001, socket.AF_INET6)):\n"
        "    threading.Thread(target=take, args=(l,), daemon=True).start()\n"
    )
    app.call("attempt", "192.0.2.9", 81, recv=False)
    app.call("attempt", "2001:db8::9", 82, recv=False)
    own = eventually(lambda: ztunnel.run("result = own if len(own) == 2 else None"))
    four, six = sorted(own, key=lambda one: one[0][1])
    assert four[:2] == [["192.0.2.9", 81], ["::ffff:192.0.2.9", 81]]
    assert six[:2] == [["2001:db8::9", 82], ["2001:db8::9", 82]]
    assert four[2] == four[3] == six[2] == six[3]


@pytest.mark.parametrize("destination", ["192.0.2.7", "2001:db8::7"])
def test_getpeername_shows_the_peer_that_was_asked_for(
    ztunnel: Worker, app: Worker, pod: Pod, destination: str
) -> None:
    got = app.call("attempt", destination, 8080)
    assert got["peer"] == [destination, 8080]
    assert got["local"][0] == (pod.ipv6 if ":" in destination else pod.ipv4)


@pytest.mark.parametrize("how", ["plain", "device", "bound"])
def test_clients_bound_to_a_device_or_the_pods_address_are_captured(
    ztunnel: Worker, app: Worker, pod: Pod, how: str
) -> None:
    options = [(socket.SOL_SOCKET, BINDTODEVICE, b"eth0\0")] if how == "device" else []
    got = app.call(
        "attempt", "192.0.2.7", 8080, options=options, bind=(pod.ipv4, 0) if how == "bound" else None
    )
    assert got["data"] == "outbound"


@pytest.mark.parametrize("destination", ["192.0.2.7", "2001:db8::7"])
def test_1000_of_1000_connect_send_close_clients_keep_their_original_destination(
    node: Node, pod: Pod, app: Worker, destination: str
) -> None:
    """The client is gone before ztunnel accepts: nothing of its record may go with it."""
    ztunnel = pod.worker(node.ztunnel_cgroup)
    address, family = ("::1", socket.AF_INET6) if ":" in destination else ("127.0.0.1", socket.AF_INET)
    ztunnel.run(f"late = listen({address!r}, 15001, {int(family)})")
    failed = 0
    taken: list[list[object]] = []
    for batch in range(4):
        failed += app.run(
            f"result = 0\n"
            f"for port in range({1000 + batch * 250}, {1250 + batch * 250}):\n"
            f"    s = socket.socket({int(family)}); s.settimeout(5)\n"
            f"    s.connect(({destination!r}, port)); s.sendall(str(port).encode()); s.close()\n"
        )
        taken += ztunnel.run(
            "result = []\n"
            "for _ in range(250):\n"
            "    c, _ = late.accept(); c.settimeout(5)\n"
            "    result.append([original(c), c.recv(64).decode()]); c.close()\n"
        )
    assert failed == 0
    assert len(taken) == 1000
    assert all(original == [destination, int(data)] for original, data in taken)  # type: ignore[call-overload]
    assert {int(data) for _, data in taken} == set(range(1000, 2000))  # type: ignore[call-overload]
    assert node.maps.records()[pod.cookie] == 0, "no record is left behind"


def test_400_connections_through_100_bound_local_ports_to_4_destinations(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker
) -> None:
    """Bound source ports: each 4-tuple to the same own address must still find a capture port of its own."""
    faults = app.run(
        "held, result = [], []\n"
        "for index in range(4):\n"
        "    for port in range(40000, 40100):\n"
        "        s = socket.socket(); s.settimeout(5)\n"
        "        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        f"        s.bind(({pod.ipv4!r}, port))\n"
        "        try:\n"
        "            s.connect((f'192.0.2.{index + 1}', 8080)); s.sendall(b'x'); held.append(s)\n"
        "        except OSError as error:\n"
        "            result.append([index, port, str(error)])\n"
    )
    assert faults == []
    seen = eventually(lambda: ztunnel.run("result = seen if len(seen) == 400 else None"))
    assert sorted({one["original"][0] for one in seen}) == [f"192.0.2.{index}" for index in range(1, 5)]
    assert len({(one["original"][0], one["peer"][1]) for one in seen}) == 400


def test_400_connections_through_a_port_range_of_100_to_4_destinations(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker
) -> None:
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    in_netns(pod.netns, lambda: path.write_text("41000 41099"))
    faults = app.run(
        "held, result = [], []\n"
        "for index in range(4):\n"
        "    for _ in range(100):\n"
        "        s = socket.socket(); s.settimeout(5)\n"
        "        try:\n"
        "            s.connect((f'192.0.2.{index + 1}', 8080)); s.sendall(b'x'); held.append(s)\n"
        "        except OSError as error:\n"
        "            result.append([index, str(error)])\n"
    )
    assert faults == []
    seen = eventually(lambda: ztunnel.run("result = seen if len(seen) == 400 else None"))
    assert all(41000 <= one["peer"][1] <= 41099 for one in seen)


@pytest.mark.parametrize(
    ("bind", "family"),
    [
        ("10.213.1.2", "AF_INET"),
        ("10.213.1.77", "AF_INET"),
        ("0.0.0.0", "AF_INET"),
        ("fd00:213:1::2", "AF_INET6"),
        ("fd00:213:1::77", "AF_INET6"),
        ("::", "AF_INET6"),
    ],
)
def test_one_bound_source_port_reaches_64_destinations_and_the_next_is_refused(
    node: Node, bind: str, family: str
) -> None:
    """Bound to the first address of the pod, to another of its own, or to none."""
    pod = node.pod("a")
    more = ("10.213.1.77", "fd00:213:1::77")
    ip("-n", pod.netns, "addr", "add", f"{more[0]}/24", "dev", "eth0")
    ip("-n", pod.netns, "addr", "add", f"{more[1]}/64", "dev", "eth0", "nodad")
    pod.enroll(addresses=tuple(ip_address(text) for text in (pod.ipv4, pod.ipv6, *more)))
    pod.ztunnel()
    destination = "192.0.2." if family == "AF_INET" else "2001:db8::"
    with node.counting() as grown:
        got = pod.worker().run(
            "held, result = [], []\n"
            "for index in range(65):\n"
            f"    s = socket.socket(socket.{family}); s.settimeout(5)\n"
            "    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            f"    s.bind(({bind!r}, 40500)); held.append(s)\n"
            "    try:\n"
            f"        s.connect(({destination!r} + str(index + 1), 8080)); result.append('ok')\n"
            "    except OSError as error:\n"
            "        result.append(errno.errorcode[error.errno])\n"
        )
    assert got == ["ok"] * 64 + ["EADDRNOTAVAIL"]
    assert grown["no_capture_port"] == 1


def test_bound_source_port_can_be_used_again_and_again_for_one_destination(
    pod: Pod, ztunnel: Worker, app: Worker
) -> None:
    """Each earlier connection is in TIME_WAIT on the client's side: else the second would fail."""
    got = app.run(
        "result = []\n"
        "for _ in range(60):\n"
        "    s = socket.socket(); s.settimeout(5); s.setsockopt(1, socket.SO_REUSEADDR, 1)\n"
        f"    s.bind(({pod.ipv4!r}, 40600)); s.connect(('192.0.2.7', 80)); s.close()\n"
        "    result.append('ok')\n"
    )
    assert got == ["ok"] * 60


def test_loopback_and_own_addresses_are_not_captured(pod: Pod, ztunnel: Worker, app: Worker) -> None:
    app.run("got = []; serve_both(7000, 'app', got)")
    for address in (
        "127.0.0.1",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        pod.ipv4,
        pod.ipv6,
        f"::ffff:{pod.ipv4}",
    ):
        assert app.call("attempt", address, 7000)["data"] == "app", address
    assert ztunnel.run("result = seen") == []


def test_pod_that_is_not_enrolled_is_left_alone(node: Node, pod: Pod, ztunnel: Worker) -> None:
    other = node.pod("b").worker()
    with node.counting() as grown:
        assert other.call("attempt", "127.0.0.1", 7001) == "ECONNREFUSED"
        assert other.call("attempt", node.pods[1].ipv4, 7001) == "ECONNREFUSED"
    assert grown == {}


def test_enrolled_without_ztunnel_is_refused_never_plain(node: Node, pod: Pod, app: Worker) -> None:
    server = node.pod("b")
    outside = server.worker()
    outside.run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
    with node.counting() as grown:
        assert app.call("attempt", server.ipv4, 8080) == "ECONNREFUSED"
        assert app.call("attempt", "2001:db8::7", 8080) == "ECONNREFUSED"
    assert grown["no_outbound"] == 2
    assert outside.run("result = got") == []
    assert node.maps.records()[pod.cookie] == 0, "a failed connect leaves no record"


def test_enrolled_without_sk_lookup_is_refused_never_plain(node: Node) -> None:
    pod, server = node.pod("a"), node.pod("b")
    pod.enroll(lookup=False)
    outside = server.worker()
    outside.run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
    pod.ztunnel()
    assert pod.worker().call("attempt", server.ipv4, 8080) == "ECONNREFUSED"
    assert outside.run("result = got") == []


def test_dead_ztunnel_is_refused_and_a_new_one_serves(node: Node, pod: Pod, app: Worker) -> None:
    first = pod.ztunnel()
    assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"
    first.close()
    pod.workers.remove(first)
    eventually(lambda: not node.maps.listeners(pod.cookie))
    assert app.call("attempt", "192.0.2.7", 80) == "ECONNREFUSED"
    pod.ztunnel()
    assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"


def test_family_that_the_pod_lacks_is_refused_by_name(node: Node) -> None:
    pod = node.pod("a")
    pod.enroll(addresses=(pod.record().addresses[0],))
    pod.ztunnel()
    with node.counting() as grown:
        assert pod.worker().call("attempt", "2001:db8::7", 80) == "ENETUNREACH"
    assert grown == {"no_address": 1}


def test_dialling_a_capture_port_without_a_record_is_dropped(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker
) -> None:
    with node.counting() as grown:
        for address in ("127.0.0.1", pod.ipv4, "::1", pod.ipv6):
            assert app.call("attempt", address, 15117) == "ECONNREFUSED", address
    assert grown == {"no_record": 4}
    assert ztunnel.run("result = seen") == []


def test_direct_dial_of_a_ztunnel_port_has_no_record(ztunnel: Worker, app: Worker) -> None:
    """It reaches a listener only where that is bound; there, both options answer ENOENT: ztunnel closes."""
    app.call("attempt", "127.0.0.1", 15001)
    seen = last(ztunnel)
    assert (seen["original"], seen["source"]) == ("ENOENT", "ENOENT")


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15100, 15163])
def test_pod_process_that_binds_a_ztunnel_or_capture_port_gets_nothing(
    pod: Pod, ztunnel: Worker, app: Worker, port: int
) -> None:
    app.run(f"stolen = []; serve(listen('0.0.0.0', {port}), 'thief', stolen)")
    app.run(f"serve(listen('::', {port}, socket.AF_INET6), 'thief', stolen)")
    for destination in ("192.0.2.7", "2001:db8::7") * 16:
        assert app.call("attempt", destination, 8080)["data"] == "outbound"
    assert app.run("result = stolen") == []


def test_pod_process_that_binds_ztunnels_port_first_gets_nothing(node: Node, pod: Pod, app: Worker) -> None:
    app.run("stolen = []; serve(listen('0.0.0.0', 15001), 'thief', stolen)")
    with node.counting() as grown:
        assert app.call("attempt", "192.0.2.7", 80) == "ECONNREFUSED"
    assert grown.get("listener_added", 0) == 0
    ztunnel = pod.worker(node.ztunnel_cgroup)
    ztunnel.run("seen = []; serve(listen('127.0.0.77', 15001), 'outbound', seen)")
    assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"
    assert app.run("result = stolen") == []


@pytest.mark.parametrize(
    ("destination", "bind", "option"),
    [
        ("192.0.2.7", "192.0.2.200", (socket.SOL_IP, TRANSPARENT, 1)),
        ("192.0.2.7", "127.0.0.9", (socket.SOL_IP, FREEBIND, 1)),
        ("2001:db8::7", "2001:db8::200", (socket.IPPROTO_IPV6, TRANSPARENT6, 1)),
        ("2001:db8::7", "2001:db8::200", (socket.IPPROTO_IPV6, FREEBIND6, 1)),
    ],
)
def test_forged_source_address_is_refused(
    node: Node, ztunnel: Worker, app: Worker, destination: str, bind: str, option: tuple[int, int, int]
) -> None:
    """A socket can bind an address that the pod has not; no record is made under it."""
    with node.counting() as grown:
        got = app.call("attempt", destination, 80, bind=(bind, 0), options=[option], timeout=0.5)
    assert isinstance(got, str), got
    assert grown.get("foreign_source") == 1
    assert "recorded" not in grown
    assert ztunnel.run("result = seen") == []


def test_free_bound_ipv4_source_gets_nowhere(node: Node, ztunnel: Worker, app: Worker) -> None:
    """Without IP_TRANSPARENT the kernel itself finds no route from an address that is not the host's."""
    with node.counting() as grown:
        got = app.call(
            "attempt", "192.0.2.7", 80, bind=("192.0.2.200", 0), options=[(socket.SOL_IP, FREEBIND, 1)]
        )
    assert isinstance(got, str), got
    assert "recorded" not in grown
    assert ztunnel.run("result = seen") == []


def test_quota_is_the_pods_own(bare: Node, bytecode: Path) -> None:
    """Connects whose handshake hangs fill one pod's quota, refuse its next, and do not touch a neighbour."""
    bare.load("--bytecode", bytecode, "--max-records", "4")
    greedy, neighbour = bare.pod("a"), bare.pod("b")
    greedy.enroll()
    neighbour.enroll()
    neighbour.ztunnel()
    stuck = greedy.worker(bare.ztunnel_cgroup)
    stuck.run("full = listen('127.0.0.1', 15001); full.listen(0)")
    app = greedy.worker()
    app.run(
        "held = []\n"
        "for index in range(12):\n"
        "    s = socket.socket(); s.setblocking(False); held.append(s)\n"
        "    s.connect_ex(('192.0.2.7', 80))\n"
    )
    eventually(lambda: bare.counted().get("record_quota"))
    assert bare.maps.fill()["records"] == (4, 4)
    assert app.call("attempt", "192.0.2.7", 80) == "ECONNREFUSED"
    assert neighbour.worker().call("attempt", "192.0.2.7", 80)["data"] == "outbound"
    app.run("for s in held: s.close()")
    eventually(lambda: bare.maps.records()[greedy.cookie] == 0)


def test_sweep_removes_only_records_whose_handshake_never_ended(bare: Node, bytecode: Path) -> None:
    bare.load("--bytecode", bytecode)
    pod = bare.pod("a")
    pod.enroll()
    stuck = pod.worker(bare.ztunnel_cgroup)
    stuck.run("full = listen('127.0.0.1', 15001); full.listen(0)")
    app = pod.worker()
    app.run(
        "held = []\n"
        "for index in range(4):\n"
        "    s = socket.socket(); s.setblocking(False); held.append(s)\n"
        "    s.connect_ex(('192.0.2.7', 80))\n"
    )
    waiting = eventually(lambda: bare.maps.records()[pod.cookie])
    assert bare.maps.sweep() == 0, "young records are somebody's handshake"
    assert bare.maps.sweep(max_age_s=-1) == waiting
    assert bare.maps.records()[pod.cookie] == 0


def test_reconnecting_socket_does_not_keep_an_earlier_destination(pod: Pod, app: Worker) -> None:
    """A TCP socket may connect again after a refusal; getpeername must then tell the new truth."""
    app.run("got = []; serve(listen('127.0.0.1', 7000), 'app', got)")
    got = app.run(
        "s = socket.socket(); s.settimeout(5)\n"
        "try:\n"
        "    s.connect(('192.0.2.7', 80)); first = 'connected'\n"
        "except OSError as error:\n"
        "    first = errno.errorcode[error.errno]\n"
        "try:\n"
        "    s.connect(('127.0.0.1', 7000))\n"
        "except ConnectionAbortedError:\n"
        "    s.connect(('127.0.0.1', 7000))\n"
        "result = [first, s.getpeername()]\n"
    )
    assert got == ["ECONNREFUSED", ["127.0.0.1", 7000]]


def test_ztunnels_own_connects_are_not_captured(node: Node, pod: Pod, ztunnel: Worker) -> None:
    outside = node.pod("b")
    server = outside.worker()
    server.run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
    assert ztunnel.call("attempt", outside.ipv4, 8080)["data"] == "plain"


def test_fast_open_is_captured(ztunnel: Worker, app: Worker) -> None:
    got = app.run(
        "s = socket.socket(); s.settimeout(None)\n"
        "s.sendto(b'hi', 0x20000000, ('192.0.2.7', 8080))\n"
        "result = [s.recv(64).decode(), s.getpeername()]\n"
    )
    assert got == ["outbound", ["192.0.2.7", 8080]]
    assert last(ztunnel)["original"] == ["192.0.2.7", 8080]


def test_multipath_tcp_is_captured(ztunnel: Worker, app: Worker) -> None:
    got = app.run(
        "try:\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
        "except OSError as error:\n"
        "    result = errno.errorcode[error.errno]\n"
        "else:\n"
        "    s.settimeout(5); s.connect(('192.0.2.7', 8080)); s.sendall(b'hi')\n"
        "    result = s.recv(64).decode()\n"
    )
    if got == "EPROTONOSUPPORT":
        pytest.skip("this kernel has no MPTCP")
    assert got == "outbound"
    assert last(ztunnel)["original"] == ["192.0.2.7", 8080]


def test_other_socket_options_keep_the_kernels_answer(ztunnel: Worker, app: Worker) -> None:
    got = app.run(
        "s = socket.socket(); s.connect(('192.0.2.7', 80))\n"
        "def ask(level, name, size):\n"
        "    try: return len(s.getsockopt(level, name, size))\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "os.setgroups(list(range(2000, 4000)))\n"
        "a, b = socket.socketpair()\n"
        "import ctypes\n"
        "buffer, size = ctypes.create_string_buffer(8000), ctypes.c_uint(8000)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "answer = libc.getsockopt(a.fileno(), 1, 59, buffer, ctypes.byref(size))\n"
        "result = [ask(6, 11, 1024) > 100, ask(0, 2, 4), ask(0, 80, 16), ask(0, 82, 16)]\n"
        "result += [answer, size.value]\n"
    )
    assert got[:2] == [True, 4]
    assert got[2] in ("ENOENT", "ENOPROTOOPT"), "an application's own socket has no record"
    assert got[3] == "ENOPROTOOPT"
    assert got[4:] == [0, 8000], "an answer longer than a page is left whole"
