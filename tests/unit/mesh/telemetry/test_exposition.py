# SPDX-License-Identifier: Apache-2.0
"""The exposition, read back by prometheus_client's own parsers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mesh.telemetry.exposition import TotalsCollector, render
from mesh.telemetry.metrics import ACTIVE_PROXIES, DNS_REQUESTS, DNS_UPSTREAM_SECONDS
from mesh.telemetry.series import Recorder, Totals

LABELS = ("A", "udp", 'we"b\n', "v1")


def registry() -> CollectorRegistry:
    recorder, totals = Recorder(), Totals(max_series=10)
    recorder.add(DNS_REQUESTS, LABELS, 2)
    recorder.add(ACTIVE_PROXIES, (), 3)
    recorder.observe(DNS_UPSTREAM_SECONDS, LABELS, 0.05)
    recorder.observe(DNS_UPSTREAM_SECONDS, LABELS, 7)
    totals.apply("w", recorder.take(), 0)
    made = CollectorRegistry()
    made.register(TotalsCollector(totals))
    return made


def test_both_formats_say_the_same_and_escape_what_peers_chose() -> None:
    for accept, parse, kind in (
        ("", parse_text, "text/plain"),
        ("application/openmetrics-text; version=1.0.0", parse_openmetrics, "application/openmetrics-text"),
    ):
        body, content_type = render(registry(), accept)
        assert content_type.startswith(kind)
        samples = {
            (s.name, s.labels.get("le", "")): (s.value, s.labels)
            for family in parse(body.decode())
            for s in family.samples
        }
        count, labels = samples["istio_dns_requests_total", ""]
        assert (count, labels["source_canonical_service"]) == (2, 'we"b\n')
        assert samples["workload_manager_active_proxy_count", ""][0] == 3
        name = "istio_dns_upstream_request_duration_seconds"
        assert [samples[f"{name}_bucket", le][0] for le in ("0.01", "0.1", "5.0", "+Inf")] == [0, 1, 1, 2]
        assert samples[f"{name}_sum", ""][0] == 7.05
