# SPDX-License-Identifier: Apache-2.0
"""Filters of flows: or within a flag, and between flags, not; replay; which of two reports is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import __main__ as main
from cli import flows as verb
from cli.flow_filter import matches
from cli.flow_log import Flow
from cli.flows import reported_twice
from tests.support.fake_target import FakeTarget


def flow(**more: Any) -> Flow:
    fields = {
        "src.addr": "10.0.0.1:4000",
        "src.workload": "web-5f7d-x2k",
        "src.namespace": "shop",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/web",
        "dst.addr": "10.0.0.2:15008",
        "dst.hbone_addr": "10.0.0.2:8080",
        "dst.service": "cart.shop.svc.cluster.local",
        "dst.workload": "cart",
        "dst.namespace": "store",
        "bytes_sent": "1",
        "bytes_recv": "2",
        "duration": "3ms",
    }
    own = {key: more.pop(key) for key in [k for k in more if "." in k]}
    values: dict[str, Any] = {
        "time": "2026-11-21T08:00:00.000000Z",
        "node": "node1",
        "verdict": "forwarded",
        "direction": "outbound",
        "reason": "complete",
        "error": "",
    }
    return Flow(**values | more, fields=fields | own)


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("", True),
        ("--from web", True),
        ("--from shop/web", True),
        ("--from store/web", False),
        ("--from we", False),
        ("--to cart", True),
        ("--pod cart", True),
        ("--from cart", False),
        ("--from cart --from web", True),
        ("--from web --to web", False),
        ("-n shop", True),
        ("-n other", False),
        ("--to-namespace shop", False),
        ("--not --to-namespace shop", True),
        ("--not --from web", False),
        ("--not --from cart --to cart", True),
        ("--service cart", True),
        ("--service shop/cart", True),
        ("--service store/cart", False),
        ("--service cart.shop.svc.cluster.local", True),
        ("--port 8080", True),
        ("--port 15008", False),
        ("--ip 10.0.0.0/30", True),
        ("--from-ip 10.0.0.2", False),
        ("--to-ip 10.0.0.2", True),
        ("--identity sa/web", True),
        ("--to-identity sa/web", False),
        ("--verdict denied", False),
        ("--verdict denied --verdict forwarded", True),
        ("--reason complete --direction outbound --node node1", True),
    ],
)
def test_filters(words: str, holds: bool) -> None:
    options = main.parse(["flows", *words.split()])
    assert matches(flow(), options.filters or []) is holds


@pytest.mark.parametrize("words", ["--ip nonsense", "--verdict good", "--since soon"])
def test_values_that_mean_nothing(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.parse(["flows", *words.split()])
    assert end.value.code == 64
    assert words.split()[1] in capsys.readouterr().err


def test_which_of_two_reports_is_kept() -> None:
    assert not reported_twice(flow())
    assert reported_twice(flow(direction="inbound"))
    assert not reported_twice(flow(direction="inbound", **{"src.identity": ""}))
    assert not reported_twice(flow(direction="inbound", verdict="denied", reason="policy_denied"))
    assert reported_twice(flow(verdict="denied", reason="tunnel_unauthorized"))


def line(name: str, second: int, reason: str = "complete") -> str:
    return (
        f"2026-11-21T08:00:0{second}.000000Z\tinfo\taccess\tconnection complete\t"
        f'src.addr=10.0.0.1:1 src.workload="{name}" src.namespace="shop" dst.addr=10.0.0.2:80 '
        f'direction="outbound" bytes_sent=1 bytes_recv=2 duration="1ms" reason={reason}'
    )


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    target = FakeTarget(
        node_names=("node1", "node2"),
        logs={"ztunnel/node1": [line("a", 1), line("c", 3)], "ztunnel/node2": [line("b", 2), "other"]},
    )
    monkeypatch.setattr(verb, "open_target", lambda _: target)
    return target


def test_flows_of_all_nodes_in_order_of_time(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["flows", "-o", "json"]) == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["src.workload"] + row["node"][-1] for row in rows] == ["a1", "b2", "c1"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--last 1", "c"),
        ("--first 2", "ab"),
        ("--last 0", ""),
        ("--since 2026-11-21T08:00:02Z", "bc"),
        ("--until 2026-11-21T08:00:02+00:00", "ab"),
        ("--from b", "b"),
    ],
)
def test_which_flows(mesh: FakeTarget, capsys: pytest.CaptureFixture[str], words: str, names: str) -> None:
    assert main.main(["flows", "-o", "json", *words.split()]) == (0 if names else 4)
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert "".join(row["src.workload"] for row in rows) == names


def test_what_was_written_can_be_replayed(
    mesh: FakeTarget, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main.main(["flows", "-o", "json"])
    path = tmp_path / "flows.json"
    path.write_text(capsys.readouterr().out)
    assert main.main(["flows", "--input-file", str(path), "--from", "a", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["src.workload"] == "a"
    path.write_text('{"verdict": 3\n')
    assert main.main(["flows", "--input-file", str(path)]) == 65
    assert f"{path}:1: is no flow" in capsys.readouterr().err


def test_a_table_cannot_be_followed(mesh: FakeTarget, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["flows", "-f", "-o", "table"]) == 64
    assert "-o compact" in capsys.readouterr().err


def test_not_needs_a_filter(mesh: FakeTarget) -> None:
    assert main.main(["flows", "--not"]) == 64
