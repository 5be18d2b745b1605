# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: what wrk printed, medians over rounds, ratios. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_LATENCY = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SIZE = {"": 1.0, "K": 1024.0, "M": 1024.0**2, "G": 1024.0**3}


class OutputError(Exception):
    """A tool's output is not what was expected; holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrkResult:
    """One run of wrk."""

    requests: int
    requests_s: float
    bytes_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Responses other than 2xx and 3xx, and socket errors."""


def parse_wrk(text: str) -> WrkResult:
    """Parse what `wrk --latency` prints.

    Raises:
        OutputError: a figure is missing.
    """
    requests = _find(r"(\d+) requests in", text)
    size = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", text)
    if size is None:
        raise OutputError(f"no transfer rate in: {text}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return WrkResult(
        requests=int(requests),
        requests_s=float(_find(r"Requests/sec:\s+([\d.]+)", text)),
        bytes_s=float(size[1]) * _SIZE[size[2]],
        p50_ms=_latency(text, "50%"),
        p99_ms=_latency(text, "99%"),
        errors=(int(bad[1]) if bad else 0) + (sum(map(int, sockets.groups())) if sockets else 0),
    )


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise OutputError(f"no {pattern} in: {text}")
    return match[1]


def _latency(text: str, percentile: str) -> float:
    match = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s|m)\b", text)
    if match is None:
        raise OutputError(f"no {percentile} in: {text}")
    return float(match[1]) * _LATENCY[match[2]]


@dataclass(slots=True, kw_only=True)
class Series:
    """One figure of one subject under one load, round by round."""

    load: str
    subject: str
    metric: str
    unit: str
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds)

    def as_json(self) -> dict[str, object]:
        """Return its entry of results.json."""
        return {
            "load": self.load,
            "subject": self.subject,
            "metric": self.metric,
            "unit": self.unit,
            "rounds": self.rounds,
            "median": self.median,
        }


class Results:
    """All series of a run, in the order in which they came."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}

    def add(self, load: str, subject: str, metric: str, unit: str, value: float) -> None:
        """Add one round's value."""
        key = (load, subject, metric)
        if key not in self._series:
            self._series[key] = Series(load=load, subject=subject, metric=metric, unit=unit)
        self._series[key].rounds.append(value)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def table(self, baseline: str) -> str:
        """Format Markdown: a row a load and metric, a column a subject, ratios to `baseline`."""
        subjects = list(dict.fromkeys(series.subject for series in self._series.values()))
        lines = [
            "| load | figure | " + " | ".join(subjects) + " |",
            "|---|---|" + "---|" * len(subjects),
        ]
        for load, metric in dict.fromkeys((s.load, s.metric) for s in self._series.values()):
            cells = {s.subject: s for s in self._series.values() if (s.load, s.metric) == (load, metric)}
            unit = next(iter(cells.values())).unit
            row = [_cell(cells.get(subject), cells.get(baseline)) for subject in subjects]
            lines.append(f"| {load} | {metric}, {unit} | " + " | ".join(row) + " |")
        return "\n".join(lines)


def _cell(series: Series | None, baseline: Series | None) -> str:
    if series is None:
        return "-"
    spread = f" ({min(series.rounds):.4g}-{max(series.rounds):.4g})" if len(series.rounds) > 1 else ""
    ratio = ""
    if baseline is not None and baseline is not series and baseline.median:
        ratio = f", x{series.median / baseline.median:.2f}"
    return f"{series.median:.4g}{spread}{ratio}"


def describe(machine: Mapping[str, str]) -> str:
    """Format what the machine is, a line each."""
    return "\n".join(f"- {name}: {value}" for name, value in machine.items())
