# SPDX-License-Identifier: Apache-2.0
"""`ambit routes`: the rules that waypoints have in force, in the order in which they are tried."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from cli.codes import EXIT_NO_DATA, EXIT_OK, CliError
from cli.facts import Facts
from cli.options import add_common, add_namespace
from cli.output import Cell, Row, emit, say
from cli.route_text import action_text, match_text, service_name
from cli.target import Part, open_target


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", metavar="SERVICE", nargs="*", help="only of these ([NAMESPACE/]NAME)")
    add_namespace(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """Print them; 4 when there are none."""
    facts = Facts(open_target(options))
    tables: dict[str, Mapping[str, Any]] = {}
    for part in facts.target.metric_parts():
        if part.name != "waypoint-metrics":
            continue
        try:
            found = facts.ask(Part("waypoint", part.node), "/routes")
        except CliError as error:
            say(f"left out: {error.what}")
            continue
        # Instances of a waypoint have the same tables.
        tables |= {f"{service_name(t['service'])} {t['port']} {t['clientNamespace']}": t for t in found}
    wanted = [table for _, table in sorted(tables.items()) if _meant(table, options)]
    rules = [(table, rule) for table in wanted for rule in table["rules"]]
    if not rules:
        say("no waypoint has a route" + (" for that service" if options.names or options.namespace else ""))
        return EXIT_NO_DATA
    titles = ["SERVICE", "PORT", "REQUESTS", "BECOMES", "ROUTE"]
    items = [{"service": service_name(t["service"]), "port": t["port"], **rule} for t, rule in rules]
    emit(options, "RouteList", items, titles, [_row(table, rule) for table, rule in rules])
    return EXIT_OK


def _meant(table: Mapping[str, Any], options: argparse.Namespace) -> bool:
    service = table["service"]
    name = service_name(service)
    if options.namespace and service["namespace"] != options.namespace:
        return False
    return not options.names or any(word in (name, name.rpartition("/")[2]) for word in options.names)


def _row(table: Mapping[str, Any], rule: Mapping[str, Any]) -> Row:
    clients = f" (clients of {table['clientNamespace']})" if table["clientNamespace"] else ""
    action = action_text(rule)
    return [
        service_name(table["service"]) + clients,
        str(table["port"] or "all"),
        match_text(rule["matches"]),
        Cell(action, "yellow") if "answered with" in action else action,
        rule["source"],
    ]
