# SPDX-License-Identifier: Apache-2.0
"""How much a waypoint has open now, for its metrics port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

Open = Mapping[str, int]
"""`hbone` (connections of clients), `tunnel` (in them), `upstream` (to endpoints), `pending` (for those)."""


class OpenCollector(Collector):
    """Asks at each scrape; holds no state of its own."""

    def __init__(self, count: Callable[[], Open]) -> None:
        self._count = count

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the one family."""
        family = GaugeMetricFamily(
            "ambit_waypoint_open",
            "Open now: hbone, tunnel (in those), upstream, and pending requests that wait for an upstream",
            labels=["kind"],
        )
        for kind, number in self._count().items():
            family.add_metric([kind], number)
        yield family
