# SPDX-License-Identifier: Apache-2.0
"""What panels are made of: the type, and the PromQL that many share."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "$__rate_interval"
PAIR = "source_workload, source_workload_namespace, destination_service_name, destination_service_namespace"
PAIR_LEGEND = "{{source_workload_namespace}}/{{source_workload}} to {{destination_service_name}}"
OF_WAYPOINTS = 'and on (instance) istio_build{component="waypoint"}'
"""Keeps the series of those instances that are waypoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph: expressions by legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""


def rated(metric: str, by: str, where: str = "") -> str:
    """Return a counter's rate, summed by some labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def success(metric: str, by: str, where: str, failed: str) -> str:
    """Return the share of what did not fail; 1 where nothing did."""
    group = f"by ({by}) " if by else ""
    everything = f"sum {group}(rate({metric}{{{where}}}[{RATE}]))"
    return f"1 - (sum {group}(rate({metric}{{{where},{failed}}}[{RATE}])) or 0 * {everything}) / {everything}"


def quantile(share: float, metric: str, by: str, where: str) -> str:
    """Return a quantile of a histogram, by some labels or (empty) of all."""
    group = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({group}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def percentiles(metric: str, by: str, legend: str, where: str) -> tuple[tuple[str, str], ...]:
    """Return the queries of a panel with the three usual quantiles."""
    return tuple(
        (f"{legend}{share * 100:g} %", quantile(share, metric, by, where)) for share in (0.5, 0.9, 0.99)
    )
