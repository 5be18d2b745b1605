# SPDX-License-Identifier: Apache-2.0
"""Counters of proxies: read from the text format or a Prometheus, and what they grew by between two reads.

Pure but for `query_prometheus`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.codes import CliError, Code

TIMEOUT_S = 10.0

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)(?: \d+)?$")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels in order of their names."""
Values = Mapping[SeriesKey, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One series with its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str, wanted: Iterable[str] = ()) -> dict[SeriesKey, float]:
    """Read the Prometheus text format; `wanted` keeps only names that begin with one of these.

    Lines that are none are skipped: another version may say more than is known here.
    """
    prefixes = tuple(wanted)
    found: dict[SeriesKey, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or (prefixes and not line.startswith(prefixes)):
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        try:
            found[name, _labels(labels or "")] = float(value)
        except ValueError:
            continue
    return found


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, _unescape(value)) for name, value in _LABEL.findall(text)))


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value) if "\\" in value else value


def growth(before: Values, after: Values) -> dict[SeriesKey, float]:
    """Return what counters grew by; one that fell began anew and counts from 0."""
    found = {}
    for key, value in after.items():
        old = before.get(key, 0.0)
        found[key] = value - old if value >= old else value
    return found


def add_up(many: Iterable[Values]) -> dict[SeriesKey, float]:
    """Add the values of several proxies series by series."""
    total: dict[SeriesKey, float] = {}
    for values in many:
        for key, value in values.items():
            total[key] = total.get(key, 0.0) + value
    return total


def series(values: Values) -> list[Series]:
    """Return values as series with named labels."""
    return [Series(name, dict(labels), value) for (name, labels), value in values.items()]


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """Estimate a quantile from cumulative buckets (upper bound -> count) as Prometheus does; None: no data.

    Source: Prometheus, histogram_quantile (linear within the bucket; the last finite bound above it).
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = q * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank and count > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def query_prometheus(url: str, name: str, window_s: float) -> dict[SeriesKey, float]:
    """Ask a Prometheus by how much series of a name grew in a window.

    Raises:
        CliError: it does not answer, or refuses the question.
    """
    import urllib.error
    import urllib.parse
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise CliError(Code.USAGE, f"--prometheus {url!r} is no http:// or https:// address")
    window = f"{max(round(window_s), 1)}s"
    question = urllib.parse.urlencode({"query": f"increase({name}[{window}])"})
    address = f"{url.rstrip('/')}/api/v1/query?{question}"
    request = urllib.request.Request(address)  # noqa: S310 - the scheme is checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            value: Any = json.load(answer)
        return {
            (name, tuple(sorted((k, v) for k, v in row["metric"].items() if k != "__name__"))): float(
                row["value"][1]
            )
            for row in value["data"]["result"]
        }
    except urllib.error.HTTPError as error:
        detail = error.read(300).decode(errors="replace")
        raise CliError(Code.UNREACHABLE, f"{url} refused the query: {error.code}: {detail}") from error
    except (OSError, urllib.error.URLError) as error:
        raise CliError(
            Code.UNREACHABLE,
            f"{url} does not answer: {getattr(error, 'reason', error)}",
            remedy="check the address; without --prometheus the nodes' own metrics are read",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(Code.BAD_ANSWER, f"{url} answered with no Prometheus result") from error
