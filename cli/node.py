# SPDX-License-Identifier: Apache-2.0
"""`ambit node config KIND [NODE]`: what a node's ztunnel has been told, holds and does.

The model is `istioctl ztunnel-config`; every answer is the admin port's, at this moment.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cli.codes import EXIT_NO_DATA, EXIT_OK, CliError, Code
from cli.facts import Facts
from cli.options import add_common, add_namespace, add_watch
from cli.output import Cell, Row, dump, emit, say, size, span
from cli.target import Part, open_target

KINDS = {
    "workload": "workload",
    "workloads": "workload",
    "w": "workload",
    "service": "service",
    "services": "service",
    "svc": "service",
    "s": "service",
    "policy": "policy",
    "policies": "policy",
    "p": "policy",
    "cert": "cert",
    "certs": "cert",
    "certificate": "cert",
    "certificates": "cert",
    "c": "cert",
    "conn": "conn",
    "connections": "conn",
    "log": "log",
    "bpf": "bpf",
    "all": "all",
}


SHARED = frozenset({"workload", "service", "policy"})
"""What every ztunnel is told; rows that are alike are shown once."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    verbs = parser.add_subparsers(
        dest="node_verb", metavar="config", required=True, parser_class=type(parser)
    )
    text = "what a node's ztunnel has been told, holds and does"
    config = verbs.add_parser("config", help=text, description=f"{text[0].upper()}{text[1:]}.")
    config.add_argument(
        "kind",
        metavar="workload|service|policy|cert|conn|log|bpf|all",
        choices=sorted(KINDS),
        help="what to show",
    )
    config.add_argument("names", metavar="NODE", nargs="*", help="nodes (default: all)")
    config.add_argument("--address", metavar="IP", help="only what has this address")
    config.add_argument("--level", metavar="LEVEL", help="log: set it (debug, info, access=debug, reset)")
    add_namespace(config)
    add_common(config)
    add_watch(config)


def run(options: argparse.Namespace) -> int:
    """Print; 4 when there is nothing."""
    facts = Facts(open_target(options))
    nodes = options.names or list(facts.target.nodes())
    for name in nodes:
        if name not in facts.target.nodes():
            known = ", ".join(facts.target.nodes())
            raise CliError(Code.NOT_FOUND, f"there is no node {name}", remedy=f"nodes are {known}")
    kind = KINDS[options.kind]
    if kind == "all":
        print(
            dump({node: facts.dump(node) for node in nodes}, "yaml" if options.output == "yaml" else "json")
        )
        return EXIT_OK
    if kind == "log":
        return _log(facts, nodes, options.level)
    titles_of, rows_of = _TABLES[kind]
    found = [(node, row) for node in nodes for row in _items(facts, node, kind) if _meant(row, options)]
    if not found:
        say(f"no {kind} on {', '.join(nodes)}")
        return EXIT_NO_DATA
    wide = options.output == "wide"
    several = len(nodes) > 1
    written = [(node, rows_of(facts, node, row, wide)) for node, row in found]
    titles, rows = titles_of(wide), [row for _, row in written]
    if several and kind in SHARED:
        titles, rows = ["ZTUNNEL", *titles], merge_nodes(written, nodes)
    elif several:
        titles, rows = ["NODE", *titles], [[node, *row] for node, row in written]
    emit(options, f"{kind.capitalize()}List", [{"node": node, **row} for node, row in found], titles, rows)
    return EXIT_OK


def merge_nodes(written: Sequence[tuple[str, Row]], nodes: Sequence[str]) -> list[Row]:
    """Make rows that several nodes have alike one, with the nodes before it; `all`: every node."""
    found: dict[tuple[str | Cell, ...], list[str]] = {}
    for node, row in written:
        found.setdefault(tuple(row), []).append(node)
    return [["all" if len(own) == len(nodes) else ",".join(own), *row] for row, own in found.items()]


def _items(facts: Facts, node: str, kind: str) -> list[Mapping[str, Any]]:
    part = Part("ztunnel", node)
    if kind == "cert":
        return list(facts.ask(part, "/certs")["certificates"])
    if kind == "conn":
        return list(facts.ask(part, "/connections")["connections"])
    if kind == "bpf":
        maps = facts.ask(Part("agent", node), "/maps")
        counters = [{"name": n, "value": v, "capacity": None} for n, v in maps["counters"].items()]
        fills = [
            {"name": f"map {n}", "value": m["entries"], "capacity": m["capacity"]}
            for n, m in maps["maps"].items()
        ]
        return [*counters, *fills]
    key = {"workload": "workloads", "service": "services", "policy": "policies"}[kind]
    rows: list[Mapping[str, Any]] = facts.dump(node)[key]
    return sorted(rows, key=lambda row: (row["namespace"], row["name"]))


def _meant(row: Mapping[str, Any], options: argparse.Namespace) -> bool:
    if options.namespace:
        identity = str(row.get("identity", ""))
        namespaces = {row.get("namespace"), row.get("src.namespace"), row.get("dst.namespace")}
        if options.namespace not in namespaces and f"/ns/{options.namespace}/" not in identity:
            return False
    return not options.address or options.address in str(row)


def waypoint_name(gateway: Mapping[str, Any] | None) -> str:
    """Name the waypoint that a workload or service refers to; `-`: none."""
    if not gateway:
        return "-"
    destination = gateway["destination"]
    if "hostname" in destination:
        return str(destination["hostname"]).partition(".")[0]
    return str(destination["address"])


def _workload_titles(wide: bool) -> list[str]:
    titles = ["NAMESPACE", "NAME", "ADDRESSES", "NODE", "WAYPOINT", "PROTOCOL", "READY"]
    return [*titles, "IDENTITY", "POLICIES"] if wide else titles


