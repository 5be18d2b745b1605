# SPDX-License-Identifier: Apache-2.0
"""Prometheus exposition of `Totals`: text format 0.0.4 or OpenMetrics, by the Accept header."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mesh.telemetry.metrics import Labels, Metric, MetricType
from mesh.telemetry.series import Totals


class TotalsCollector(Collector):
    """Turns totals into metric families at each scrape."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Family]:
        """Yield one family per metric, with all of its series."""
        grouped: dict[Metric, list[tuple[Labels, tuple[float, ...]]]] = {}
        for metric, labels, values in self._totals:
            grouped.setdefault(metric, []).append((labels, values))
        for metric, series in grouped.items():
            yield _family(metric, series)


def _family(metric: Metric, series: list[tuple[Labels, tuple[float, ...]]]) -> Family:
    if metric.kind is MetricType.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, values in series:
            buckets, running = [], 0.0
            for bound, count in zip((*map(str, metric.buckets), "+Inf"), values, strict=False):
                running += count
                buckets.append((bound, running))
            histogram.add_metric(labels, buckets, values[-1])
        return histogram
    kind = CounterMetricFamily if metric.kind is MetricType.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, values in series:
        family.add_metric(labels, values[0])
    return family


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Encode everything for a scraper.

    Returns:
        body and content type.
    """
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
