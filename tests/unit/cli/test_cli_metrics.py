# SPDX-License-Identifier: Apache-2.0
"""Counters: the text format, growth, quantiles, and a Prometheus that answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from cli.codes import CliError, Code
from cli.metrics import add_up, growth, parse, quantile, query_prometheus

INF = float("inf")


def test_what_prometheus_client_writes_is_read_whole() -> None:
    registry = CollectorRegistry()
    counter = Counter("istio_tcp_sent_bytes", "help", ["a", "b"], registry=registry)
    counter.labels('quo"te', 'back\\slash\nline {x="1"}').inc(7)
    found = parse(generate_latest(registry).decode(), ("istio_tcp_sent_bytes_total",))
    labels = (("a", 'quo"te'), ("b", 'back\\slash\nline {x="1"}'))
    assert found == {("istio_tcp_sent_bytes_total", labels): 7.0}


def test_lines_that_are_none_are_skipped() -> None:
    assert parse('# HELP x y\n\nnonsense\nx{a="1"} word\nx 3 1700000000\ny NaN', ("x",)) == {("x", ()): 3.0}


def test_growth_counts_new_series_whole_and_restarts_from_zero() -> None:
    before = {("a", ()): 5.0, ("b", ()): 9.0}
    after = {("a", ()): 8.0, ("b", ()): 2.0, ("c", ()): 1.0}
    assert growth(before, after) == {("a", ()): 3.0, ("b", ()): 2.0, ("c", ()): 1.0}


def test_proxies_are_added_up() -> None:
    assert add_up([{("a", ()): 1.0}, {("a", ()): 2.0, ("b", ()): 3.0}]) == {("a", ()): 3.0, ("b", ()): 3.0}


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ({}, 0.5, None),
        ({10.0: 0.0, INF: 0.0}, 0.5, None),
        ({10.0: 10.0, INF: 10.0}, 0.5, 5.0),
        ({10.0: 50.0, 20.0: 100.0, INF: 100.0}, 0.75, 15.0),
        ({10.0: 50.0, INF: 100.0}, 0.99, 10.0),
    ],
)
def test_quantiles_as_prometheus_has_them(
    buckets: dict[float, float], q: float, expected: float | None
) -> None:
    assert quantile(buckets, q) == expected


class Handler(BaseHTTPRequestHandler):
    answer = b""
    status = 200
    queries: list[str]

    def do_GET(self) -> None:
        type(self).queries.append(parse_qs(urlparse(self.path).query)["query"][0])
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Answering", (Handler,), {"queries": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_prometheus_is_asked_for_growth(prometheus: tuple[str, type[Handler]]) -> None:
    url, handler = prometheus
    row = {"metric": {"__name__": "x", "b": "2", "a": "1"}, "value": [1, "4.5"]}
    handler.answer = json.dumps({"data": {"result": [row]}}).encode()
    assert query_prometheus(url, "x_total", 60) == {("x_total", (("a", "1"), ("b", "2"))): 4.5}
    assert handler.queries == ["increase(x_total[60s])"]


def test_a_prometheus_that_refuses_is_told(prometheus: tuple[str, type[Handler]]) -> None:
    url, handler = prometheus
    handler.status, handler.answer = 422, b"bad query"
    with pytest.raises(CliError, match="422: bad query"):
        query_prometheus(url, "x_total", 60)
    handler.status, handler.answer = 200, b"[]"
    with pytest.raises(CliError) as error:
        query_prometheus(url, "x_total", 60)
    assert error.value.code is Code.BAD_ANSWER


@pytest.mark.parametrize(
    ("url", "code"), [("file:///etc/passwd", Code.USAGE), ("http://127.0.0.1:1", Code.UNREACHABLE)]
)
def test_addresses_that_are_no_prometheus(url: str, code: Code) -> None:
    with pytest.raises(CliError) as error:
        query_prometheus(url, "x_total", 60)
    assert error.value.code is code