def _workload(_facts: Facts, _node: str, row: Mapping[str, Any], wide: bool) -> Row:
    cells: list[str | Cell] = [
        row["namespace"],
        row["name"],
        ",".join(row["addresses"] if wide else row["addresses"][:1]) or row["hostname"] or "-",
        row["node"] or "-",
        waypoint_name(row["waypoint"]),
        Cell("HBONE", "green") if row["tunnelProtocol"] == "hbone" else "TCP",
        "yes" if row["healthy"] else Cell("no", "yellow"),
    ]
    if wide:
        identity = f"spiffe://{row['trustDomain']}/ns/{row['namespace']}/sa/{row['serviceAccount']}"
        cells += [identity, ",".join(row["authorizationPolicies"]) or "-"]
    return cells


def _service_titles(wide: bool) -> list[str]:
    titles = ["NAMESPACE", "NAME", "VIPS", "WAYPOINT", "ENDPOINTS", "PORTS"]
    return [*titles, "HOSTNAME", "BALANCING"] if wide else titles


def _service(facts: Facts, node: str, row: Mapping[str, Any], wide: bool) -> Row:
    key = f"{row['namespace']}/{row['hostname']}"
    members = [w for w in facts.dump(node)["workloads"] if key in w["services"]]
    ready = sum(w["healthy"] for w in members)
    vips = [a["address"] for a in row["addresses"]]
    cells: list[str | Cell] = [
        row["namespace"],
        row["name"],
        ",".join(vips if wide else vips[:1]) or "headless",
        waypoint_name(row["waypoint"]),
        Cell(f"{ready}/{len(members)}", "" if ready == len(members) and members else "yellow"),
        ",".join(f"{p['servicePort']}" for p in row["ports"]) or "-",
    ]
    if wide:
        balancing = row["loadBalancing"]
        cells += [row["hostname"], "/".join([balancing["mode"], *balancing["preference"]])]
    return cells


def _policy_titles(wide: bool) -> list[str]:
    return ["NAMESPACE", "NAME", "ACTION", "SCOPE", "RULES", *(("APPLIES-TO",) if wide else ())]


def _policy(facts: Facts, node: str, row: Mapping[str, Any], wide: bool) -> Row:
    action = row["action"].upper() + (" (dry run)" if row["dryRun"] else "")
    cells: list[str | Cell] = [
        row["namespace"],
        row["name"],
        Cell(action, "red" if row["action"] == "deny" else "green"),
        row["scope"].replace("_", " "),
        str(len(row["rules"])),
    ]
    if wide:
        key = f"{row['namespace']}/{row['name']}"
        pods = [w["name"] for w in facts.dump(node)["workloads"] if key in w["authorizationPolicies"]]
        cells.append(",".join(pods) or "-")
    return cells


def _cert_titles(wide: bool) -> list[str]:
    return ["IDENTITY", "STATE", "ENDS-IN", "AGE", *(("SERIAL",) if wide else ())]


def _cert(_facts: Facts, _node: str, row: Mapping[str, Any], wide: bool) -> Row:
    now = time.time()
    if row["state"] != "available":
        return [row["identity"], Cell(row["state"], "red"), "-", "-", *(("-",) if wide else ())]
    left = row["expirationTime"] - now
    return [
        row["identity"],
        Cell("valid", "green") if left > 0 else Cell("ended", "red"),
        span(left),
        span(now - row["validFrom"]),
        *((str(row["serialNumber"]),) if wide else ()),
    ]


def _conn_titles(wide: bool) -> list[str]:
    titles = ["SOURCE", "DESTINATION", "DIRECTION", "ADDRESS", "STATE", "AGE", "TO-SERVER", "TO-CLIENT"]
    return [*titles, "CLIENT-ID"] if wide else titles


def _conn(_facts: Facts, _node: str, row: Mapping[str, Any], wide: bool) -> Row:
    def peer(side: str) -> str:
        if row.get(f"{side}.workload"):
            return f"{row[f'{side}.namespace']}/{row[f'{side}.workload']}"
        return str(row.get(f"{side}.addr", "-"))

    cells: list[str | Cell] = [
        peer("src"),
        peer("dst"),
        row["direction"],
        str(row.get("dst.hbone_addr", row.get("dst.addr", "-"))),
        row["state"],
        span(row["age_s"]),
        size(row["bytes_to_server"]),
        size(row["bytes_to_client"]),
    ]
    return [*cells, str(row.get("src.identity", "-"))] if wide else cells


def _bpf(_facts: Facts, _node: str, row: Mapping[str, Any], _wide: bool) -> Row:
    full = f"{row['value']}" + (f" of {row['capacity']}" if row["capacity"] else "")
    return [row["name"], full]


_Titles = Callable[[bool], list[str]]
_Write = Callable[[Facts, str, Mapping[str, Any], bool], Row]
_TABLES: Mapping[str, tuple[_Titles, _Write]] = {
    "workload": (_workload_titles, _workload),
    "service": (_service_titles, _service),
    "policy": (_policy_titles, _policy),
    "cert": (_cert_titles, _cert),
    "conn": (_conn_titles, _conn),
    "bpf": (lambda _wide: ["NAME", "VALUE"], _bpf),
}


def _log(facts: Facts, nodes: list[str], level: str | None) -> int:
    """Show or set the log level of ztunnels."""
    for node in nodes:
        part = Part("ztunnel", node)
        if level is None:
            answer = facts.target.request(part, "/logging")
        else:
            query = "reset" if level == "reset" else f"level={level}"
            answer = facts.target.request(part, f"/logging?{query}", method="POST")
        if answer.status != 200:
            raise CliError(Code.USAGE, f"{node}: {answer.text}")
        print(f"{node}: {answer.text}")
    return EXIT_OK
