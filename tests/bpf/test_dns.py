# SPDX-License-Identifier: Apache-2.0
"""UDP to the pod's own nameservers goes to ztunnel's resolver; other UDP passes, or is denied where asked."""

from ipaddress import ip_address

import pytest

from tests.bpf.node import Node, Pod, Worker

RESOLVERS = ("10.96.0.10", "fd00:96::a", "10.96.0.11")

ASK = """
def ask(host, port, how, family=None):
    s = socket.socket(family or (socket.AF_INET6 if ':' in host else socket.AF_INET), socket.SOCK_DGRAM)
    s.settimeout(2)
    try:
        if how == 'connected':
            s.connect((host, port)); s.send(b'q')
            data, sender = s.recvfrom(64)
            assert sender[:2] == s.getpeername()[:2], [sender, s.getpeername()]
            return [data.decode(), list(sender[:2])]
        s.sendto(b'q', (host, port))
        data, sender = s.recvfrom(64)
        return [data.decode(), list(sender[:2])]
    except TimeoutError:
        return 'TIMEOUT'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    finally:
        s.close()
"""

ANSWER = """
def answer(host, port, name, family):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind((host, port)); s.settimeout(None)
    def run():
        while True:
            data, sender = s.recvfrom(512)
            s.sendto(name.encode(), sender)
    threading.Thread(target=run, daemon=True).start()
"""


@pytest.fixture
def pod(node: Node) -> Pod:
    pod = node.pod("a")
    pod.enroll(resolvers=tuple(ip_address(text) for text in RESOLVERS))
    return pod


@pytest.fixture
def resolver(node: Node, pod: Pod) -> Worker:
    worker = pod.worker(node.ztunnel_cgroup)
    worker.run(ANSWER)
    for index in range(3):
        worker.run(f"answer('127.0.0.1', {15053 + index}, 'four{index}', socket.AF_INET)")
        worker.run(f"answer('::1', {15053 + index}, 'six{index}', socket.AF_INET6)")
    return worker


@pytest.fixture
def app(pod: Pod) -> Worker:
    worker = pod.worker()
    worker.run(ASK)
    return worker


@pytest.mark.parametrize("how", ["connected", "sendto"])
@pytest.mark.parametrize(("index", "address"), list(enumerate(RESOLVERS)))
def test_query_reaches_the_resolvers_own_port_and_the_answer_bears_its_address(
    resolver: Worker, app: Worker, how: str, index: int, address: str
) -> None:
    name = ("six" if ":" in address else "four") + str(index)
    assert app.call("ask", address, 53, how) == [name, [address, 53]]


@pytest.mark.parametrize("how", ["connected", "sendto"])
def test_v4_mapped_query_is_redirected(resolver: Worker, app: Worker, how: str) -> None:
    assert app.call("ask", "::ffff:10.96.0.10", 53, how) == ["four0", ["::ffff:10.96.0.10", 53]]


@pytest.mark.parametrize("how", ["connected", "sendto"])
def test_other_resolvers_and_ports_pass(node: Node, resolver: Worker, app: Worker, how: str) -> None:
    other = node.pod("b")
    server = other.worker()
    server.run(ANSWER)
    server.run(
        "answer('0.0.0.0', 53, 'theirs', socket.AF_INET); answer('0.0.0.0', 5353, 'other', socket.AF_INET)"
    )
    assert app.call("ask", other.ipv4, 53, how) == ["theirs", [other.ipv4, 53]]
    assert app.call("ask", other.ipv4, 5353, how) == ["other", [other.ipv4, 5353]]


def test_without_ztunnel_a_query_gets_no_answer_from_elsewhere(app: Worker) -> None:
    assert app.call("ask", "10.96.0.10", 53, "connected") == "ECONNREFUSED"


def test_ztunnels_own_queries_are_not_redirected(node: Node, pod: Pod, resolver: Worker) -> None:
    """It forwards to the resolver that was asked: that must not come back to it."""
    resolver.run(ASK)
    with node.counting() as grown:
        assert resolver.call("ask", "10.96.0.10", 53, "sendto") == "TIMEOUT"
    assert grown == {}


def test_pod_without_resolvers_asks_as_before(node: Node) -> None:
    pod = node.pod("c")
    pod.enroll()
    app = pod.worker()
    app.run(ASK)
    with node.counting() as grown:
        assert app.call("ask", "10.96.0.10", 53, "sendto") == "TIMEOUT"
    assert grown == {}


