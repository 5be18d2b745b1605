# SPDX-License-Identifier: Apache-2.0
"""`ambit edges`: who talks to whom, with which identities, and whether over mutual TLS."""

from __future__ import annotations

import argparse
from typing import Any

from cli.codes import EXIT_NO_DATA, EXIT_OK
from cli.facts import Facts
from cli.options import add_common, add_namespace, add_watch
from cli.output import Cell, emit, say
from cli.scrape import add_window, read_edges
from cli.stat import Names
from cli.target import open_target
from cli.traffic import Counts, Edge, Http

CAUSES = {
    "DENY": "denied by policy",
    "CONNECT": "not reachable",
    "TLS_FAILURE": "TLS failed",
    "IDENTITY_ERROR": "wrong identity",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="only edges from or to this workload")
    add_namespace(parser)
    add_common(parser)
    add_watch(parser)
    add_window(parser)


def run(options: argparse.Namespace) -> int:
    """Print the edges; without a window everything since the proxies started. 4 when there are none."""
    target = open_target(options)
    if options.window is None and not options.prometheus:
        options.since_start = True
    found, _ = read_edges(target, options)
    names = Names(Facts(target).pods())
    wanted = [edge for edge in merged(found, names) if _meant(edge, options)]
    if not wanted:
        say("no traffic has been seen")
        return EXIT_NO_DATA
    wide = options.output == "wide"
    http = any(edge.http.requests for edge in wanted)
    titles = ["SOURCE", "DESTINATION", "SERVICE", "SECURED"]
    titles += ["CLIENT-ID", "SERVER-ID"] if wide else []
    titles += ["CONNECTIONS", *(("REQUESTS",) if http else ()), "FAILED"]
    rows = []
    for edge in wanted:
        row: list[str | Cell] = [
            edge.source.key,
            edge.destination.key,
            edge.service.partition("/")[2] or "-",
            _secured(edge),
            *((edge.client_id or "-", edge.server_id or "-") if wide else ()),
            f"{edge.tcp.opened:.0f}" if edge.tcp.opened or not edge.http.requests else "-",
            *((f"{edge.http.requests:.0f}" if edge.http.requests else "-",) if http else ()),
            _failed(edge),
        ]
        rows.append(row)
    emit(options, "EdgeList", [_data(edge) for edge in wanted], titles, rows)
    return EXIT_OK


def merged(found: list[Edge], names: Names) -> list[Edge]:
    """Make the pods of a Deployment one, and services of one pair one."""
    from cli.traffic import Peer

    def peer(one: Peer) -> Peer:
        return Peer(one.namespace, names.owner(one.namespace, one.workload))

    together: dict[tuple[Peer, Peer, str], Edge] = {}
    for edge in found:
        key = (peer(edge.source), peer(edge.destination), edge.service)
        into = together.setdefault(
            key,
            Edge(source=key[0], destination=key[1], service=key[2], tcp=Counts(), http=Http()),
        )
        into.client_id = into.client_id or edge.client_id
        into.server_id = into.server_id or edge.server_id
        into.mutual_tls |= edge.mutual_tls
        into.plain |= edge.plain
        into.tcp.add(edge.tcp)
        into.http.add(edge.http)
        for flag, count in edge.failures.items():
            into.failures[flag] = into.failures.get(flag, 0.0) + count
    return sorted(together.values(), key=lambda e: (e.source.key, e.destination.key, e.service))


def _meant(edge: Edge, options: argparse.Namespace) -> bool:
    ends = (edge.source, edge.destination)
    if not edge.tcp.opened and not edge.tcp.failed and not edge.http.requests:
        return False
    if options.namespace and options.namespace not in [end.namespace for end in ends]:
        return False
    return all(any(name in (end.workload, end.key) for end in ends) for name in options.names)


def _secured(edge: Edge) -> Cell:
    if edge.mutual_tls and edge.plain:
        return Cell("partly", "yellow")
    if edge.mutual_tls:
        return Cell("mTLS", "green")
    return Cell("plain", "yellow") if edge.plain else Cell("-")


def _failed(edge: Edge) -> Cell:
    if not edge.tcp.failed:
        return Cell(f"{edge.http.failed:.0f} (requests)", "red") if edge.http.failed else Cell("-")
    causes = ", ".join(CAUSES.get(flag, flag.lower()) for flag in edge.failures)
    return Cell(f"{edge.tcp.failed:.0f}" + (f" ({causes})" if causes else ""), "red")


def _data(edge: Edge) -> dict[str, Any]:
    return {
        "source": {
            "namespace": edge.source.namespace,
            "workload": edge.source.workload,
            "identity": edge.client_id,
        },
        "destination": {
            "namespace": edge.destination.namespace,
            "workload": edge.destination.workload,
            "identity": edge.server_id,
        },
        "service": edge.service,
        "mutualTls": edge.mutual_tls,
        "plain": edge.plain,
        "connections": edge.tcp.opened,
        "failed": edge.tcp.failed,
        "failures": edge.failures,
        "bytesIn": edge.tcp.received,
        "bytesOut": edge.tcp.sent,
        "requests": edge.http.requests,
        "requestsFailed": edge.http.failed,
    }
