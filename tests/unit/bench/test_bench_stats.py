# SPDX-License-Identifier: Apache-2.0
"""wrk's output, medians and ratios, and arguments that are refused."""

from __future__ import annotations

import pytest

from bench.__main__ import EX_USAGE, parse
from bench.stats import OutputError, Results, parse_wrk

WRK = """Running 2s test @ http://127.0.0.1:1/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   562.72us  210.10us   9.58ms   93.35%
  Latency Distribution
     50%  530.00us
     75%  606.00us
     90%    1.20ms
     99%    1.05s
  57345 requests in 2.10s, 18.43MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 4
Requests/sec:  27306.11
Transfer/sec:      8.78MB
"""


def test_wrk_is_read_in_its_units() -> None:
    result = parse_wrk(WRK)
    assert (result.requests, result.requests_s, result.errors) == (57345, 27306.11, 10)
    assert (result.p50_ms, result.p99_ms) == (0.53, 1050.0)
    assert result.bytes_s == pytest.approx(8.78 * 2**20)


@pytest.mark.parametrize("lost", ["requests in", "Requests/sec", "Transfer/sec", "50%", "99%"])
def test_a_missing_figure_is_named_not_guessed(lost: str) -> None:
    with pytest.raises(OutputError, match="no "):
        parse_wrk(WRK.replace(lost, "?"))


def test_the_table_has_medians_spread_and_ratios() -> None:
    results = Results()
    for value in (10.0, 30.0, 20.0):
        results.add("c1", "ambit", "requests", "1/s", value)
    results.add("c1", "envoy", "requests", "1/s", 40.0)
    results.add("c1", "ambit", "p99", "ms", 1.0)
    assert results.table("envoy").splitlines() == [
        "| load | figure | ambit | envoy |",
        "|---|---|---|---|",
        "| c1 | requests, 1/s | 20 (10-30), x0.50 | 40 |",
        "| c1 | p99, ms | 1 | - |",
    ]
    assert next(iter(results)).as_json() == {
        "load": "c1",
        "subject": "ambit",
        "metric": "requests",
        "unit": "1/s",
        "rounds": [10.0, 30.0, 20.0],
        "median": 20.0,
    }


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing"], ["--rounds", "0"], ["--peer", "x"], ["--peer", "envoy=cmd"], ["--subject", "x"]],
)
def test_arguments_that_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == EX_USAGE
    assert "bench: " in capsys.readouterr().err


def test_a_peers_command_may_hold_equals_signs() -> None:
    assert parse(["--peer", "x=cmd --a=b"]).peer == ["x=cmd --a=b"]
