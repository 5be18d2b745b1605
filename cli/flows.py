# SPDX-License-Identifier: Apache-2.0
"""`ambit flows` and `ambit tap`: connections that ended, as the nodes' proxies wrote them down.

Reads the access logs; `--input-file` replays what `-o json` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.codes import EXIT_NO_DATA, EXIT_OK, CliError, Code
from cli.flow_filter import Filter, add_filters, matches
from cli.flow_log import Flow, parse_line
from cli.options import add_common, duration
from cli.output import Screen, dump, say, table
from cli.target import Part, Target, open_target

DEFAULT_LAST = 20
SEARCHED = 50_000
"""Lines of each node's log that are looked through."""
_COLOURS = {"forwarded": "green", "denied": "red", "failed": "red"}
STDIN = "-"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `flows`, or those of `tap`, which always follows."""
    if parser.get_default("verb") == "tap":
        parser.add_argument("names", metavar="POD", nargs="*", help="from or to these pods or Deployments")
        parser.set_defaults(follow=True, last=None, first=None, since=None, until=None, input_file=None)
    else:
        parser.add_argument("--last", type=int, metavar="N", help=f"only the last N (default {DEFAULT_LAST})")
        parser.add_argument("--first", type=int, metavar="N", help="only the first N")
        parser.add_argument(
            "--since", type=moment, metavar="DURATION|TIME", help="not older (5m, or ISO 8601)"
        )
        parser.add_argument("--until", type=moment, metavar="DURATION|TIME", help="not younger")
        parser.add_argument("-f", "--follow", action="store_true", help="print new ones as they come")
        parser.add_argument(
            "--input-file", metavar="FILE", help="read flows of -o json, or a log, instead; - is stdin"
        )
        parser.set_defaults(names=[])
    parser.add_argument(
        "--both-sides", action="store_true", help="each connection as both nodes report it, not only once"
    )
    add_filters(parser)
    add_common(parser, formats=("compact", "table", "dict", "json"))


def moment(text: str) -> datetime:
    """Read a duration before now, or a time."""
    try:
        return datetime.now(UTC) - timedelta(seconds=duration(text))
    except argparse.ArgumentTypeError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration (5m) and no time (2026-01-31T12:00:00Z)"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def run(options: argparse.Namespace) -> int:
    """Print flows; 4 when there are none."""
    filters: list[Filter] = [
        *(options.filters or []),
        *(Filter("--pod", name, False) for name in options.names),
    ]
    if options.negate:
        raise CliError(Code.USAGE, "--not stands before no filter")
    if options.follow and options.output == "table":
        raise CliError(
            Code.USAGE, "a table needs all its rows before it is drawn", remedy="use -o compact with -f"
        )
    screen = Screen.of(sys.stdout, options.color)
    if options.input_file is not None:
        found: Iterable[Flow] = read_flows(options.input_file)
        return _print(_chosen(found, filters, options), options, screen)
    target = open_target(options)
    if options.follow:
        _follow(target, filters, options, screen)
        return EXIT_OK
    return _print(_chosen(logged(target), filters, options), options, screen)


def logged(target: Target) -> list[Flow]:
    """Return the flows of every node's log, in order of time."""
    found = []
    for node in target.nodes():
        lines = target.log(Part("ztunnel", node), lines=SEARCHED)
        found += [flow for flow in (parse_line(line, node) for line in lines) if flow]
    return sorted(found, key=lambda flow: flow.time)


