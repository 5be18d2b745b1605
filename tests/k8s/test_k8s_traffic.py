# SPDX-License-Identifier: Apache-2.0
"""Traffic between pods of two real nodes: what arrives, who it is taken for, what is seen on the wire."""

from __future__ import annotations

from tests.k8s.bed import Space, get, kubectl, ok, tcpdump
from tests.support.eventually import eventually

HBONE = 15008
MARK = "a-secret-between-two-nodes"


def enrolled(space: Space, *pods: str) -> None:
    """Wait until the pods are captured and ready."""
    space.ready()
    for pod in pods:
        eventually(lambda pod=pod: space.enrolled(pod), f"pod {pod} is enrolled")  # type: ignore[misc]


def test_between_nodes_only_tls_on_15008_is_seen(space: Space) -> None:
    space.server("web", node=2, body=MARK)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    client, web = space.address("client"), space.address("web")
    with tcpdump(node=1) as seen:
        assert ok(space.curl("client", f"http://{web}/")).strip() == MARK
        assert ok(space.curl("client", f"http://web.{space.name}/")).strip() == MARK
    between = seen.between(client, web)
    data = [segment for segment in between if segment.payload]
    assert data, "nothing passed between the nodes"
    assert all(HBONE in segment.ports for segment in between)
    first = {segment.source: segment.payload for segment in reversed(data)}
    # The first byte of each side: a TLS record of type handshake, version 3.x.
    assert all(payload[:2] == b"\x16\x03" for payload in first.values()), first
    assert not any(
        MARK.encode() in segment.payload or b"HTTP/1.1" in segment.payload for segment in seen.segments
    )


def test_the_same_request_outside_the_mesh_is_readable(outside: Space) -> None:
    """The capture of the test above would show plaintext, were there any."""
    outside.server("web", node=2, body=MARK)
    outside.client("client", node=1)
    outside.ready()
    with tcpdump(node=1) as seen:
        assert ok(outside.curl("client", f"http://{outside.address('web')}/")).strip() == MARK
    assert any(MARK.encode() in segment.payload for segment in seen.segments)
    assert not outside.enrolled("web")


def test_the_server_sees_the_clients_own_address(space: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    ok(space.curl("client", "http://web/"))
    log = ok(space.exec("web", "cat", "/var/log/nginx/access.log")).splitlines()
    callers = {line.split()[0] for line in log if "kube-probe" not in line}
    assert callers == {space.address("client")}


def test_pods_of_one_node_reach_each_other_and_themselves(space: Space) -> None:
    space.server("web", node=1)
    space.client("client", node=1)
    enrolled(space, "web", "client")
    assert ok(space.curl("client", "http://web/")).strip() == "hello"
    assert ok(space.curl("web", "http://web/")).strip() == "hello"


def test_mesh_and_outside_reach_each_other_in_plain(space: Space, outside: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    outside.server("web", node=2)
    outside.client("client", node=1)
    enrolled(space, "web", "client")
    outside.ready()
    assert ok(outside.curl("client", f"http://web.{space.name}/")).strip() == "hello"
    assert ok(space.curl("client", f"http://web.{outside.name}/")).strip() == "hello"


def test_a_label_brings_running_pods_in_and_out(outside: Space) -> None:
    outside.server("web", node=2)
    outside.client("client", node=1)
    outside.ready()
    mode = "istio.io/dataplane-mode"
    ok(kubectl("label", "namespace", outside.name, f"{mode}=ambient"))
    enrolled(outside, "web", "client")
    assert ok(outside.curl("client", "http://web/")).strip() == "hello"
    ok(kubectl("label", "namespace", outside.name, f"{mode}-"))
    for pod in ("web", "client"):
        eventually(lambda pod=pod: not outside.enrolled(pod), f"{pod} has left")  # type: ignore[misc]
    assert ok(outside.curl("client", "http://web/")).strip() == "hello"
    assert get("pod", "web", "-n", outside.name)["status"]["containerStatuses"][0]["restartCount"] == 0
