# SPDX-License-Identifier: Apache-2.0
"""Access-log lines, as the proxies' own formatters write them, read back."""

from __future__ import annotations

import logging

import pytest

from cli.flow_log import parse_line
from mesh.telemetry.logging import Bare, LogFormat, fields, formatter

FIELDS = {
    "src.addr": Bare("10.244.1.6:45348"),
    "src.workload": "web-1",
    "src.namespace": "shop",
    "src.identity": "spiffe://cluster.local/ns/shop/sa/web",
    "dst.addr": Bare("10.244.0.3:15008"),
    "dst.hbone_addr": Bare("[fd00::3]:8080"),
    "dst.workload": "cart-1",
    "dst.namespace": "shop",
    "direction": "outbound",
    "bytes_sent": 116,
    "bytes_recv": 105,
    "duration": "10ms",
}


def written(how: LogFormat, name: str = "access", **more: object) -> str:
    record = logging.LogRecord(name, logging.INFO, "", 0, "connection complete", (), None)
    vars(record).update(fields({**FIELDS, **more}))  # type: ignore[dict-item]
    return formatter(how).format(record)


@pytest.mark.parametrize("how", [LogFormat.TEXT, LogFormat.JSON])
def test_both_formats_are_read_alike(how: LogFormat) -> None:
    flow = parse_line(written(how, reason=Bare("complete")), "node1")
    assert flow is not None
    assert (flow.source, flow.destination, flow.target) == ("shop/web-1", "shop/cart-1", "[fd00::3]:8080")
    assert (flow.verdict, flow.reason, flow.direction, flow.node) == (
        "forwarded",
        "complete",
        "outbound",
        "node1",
    )
    assert (flow.get("bytes_sent"), flow.get("duration")) == ("116", "10ms")
    assert flow.time.endswith(("Z", "+00:00"))


@pytest.mark.parametrize("how", [LogFormat.TEXT, LogFormat.JSON])
def test_quotes_and_blanks_in_an_error_survive(how: LogFormat) -> None:
    error = 'denied "x" = y\tby policy\n'
    flow = parse_line(written(how, reason=Bare("policy_denied"), error=error))
    assert flow is not None
    assert (flow.error, flow.verdict) == (error, "denied")


@pytest.mark.parametrize(
    ("reason", "error", "verdict"),
    [
        ("complete", "", "forwarded"),
        ("tunnel_unauthorized", "401", "denied"),
        ("connect_refused", "refused", "failed"),
    ],
)
def test_verdicts(reason: str, error: str, verdict: str) -> None:
    more = {"reason": Bare(reason), **({"error": error} if error else {})}
    flow = parse_line(written(LogFormat.TEXT, **more))
    assert flow is not None
    assert flow.verdict == verdict


def test_what_is_no_finished_connection_is_none() -> None:
    assert parse_line(written(LogFormat.TEXT)) is None
    assert parse_line(written(LogFormat.TEXT, "ztunnel", reason=Bare("complete"))) is None
    assert parse_line(written(LogFormat.JSON, "ztunnel", reason=Bare("complete"))) is None
    assert parse_line("") is None
    assert parse_line("{broken") is None


def test_peers_without_a_workload_are_their_addresses() -> None:
    line = written(LogFormat.JSON, reason=Bare("complete"))
    line = line.replace('"src.workload": "web-1", ', "").replace('"dst.workload": "cart-1", ', "")
    flow = parse_line(line)
    assert flow is not None
    assert (flow.source, flow.destination) == ("10.244.1.6", "[fd00::3]:8080")