def read_flows(name: str) -> Iterator[Flow]:
    """Read flows that `-o json` wrote, or a log.

    Raises:
        CliError: the file cannot be read, or a line is no flow.
    """
    try:
        text = sys.stdin.read() if name == STDIN else Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(Code.BAD_INPUT, f"{name} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        flow = _from_json(line, name, number) if line.startswith("{") else parse_line(line)
        if flow is not None:
            yield flow


def _from_json(line: str, name: str, number: int) -> Flow | None:
    try:
        value: dict[str, Any] = json.loads(line)
        if "verdict" not in value:
            return parse_line(line)
        known = {
            key: str(value.pop(key, ""))
            for key in ("time", "node", "verdict", "direction", "reason", "error")
        }
    except (ValueError, AttributeError) as error:
        raise CliError(Code.BAD_INPUT, f"{name}:{number}: is no flow: {error}") from error
    return Flow(**known, fields={key: str(one) for key, one in value.items()})


def time_of(flow: Flow) -> datetime:
    """Return when a connection ended."""
    return datetime.fromisoformat(flow.time)


def reported_twice(flow: Flow) -> bool:
    """Whether the other side of a connection reports it too, and says as much or more.

    Over a tunnel both nodes report. Of what went well the caller's report is kept, as it names the
    service; of a denial the destination's, as it names the policy.
    """
    if flow.direction == "inbound":
        return bool(flow.get("src.identity")) and flow.verdict != "denied"
    return flow.reason == "tunnel_unauthorized"


def _chosen(flows: Iterable[Flow], filters: Sequence[Filter], options: argparse.Namespace) -> list[Flow]:
    found = [
        flow
        for flow in flows
        if (options.both_sides or not reported_twice(flow))
        and matches(flow, filters)
        and (options.since is None or time_of(flow) >= options.since)
        and (options.until is None or time_of(flow) <= options.until)
    ]
    if options.first is not None:
        return found[: options.first]
    last = options.last if options.last is not None else None if options.since else DEFAULT_LAST
    return found if last is None else found[len(found) - min(last, len(found)) :]


def _print(flows: Sequence[Flow], options: argparse.Namespace, screen: Screen) -> int:
    if not flows:
        say("no flow matches")
        return EXIT_NO_DATA
    if options.output == "table":
        titles = ("TIME", "SOURCE", "DESTINATION", "ADDRESS", "VERDICT", "REASON", "BYTES", "DURATION")
        rows = [
            (
                f.time[11:23],
                f.source,
                f.destination,
                f.target,
                f.verdict,
                f.reason,
                f"{f.get('bytes_sent') or 0}/{f.get('bytes_recv') or 0}",
                f.get("duration"),
            )
            for f in flows
        ]
        print(table(() if options.no_headers else titles, rows, screen))
        return EXIT_OK
    for flow in flows:
        print(write(flow, options.output, screen))
    return EXIT_OK


def write(flow: Flow, output: str, screen: Screen) -> str:
    """Write one flow as `compact`, `dict` or `json` (one line)."""
    if output == "json":
        return json.dumps(flow.data())
    if output == "dict":
        return dump({k: v for k, v in flow.data().items() if v}, "yaml") + "\n---"
    arrow = screen.glyph("arrow")
    goal = flow.destination if flow.destination == flow.target else f"{flow.destination} ({flow.target})"
    name, _, rest = flow.get("dst.service").partition(".svc.")
    through = f" via {name if rest else flow.get('dst.service')}" if name else ""
    secured = "mTLS" if flow.get("src.identity") and flow.get("dst.identity") else "plain"
    head = f"{flow.time[11:23]} {screen.paint(flow.verdict.upper(), _COLOURS[flow.verdict])}"
    if flow.verdict == "forwarded":
        amount = f"{flow.get('bytes_sent')} B out, {flow.get('bytes_recv')} B in, {flow.get('duration')}"
        return f"{head} {flow.source} {arrow} {goal}{through} {secured}, {amount}"
    return f"{head} {flow.source} {arrow} {goal}{through} {flow.reason}: {flow.why}"


def _follow(target: Target, filters: Sequence[Filter], options: argparse.Namespace, screen: Screen) -> None:
    parts = [Part("ztunnel", node) for node in target.nodes()]
    for part, line in target.follow(parts):
        flow = parse_line(line, part.node)
        if flow and (options.both_sides or not reported_twice(flow)) and matches(flow, filters):
            print(write(flow, options.output, screen), flush=True)
