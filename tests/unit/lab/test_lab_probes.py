# SPDX-License-Identifier: Apache-2.0
"""Probes: read from a container, and their thresholds."""

from __future__ import annotations

from typing import Any

import pytest

from lab.probes import Probe, Verdict, parse_probe


def container(probe: dict[str, Any]) -> dict[str, Any]:
    return {"ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": probe}


def test_an_http_probe_of_a_named_port() -> None:
    value = {"httpGet": {"path": "/ok", "port": "http"}, "periodSeconds": 2, "failureThreshold": 5}
    probe = parse_probe(container(value), "readinessProbe")
    assert probe == Probe(kind="http", port=8080, path="/ok", period_s=2.0, failure_threshold=5)


def test_tcp_and_exec_probes() -> None:
    assert parse_probe(container({"tcpSocket": {"port": 5}}), "readinessProbe") == Probe(kind="tcp", port=5)
    found = parse_probe(container({"exec": {"command": ["a", "b"]}}), "readinessProbe")
    assert found == Probe(kind="exec", command=("a", "b"))


def test_no_probe() -> None:
    assert parse_probe({}, "readinessProbe") is None


@pytest.mark.parametrize(
    "value", [{"periodSeconds": 1}, {"httpGet": {"port": "nope"}}, {"grpc": {"port": 1}}]
)
def test_what_cannot_be_understood_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has (none|no port)"):
        parse_probe(container(value), "readinessProbe")


def test_thresholds_in_both_directions() -> None:
    verdict = Verdict(Probe(kind="tcp", success_threshold=2, failure_threshold=3), good=False)
    assert [verdict.take("") for _ in range(2)] == [False, True]
    assert [verdict.take("down") for _ in range(2)] == [False, False]
    assert not verdict.take(""), "a success in between starts the count anew"
    assert [verdict.take("down") for _ in range(3)] == [False, False, True]
    assert (verdict.good, verdict.reason) == (False, "down")
