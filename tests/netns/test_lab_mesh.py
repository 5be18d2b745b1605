# SPDX-License-Identifier: Apache-2.0
"""The whole mesh in a lab: controller, agents, ztunnels and BPF, driven by YAML as a user would."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_bed import MANIFEST, ONLY_FRIEND, STRICT, Lab

from tests.support.eventually import eventually
from tests.support.kernel import needs_nftables

pytestmark = [
    pytest.mark.root,
    needs_nftables,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(240),
]

LAB = Lab("meshtest")
call, admin, log, ambit = LAB.call, LAB.admin, LAB.log, LAB.ambit


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A meshed lab of two nodes; policies are put and taken away by the tests."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        ambit("up", "-f", str(directory), "--nodes", "2")
        yield directory
    finally:
        LAB.run("down")


@pytest.fixture
def policy(lab: Path) -> Iterator[Callable[[str], None]]:
    """Apply policies and take them away again."""
    applied: list[Path] = []

    def put(text: str) -> None:
        path = lab.parent / f"policy{len(applied)}.yaml"
        path.write_text(text)
        ambit("apply", "-f", str(path))
        applied.append(path)

    yield put
    for path in applied:
        ambit("delete", "-f", str(path))
    eventually(lambda: call("snoop") == "got" and call("outsider") == "got", "policies are gone")


def test_a_service_is_reached_over_mutual_tls_with_identities_on_both_sides(lab: Path) -> None:
    assert call("friend") == "got"
    for node, direction in (("node2", "outbound"), ("node1", "inbound")):
        eventually(
            lambda node=node, direction=direction: any(
                'src.identity="spiffe://cluster.local/ns/shop/sa/friend"' in line
                and 'dst.identity="spiffe://cluster.local/ns/shop/sa/server"' in line
                and f'direction="{direction}"' in line
                for line in log(node).splitlines()
            ),
            f"an access log line on {node}",
        )


def test_both_families_and_the_pods_own_addresses_are_captured(lab: Path) -> None:
    (server,) = [w for w in admin("/debug/registry")["workloads"] if w["name"] == "server"]
    assert server["tunnel_protocol"] == "hbone"
    for address in server["addresses"]:
        host = f"[{address}]" if ":" in address else address
        assert call("friend", f"http://{host}:8080/") == "got"


def test_strict_refuses_who_has_no_identity(policy: Callable[[str], None]) -> None:
    assert call("outsider") == "got"
    policy(STRICT)
    eventually(lambda: call("outsider") == "refused", "the outsider is refused")
    assert call("friend") == "got"
    assert "istio_converted_static_strict" in log("node1") or "converted_peer_authentication" in log("node1")


def test_only_the_allowed_identity_gets_in_and_the_log_names_the_policy(
    policy: Callable[[str], None],
) -> None:
    policy(ONLY_FRIEND)
    eventually(lambda: call("snoop") == "refused", "the snoop is refused")
    assert call("friend") == "got"
    assert "shop/only-friend" in log("node1")


def test_a_policy_that_cannot_be_read_closes_and_says_where(lab: Path, policy: Callable[[str], None]) -> None:
    policy(ONLY_FRIEND.replace("action: ALLOW", "action: PERHAPS"))
    eventually(lambda: call("snoop") == "refused", "what cannot be read closes")
    reasons = [p for p in admin("/debug/problems")["problems"] if "only-friend" in p["object"]]
    assert reasons
    assert reasons[0]["severity"] == "error"


def test_a_running_pod_moves_out_and_in_with_the_same_process(policy: Callable[[str], None]) -> None:
    policy(STRICT)
    eventually(lambda: call("outsider") == "refused", "STRICT holds")

    def process() -> str:
        status = json.loads(ambit("get", "pod", "-n", "shop", "friend", "-o", "json"))["status"]
        return str(status["containerStatuses"][0].get("containerID") or status["startTime"])

    before = process()
    ambit("label", "pod", "shop/friend", "istio.io/dataplane-mode=none")
    eventually(lambda: call("friend") == "refused", "outside the mesh it is refused")
    ambit("label", "pod", "shop/friend", "istio.io/dataplane-mode-")
    eventually(lambda: call("friend") == "got", "inside again")
    assert process() == before


def test_the_controller_can_die_and_nobody_notices(lab: Path) -> None:
    ambit("restart", "controller")
    assert call("friend") == "got"
    eventually(lambda: len(admin("/debug/proxies")) == 2, "both ztunnels are back", 60)
    assert call("friend") == "got"


def test_a_bad_document_is_rejected_by_file_and_line_and_the_rest_stays(lab: Path) -> None:
    objects = LAB.state / "objects" / "Service" / "shop"
    bad = objects / "broken.yaml"
    bad.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: broken, namespace: shop, labels: {v: 1}}\n"
    )
    try:
        found = eventually(lambda: admin("/debug/problems")["rejected"], "the rejection is reported")
        assert found[0]["file"] == str(bad)
        assert "write it in quotes" in found[0]["reason"]
        assert call("friend") == "got"
    finally:
        bad.unlink()
    eventually(lambda: not admin("/debug/problems")["rejected"], "the rejection is gone")
