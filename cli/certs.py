# SPDX-License-Identifier: Apache-2.0
"""`ambit certs`: every identity's certificate, on which nodes, until when; and the root above them."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cli.checks import root_ends
from cli.codes import EXIT_CHECK, EXIT_NO_DATA, EXIT_OK, CliError
from cli.facts import Facts
from cli.options import add_common, add_namespace, add_watch
from cli.output import Cell, Screen, document, dump, say, span, table
from cli.target import Part, open_target


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_namespace(parser)
    add_common(parser)
    add_watch(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One certificate on one node."""

    identity: str
    node: str
    serial: str
    begins_s: float
    ends_s: float
    """0: the node has none."""

    def state(self, now_s: float) -> str:
        """Say how it stands: valid, ended, missing."""
        if not self.ends_s:
            return "missing"
        return "valid" if self.ends_s > now_s else "ended"


def run(options: argparse.Namespace) -> int:
    """Print; 2 when one is missing or over, 4 when there are none."""
    facts = Facts(open_target(options))
    with ThreadPoolExecutor(max_workers=16) as pool:
        rows = [row for found in pool.map(lambda n: _held(facts, n), facts.target.nodes()) for row in found]
    if options.namespace:
        rows = [row for row in rows if f"/ns/{options.namespace}/" in row.identity]
    roots = _roots(facts)
    if not rows:
        say("no identity runs on any node")
        return EXIT_NO_DATA
    now = time.time()
    rows.sort(key=lambda row: (row.identity, row.node))
    if options.output in ("json", "yaml"):
        print(dump(_document(rows, roots, now), options.output))
    else:
        _show(options, rows, roots, now)
    return EXIT_OK if all(row.state(now) == "valid" for row in rows) else EXIT_CHECK


def _held(facts: Facts, node: str) -> list[Held]:
    try:
        rows = facts.ask(Part("ztunnel", node), "/certs")["certificates"]
    except CliError as error:
        say(f"left out: {error.what}")
        return []
    return [
        Held(
            identity=row["identity"],
            node=node,
            serial=str(row.get("serialNumber", "")),
            begins_s=float(row.get("validFrom", 0)),
            ends_s=float(row.get("expirationTime", 0)),
        )
        for row in rows
    ]


def _roots(facts: Facts) -> list[float]:
    for item in facts.of("ConfigMap"):
        pem = (item.data.get("data") or {}).get("root-cert.pem")
        if item.name == "istio-ca-root-cert" and pem:
            return root_ends(str(pem))
    return []


def _show(options: argparse.Namespace, rows: list[Held], roots: list[float], now: float) -> None:
    screen = Screen.of(sys.stdout, options.color)
    wide = options.output == "wide"
    titles = ["IDENTITY", "NODE", "STATE", "ENDS-IN", "RENEWS-IN", *(("SERIAL",) if wide else ())]
    cells = []
    for row in rows:
        state = row.state(now)
        half = row.begins_s + (row.ends_s - row.begins_s) / 2
        cells.append(
            [
                row.identity,
                row.node,
                Cell(state, "green" if state == "valid" else "red"),
                span(row.ends_s - now) if row.ends_s else "-",
                span(half - now) if state == "valid" else "-",
                *((row.serial,) if wide else ()),
            ]
        )
    print(table(() if options.no_headers else titles, cells, screen))
    for end in roots:
        print(f"\nroot certificate ends in {span(end - now)}")


def _document(rows: list[Held], roots: list[float], now: float) -> dict[str, Any]:
    return document(
        "CertificateList",
        roots=[{"notAfter": end} for end in roots],
        items=[
            {
                "identity": row.identity,
                "node": row.node,
                "state": row.state(now),
                "serial": row.serial,
                "notBefore": row.begins_s,
                "notAfter": row.ends_s,
            }
            for row in rows
        ],
    )