def test_loopback_answer_on_another_port_keeps_its_address(pod: Pod, app: Worker) -> None:
    app.run(ANSWER)
    app.run("answer('127.0.0.1', 15060, 'own', socket.AF_INET)")
    assert app.call("ask", "127.0.0.1", 15060, "sendto") == ["own", ["127.0.0.1", 15060]]


def test_dns_over_tcp_arrives_at_15001_with_the_resolver_as_destination(pod: Pod, app: Worker) -> None:
    ztunnel = pod.ztunnel()
    assert app.call("attempt", "10.96.0.10", 53)["data"] == "outbound"
    assert ztunnel.run("result = seen")[0]["original"] == ["10.96.0.10", 53]


class TestDenyNonTcp:
    """`nonTcp: deny`: nothing leaves the pod but captured TCP and DNS."""

    @pytest.fixture
    def app(self, node: Node, pod: Pod, resolver: Worker) -> Worker:
        pod.enroll(resolvers=tuple(ip_address(text) for text in RESOLVERS), deny_non_tcp=True)
        worker = pod.worker()
        worker.run(ASK)
        return worker

    @pytest.mark.parametrize("how", ["connected", "sendto"])
    def test_udp_is_refused(self, node: Node, app: Worker, how: str) -> None:
        with node.counting() as grown:
            assert app.call("ask", "192.0.2.7", 4433, how) == "ECONNREFUSED"
            assert app.call("ask", "2001:db8::7", 4433, how) == "ECONNREFUSED"
            assert app.call("ask", "192.0.2.7", 53, how) == "ECONNREFUSED"
        assert grown == {"non_tcp_denied": 3}

    @pytest.mark.parametrize("how", ["connected", "sendto"])
    def test_dns_still_works(self, app: Worker, how: str) -> None:
        assert app.call("ask", "10.96.0.10", 53, how) == ["four0", ["10.96.0.10", 53]]

    @pytest.mark.parametrize("family", ["ipv4", "ipv6"])
    def test_a_datagram_from_outside_reaches_no_socket_of_the_pod(
        self, node: Node, pod: Pod, app: Worker, family: str
    ) -> None:
        app.run(ANSWER)
        host, number = ("0.0.0.0", "AF_INET") if family == "ipv4" else ("::", "AF_INET6")
        app.run(f"answer({host!r}, 7777, 'own', socket.{number})")
        outside = node.pod("b").worker()
        outside.run(ASK)
        with node.counting() as grown:
            # The first datagrams of a new namespace may be lost before they reach the pod.
            for _ in range(3):
                answer = outside.call("ask", getattr(pod, family), 7777, "connected")
                assert answer in ("ECONNREFUSED", "TIMEOUT")
        assert list(grown) == ["non_tcp_denied"]
        assert 1 <= grown["non_tcp_denied"] <= 3
        pod.enroll(resolvers=tuple(ip_address(text) for text in RESOLVERS))
        assert outside.call("ask", getattr(pod, family), 7777, "connected")[0] == "own", "control"

    def test_udp_within_the_pod_still_works(self, pod: Pod, app: Worker) -> None:
        app.run(ANSWER)
        app.run("answer('0.0.0.0', 7777, 'own', socket.AF_INET)")
        assert app.call("ask", "127.0.0.1", 7777, "sendto")[0] == "own"
        assert app.call("ask", pod.ipv4, 7777, "sendto")[0] == "own"

    @pytest.mark.parametrize(
        ("kind", "protocol"),
        [("SOCK_RAW", 1), ("SOCK_RAW", 255), ("SOCK_DGRAM", 1), ("SOCK_RAW", 6)],
        ids=["icmp", "raw", "ping", "raw-tcp"],
    )
    def test_raw_and_ping_sockets_are_refused(self, app: Worker, kind: str, protocol: int) -> None:
        got = app.run(
            "try:\n"
            f"    socket.socket(socket.AF_INET, socket.{kind}, {protocol}).close(); result = 'made'\n"
            "except OSError as error:\n"
            "    result = errno.errorcode[error.errno]\n"
        )
        assert got in ("EPERM", "EACCES")

    def test_tcp_is_captured_as_ever(self, pod: Pod, app: Worker) -> None:
        pod.ztunnel()
        assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"
