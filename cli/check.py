# SPDX-License-Identifier: Apache-2.0
"""`ambit check`: is all well, and what to do where it is not."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from cli.check_engine import Outcome, Result, State, run_checks
from cli.checks import all_checks
from cli.codes import EXIT_CHECK, EXIT_OK, EXIT_TIMEOUT, EXIT_WARNINGS
from cli.facts import Facts
from cli.options import add_common, duration
from cli.output import Screen, document, dump, fold, plural, say
from cli.target import Target, open_target

RETRY_S = 0.5
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.ERROR: "red", State.SKIPPED: "dim"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common(parser, formats=("table", "short", "json", "yaml"))
    parser.add_argument(
        "--wait",
        type=duration,
        default=0.0,
        metavar="DURATION",
        help="check again until all is well or this time is over (30s, 5m)",
    )
    parser.add_argument(
        "--fail-on", choices=("error", "warning"), default="error", help="what makes the exit code non-zero"
    )


def run(options: argparse.Namespace) -> int:
    """Check, print, and return 0, 2 (failed), 3 (warnings, if asked) or 124 (still so after --wait)."""
    target = open_target(options)
    began = time.monotonic()
    if options.wait:
        _wait(target, options, began + options.wait)
    screen = Screen.of(sys.stdout, options.color)
    if options.output in ("json", "yaml"):
        results = list(run_checks(all_checks(Facts(target))))
        print(dump(_document(results), options.output))
    else:
        results = _show(target, screen, short=options.output == "short")
        _conclude(target, results, screen, time.monotonic() - began)
    code = exit_code(results, options.fail_on)
    return EXIT_TIMEOUT if code and options.wait else code


def exit_code(results: Sequence[Result], fail_on: str) -> int:
    """Return the exit code for these results."""
    states = {r.outcome.state for r in results}
    if State.ERROR in states:
        return EXIT_CHECK
    return EXIT_WARNINGS if State.WARNING in states and fail_on == "warning" else EXIT_OK


def report(facts: Facts) -> dict[str, Any]:
    """Run every check and return the document of `-o json`."""
    return _document(list(run_checks(all_checks(facts))))


def _wait(target: Target, options: argparse.Namespace, deadline: float) -> None:
    told = ""
    while True:
        results = list(run_checks(all_checks(Facts(target))))
        if not exit_code(results, options.fail_on) or time.monotonic() >= deadline:
            return
        bad = next(r for r in results if r.outcome.state in (State.ERROR, State.WARNING))
        line = f"waiting: {bad.check.category}: {(bad.outcome.details or (bad.check.title,))[0]}"
        if line != told:
            say(line)
            told = line
        time.sleep(RETRY_S)
        target = target.fresh()


def _show(target: Target, screen: Screen, *, short: bool) -> list[Result]:
    """Print each category when its first result is there, each line as soon as it is known."""
    results: list[Result] = []
    for category, group in groupby(run_checks(all_checks(Facts(target))), lambda r: r.check.category):
        titled = False
        for result in group:
            results.append(result)
            if short and result.outcome.state is State.OK:
                continue
            if not titled:
                print(("\n" if len(results) > 1 and not short else "") + screen.paint(category, "bold"))
                titled = True
            for line in lines_of(result, screen):
                print(line)
            sys.stdout.flush()
    return results


def lines_of(result: Result, screen: Screen) -> list[str]:
    """Write one result."""
    outcome = result.outcome
    state = outcome.state
    sign = screen.paint(screen.glyph(state.value), _COLOURS[state])
    title = screen.paint(result.check.title, "dim" if state is State.SKIPPED else "")
    if state is State.OK:
        found = screen.paint(f" ({', '.join(outcome.details)})", "dim") if outcome.details else ""
        return [f"  {sign} {title}{found}"]
    lines = [f"  {sign} {title}"]
    indent = "      "
    if state is State.SKIPPED:
        return [*lines, *(screen.paint(f"{indent}skipped {detail}", "dim") for detail in outcome.details)]
    lines += [f"{indent}{detail}" for detail in outcome.details]
    if outcome.advice:
        lines.append(
            fold(f"what to do: {outcome.advice} ({outcome.code})", width=screen.width, indent=indent)
        )
    return lines


def _conclude(target: Target, results: Sequence[Result], screen: Screen, took_s: float) -> None:
    counts = {state: sum(r.outcome.state is state for r in results) for state in State}
    parts = [f"{plural(counts[State.OK], 'check')} passed"]
    if counts[State.ERROR]:
        parts.append(f"{counts[State.ERROR]} failed")
    if counts[State.WARNING]:
        parts.append(plural(counts[State.WARNING], "warning"))
    if counts[State.SKIPPED]:
        parts.append(f"{counts[State.SKIPPED]} skipped")
    worst = next(s for s in (State.ERROR, State.WARNING, State.OK) if counts[s] or s is State.OK)
    word = {State.ERROR: "something does not work", State.WARNING: "all works, with warnings"}.get(
        worst, "all is well"
    )
    print(f"\n{target.title}: {screen.paint(word, _COLOURS[worst])}: {', '.join(parts)} ({took_s:.1f} s)")
    if counts[State.ERROR] + counts[State.WARNING]:
        print(screen.paint("`ambit explain CODE` says more about a code", "dim"))


def _document(results: Sequence[Result]) -> dict[str, Any]:
    categories = [
        {"name": category, "checks": [_entry(r.check.key, r.check.title, r.outcome) for r in group]}
        for category, group in groupby(results, lambda r: r.check.category)
    ]
    return document(
        "CheckReport",
        success=not any(r.outcome.state is State.ERROR for r in results),
        categories=categories,
    )


def _entry(key: str, title: str, outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {"check": key, "title": title, "result": outcome.state.value}
    if outcome.code:
        entry["code"] = str(outcome.code)
    if outcome.details:
        entry["details"] = list(outcome.details)
    if outcome.state in (State.WARNING, State.ERROR):
        entry["remedy"] = outcome.advice
    return entry
