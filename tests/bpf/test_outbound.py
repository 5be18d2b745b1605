# SPDX-License-Identifier: Apache-2.0
"""What a pod dials reaches ztunnel with the destination that was asked for, and nothing else does."""

from tests.bpf.node import Node, Pod, Worker, eventually


def test_connect_lands_on_ztunnel_with_its_original_destination(
    node: Node, pod: Pod, ztunnel: Worker, app: Worker
) -> None:
    got = app.call("attempt", "192.0.2.7", 8080)
    assert got["data"] == "outbound", (got, node.counted())
    seen = eventually(lambda: ztunnel.run("result = seen"))
    assert seen[0]["original"] == ["192.0.2.7", 8080]
    assert seen[0]["source"][0] == pod.cookie
    assert seen[0]["peer"] == got["local"]
