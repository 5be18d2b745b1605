# SPDX-License-Identifier: Apache-2.0
"""`ambit why SRC DST[:PORT]`: would this connection work, by which way, and if not, what mends it."""

from __future__ import annotations

import argparse
import sys

from cli.codes import EXIT_CHECK, EXIT_OK, CliError, Code
from cli.facts import Facts, Pod
from cli.flow_log import Flow, parse_line
from cli.options import add_common
from cli.output import Screen, dump
from cli.target import Part, Target, open_target
from cli.why_path import Asked, Walk, Walker
from cli.why_report import Report
from cli.why_target import find_destination
from cli.why_text import Writer

LINES = 3000
"""Of each node's log that are searched for the pair."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="SRC", help="pod or Deployment: NAME or NAMESPACE/NAME")
    parser.add_argument(
        "destination",
        metavar="DST[:PORT]",
        help="service, pod, Deployment, DNS name or address, as the source would name it",
    )
    parser.add_argument("-n", "--namespace", metavar="NS", help="namespace of SRC")
    parser.add_argument("--method", default="GET", help="of the request, for waypoints; - is no HTTP (GET)")
    parser.add_argument("--path", default="/", help="its path (/)")
    parser.add_argument("--host", default="", help="its Host (the service's name)")
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="a header field; repeatable"
    )
    parser.add_argument("--flows", type=int, default=3, metavar="N", help="last log lines of the pair (3)")
    add_common(parser, formats=("table", "json", "yaml"))


def run(options: argparse.Namespace) -> int:
    """Explain; 0: it works, 2: it does not, or not always."""
    target = open_target(options)
    facts = Facts(target)
    source = facts.pod(options.source.removeprefix("pod/").removeprefix("deploy/"), options.namespace)
    destination = find_destination(facts, options.destination, source.namespace)
    if any(":" not in header for header in options.header):
        raise CliError(Code.USAGE, "a header is written NAME:VALUE")
    asked = Asked(method=options.method, path=options.path, host=options.host, headers=tuple(options.header))
    report = Report.of(Walker(facts, source, asked).walk(destination), target)
    flows = last_flows(target, report.walk, options.flows)
    if options.output in ("json", "yaml"):
        print(dump(report.document(flows), options.output))
    else:
        Writer(report, Screen.of(sys.stdout, options.color)).write(flows)
    return EXIT_OK if report.works else EXIT_CHECK


def last_flows(target: Target, walk: Walk, count: int) -> list[Flow]:
    """Find the last log lines of the pair on the nodes that could have written them."""
    if count <= 0:
        return []
    source = walk.source
    ends = {b.workload for a in walk.attempts for b in a.branches if b.workload}
    addresses = {str(a) for a in walk.destination.addresses} | {
        b.address for a in walk.attempts for b in a.branches
    }
    nodes = {source.node, *(b.node for a in walk.attempts for b in a.branches)} & set(target.nodes())
    found = []
    for node in sorted(nodes):
        for line in target.log(Part("ztunnel", node), lines=LINES):
            flow = parse_line(line, node)
            if flow is None or not _is_from(flow, source):
                continue
            if flow.destination in ends or flow.target.rpartition(":")[0].strip("[]") in addresses:
                found.append(flow)
    # Of one connection both nodes write; the destination knows more of a denial, the source of the rest.
    found.sort(key=lambda flow: flow.time)
    side = "inbound" if any(f.verdict == "denied" and f.direction == "inbound" for f in found[-4:]) else ""
    return [f for f in found if not side or f.direction == side][-count:]


def _is_from(flow: Flow, source: Pod) -> bool:
    if flow.get("src.workload"):
        return flow.source == source.key
    return flow.get("src.addr").rpartition(":")[0].strip("[]") in source.addresses
