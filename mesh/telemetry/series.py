# SPDX-License-Identifier: Apache-2.0
"""Values of metrics: a `Recorder` counts in a worker, `Totals` sums over workers.

Pure bookkeeping; time comes in as an argument. The number of series is bounded: what
exceeds the cap is counted in one overflow series per metric, never lost and never unbounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mesh.telemetry.metrics import BY_NAME, SERIES_DROPPED, Labels, Metric, MetricType

OVERFLOW = "overflow"
"""Value of every label of the series that takes what exceeds the cap."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one series grew by since the last report; one number, or a histogram's cells."""

    metric: str
    labels: Labels
    values: tuple[float, ...]


class Recorder:
    """Sums increments until they are taken; loop thread only, O(1) an increment."""

    def __init__(self) -> None:
        self._pending: dict[tuple[Metric, Labels], list[float]] = {}
        self._declared: set[tuple[Metric, Labels]] = set()

    def add(self, metric: Metric, labels: Labels = (), value: float = 1.0) -> None:
        """Add to a counter or gauge."""
        cells = self._pending.get((metric, labels))
        if cells is None:
            self._pending[metric, labels] = [value]
        else:
            cells[0] += value

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Add one observation to a histogram."""
        cells = self._pending.setdefault((metric, labels), [0.0] * metric.width)
        for index, amount in enumerate(metric.observe(value)):
            cells[index] += amount

    def declare(self, metric: Metric, labels: Labels) -> None:
        """Let a series be seen before it is above 0; once."""
        self._declared.add((metric, labels))
        self.add(metric, labels, 0.0)

    def merge(self, metric: Metric, labels: Labels, values: Iterable[float]) -> None:
        """Add a histogram's cells that were counted elsewhere."""
        cells = self._pending.setdefault((metric, labels), [0.0] * metric.width)
        for index, amount in enumerate(values):
            cells[index] += amount

    def take(self) -> list[Delta]:
        """Return what was recorded since the last call, and start again."""
        taken = [
            Delta(metric.name, labels, tuple(cells))
            for (metric, labels), cells in self._pending.items()
            if any(cells) or (metric, labels) in self._declared
        ]
        self._declared.clear()
        self._pending.clear()
        return taken


@dataclass(slots=True)
class _Series:
    values: list[float]
    touched_s: float
    by_source: dict[str, float] = field(default_factory=dict)
    """Gauges only: what each source contributed, to be taken back when it dies."""


class Totals:
    """Sums of all sources; bounded by `max_series` per metric, idle series evicted on request."""

    def __init__(self, *, max_series: int) -> None:
        self.max_series = max_series
        self._series: dict[Metric, dict[Labels, _Series]] = {}

    def apply(self, source: str, deltas: Iterable[Delta], now_s: float) -> None:
        """Add one source's report; a metric that is not known is ignored (an older or newer worker)."""
        for delta in deltas:
            metric = BY_NAME.get(delta.metric)
            if metric is None or len(delta.values) != metric.width or len(delta.labels) != len(metric.labels):
                continue
            self._add(metric, source, delta.labels, delta.values, now_s)

    def _add(
        self, metric: Metric, source: str, labels: Labels, values: tuple[float, ...], now_s: float
    ) -> None:
        family = self._series.setdefault(metric, {})
        series = family.get(labels)
        if series is None and len(family) >= self.max_series and metric is not SERIES_DROPPED:
            self._add(SERIES_DROPPED, source, (metric.name,), (1.0,), now_s)
            labels = (OVERFLOW,) * len(metric.labels)
            series = family.get(labels)
        if series is None:
            series = family[labels] = _Series([0.0] * metric.width, now_s)
        for index, value in enumerate(values):
            series.values[index] += value
        series.touched_s = now_s
        if metric.kind is MetricType.GAUGE:
            series.by_source[source] = series.by_source.get(source, 0.0) + values[0]

    def forget(self, source: str) -> None:
        """Take back a dead source's gauges; its counters stay, they happened."""
        for metric, family in self._series.items():
            if metric.kind is MetricType.GAUGE:
                for series in family.values():
                    series.values[0] -= series.by_source.pop(source, 0.0)

    def evict(self, before_s: float) -> int:
        """Drop counter series that nothing was added to since `before_s`; return how many."""
        evicted = 0
        for metric, family in self._series.items():
            if metric.kind is MetricType.GAUGE:
                continue
            idle = [labels for labels, series in family.items() if series.touched_s < before_s and labels]
            for labels in idle:
                del family[labels]
            evicted += len(idle)
        return evicted

    def __iter__(self) -> Iterator[tuple[Metric, Labels, tuple[float, ...]]]:
        for metric, family in self._series.items():
            for labels, series in family.items():
                yield metric, labels, tuple(series.values)

    def __len__(self) -> int:
        return sum(len(family) for family in self._series.values())
