# SPDX-License-Identifier: Apache-2.0
"""`node config`: rows that nodes share, filters, what is not there, log levels."""

from __future__ import annotations

import json

import pytest

from cli import __main__ as main
from cli import node as verb
from cli.node import merge_nodes
from cli.target import Answer
from mesh.runtime.surfaces import plain
from tests.support.fake_target import FakeTarget
from tests.support.mesh_builders import member, policy, service, workload


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    """Two nodes; node2 has not heard yet that cart is not ready."""
    both = [
        {
            "workloads": [
                plain(workload("web", "10.0.0.1")),
                plain(workload("cart", "10.0.0.2", services=member("cart"), healthy=healthy)),
            ],
            "services": [plain(service("cart", "10.96.0.1"))],
            "policies": [plain(policy("deny"))],
        }
        for healthy in (False, True)
    ]
    row = {"identity": "spiffe://cluster.local/ns/shop/sa/web", "state": "unavailable"}
    target = FakeTarget(
        node_names=("node1", "node2"),
        answers={
            ("ztunnel/node1", "/config_dump"): both[0],
            ("ztunnel/node2", "/config_dump"): both[1],
            ("ztunnel/node1", "/certs"): {"certificates": [row]},
            ("ztunnel/node2", "/certs"): {"certificates": []},
            ("ztunnel/node1", "/connections"): {"connections": []},
            ("ztunnel/node1", "/logging"): Answer(status=200, body=b"current log level is info\n"),
            ("ztunnel/node1", "/logging?level=loud"): Answer(status=400, body=b"loud is none\n"),
        },
    )
    monkeypatch.setattr(verb, "open_target", lambda _: target)
    return target


def config(*words: str) -> int:
    return main.main(["node", "config", *words])


def test_rows_that_all_have_are_shown_once(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert config("workload") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["ZTUNNEL", "NAMESPACE", "NAME"]
    assert [(line[0], line[2], line[-1]) for line in lines[1:]] == [
        ("node1", "cart", "no"),
        ("all", "web", "yes"),
        ("node2", "cart", "yes"),
    ]


def test_one_node_has_no_column(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert config("services", "node1", "--no-headers") == 0
    assert capsys.readouterr().out.split() == ["shop", "cart", "10.96.0.1", "-", "0/1", "80"]


def test_json_keeps_every_node(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert config("policy", "-o", "json") == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["node"], item["name"], item["action"]) for item in items] == [
        ("node1", "deny", "deny"),
        ("node2", "deny", "deny"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("workload", "--address", "10.0.0.2", "node1"), 0, "cart"),
        (("workload", "-n", "other"), 4, "no workload on node1, node2"),
        (("cert", "-n", "shop"), 0, "unavailable"),
        (("conn", "node1"), 4, "no conn on node1"),
        (("workload", "node3"), 1, "nodes are node1, node2"),
        (("log", "node1"), 0, "node1: current log level is info"),
        (("log", "node1", "--level", "loud"), 64, "node1: loud is none"),
    ],
)
def test_what_is_asked(
    mesh: FakeTarget, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert config(*words) == code
    assert said in "".join(capsys.readouterr())


def test_merging_keeps_order() -> None:
    rows = [("a", ["x"]), ("b", ["y"]), ("b", ["x"])]
    assert merge_nodes(rows, ("a", "b")) == [["all", "x"], ["b", "y"]]
