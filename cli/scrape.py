# SPDX-License-Identifier: Apache-2.0
"""Read the proxies' counters now, or over a window, from the nodes or from a Prometheus."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from cli.codes import CliError
from cli.metrics import SeriesKey, Values, add_up, growth, parse, query_prometheus, series
from cli.options import duration
from cli.output import Screen, say
from cli.target import Target
from cli.traffic import LATENCY, NAMES, PREFIXES, REQUESTS, Edge, edges

DEFAULT_WINDOW_S = 5.0
TICK_S = 0.25


def add_window(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which time is meant, and who is asked."""
    parser.add_argument(
        "--window",
        type=duration,
        metavar="DURATION",
        help=f"between two reads of the nodes (default {DEFAULT_WINDOW_S:g}s; with --prometheus 1m)",
    )
    parser.add_argument(
        "--since-start", action="store_true", help="everything since the proxies started, without waiting"
    )
    parser.add_argument("--prometheus", metavar="URL", help="ask this Prometheus instead of the nodes")


def scrape(target: Target) -> dict[SeriesKey, float]:
    """Add up the counters of every proxy; one that does not answer is told and left out.

    Raises:
        CliError: none answers.
    """
    parts = target.metric_parts()
    values: list[Values] = []
    failures: list[CliError] = []
    with ThreadPoolExecutor(max_workers=16) as pool:
        for future in [pool.submit(target.request, part, "/metrics") for part in parts]:
            try:
                values.append(parse(future.result().text, PREFIXES))
            except CliError as error:
                failures.append(error)
    if failures and not values:
        raise failures[0]
    for failure in failures:
        say(f"left out: {failure.what}")
    return add_up(values)


def read_edges(target: Target, options: argparse.Namespace) -> tuple[list[Edge], float]:
    """Return the edges of the time that the options mean, and its length; 0: since the proxies started."""
    if options.prometheus:
        window = options.window or 60.0
        found: dict[SeriesKey, float] = {}
        for name in (*NAMES, REQUESTS, LATENCY):
            found |= query_prometheus(options.prometheus, name, window)
        return edges(series(found)), window
    if options.since_start:
        return edges(series(scrape(target))), 0.0
    window = options.window or DEFAULT_WINDOW_S
    began = time.monotonic()
    before = scrape(target)
    _sleep(began + window)
    after = scrape(target)
    return edges(series(growth(before, after))), time.monotonic() - began


def _sleep(until: float) -> None:
    """Wait, and show on a terminal for how long."""
    shown = sys.stderr.isatty()
    glyphs = Screen.of(sys.stderr)
    while (left := until - time.monotonic()) > 0:
        if shown:
            print(f"\rwatching {glyphs.glyph('dot')} {left:.0f} s ", end="", file=sys.stderr, flush=True)
        time.sleep(min(TICK_S, left))
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
