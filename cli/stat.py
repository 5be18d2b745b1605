# SPDX-License-Identifier: Apache-2.0
"""`ambit stat`: golden metrics of what runs: success, rate, latency, bytes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.codes import EXIT_NO_DATA, EXIT_OK, CliError, Code
from cli.facts import Facts, Pod
from cli.options import add_common, add_namespace, add_watch
from cli.output import Cell, emit, say, size
from cli.scrape import add_window, read_edges
from cli.target import open_target
from cli.traffic import Edge, Total, totals

KINDS = {
    "deploy": "deploy",
    "deployment": "deploy",
    "deployments": "deploy",
    "workload": "deploy",
    "pod": "pod",
    "pods": "pod",
    "po": "pod",
    "ns": "ns",
    "namespace": "ns",
    "namespaces": "ns",
    "svc": "svc",
    "service": "svc",
    "services": "svc",
}
BAD, POOR = 0.90, 0.95


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "names",
        metavar="deploy|pod|ns|svc [NAME]",
        nargs="*",
        help="what to show, and only one of it (default: deploy)",
    )
    add_namespace(parser)
    add_common(parser)
    add_window(parser)
    add_watch(parser)
    parser.add_argument("--all", action="store_true", help="those without traffic too")


def run(options: argparse.Namespace) -> int:
    """Print what came in; 4 when nothing did."""
    from cli.stat_words import kind_and_name

    kind, name = kind_and_name(options.names, KINDS)
    target = open_target(options)
    facts = Facts(target)
    found, window_s = read_edges(target, options)
    names = Names(facts.pods())
    group = grouping(kind, names)
    traffic = totals(found, group)
    rows = _rows(kind, facts, traffic, everything=options.all or bool(name))
    namespace = None if kind == "ns" else options.namespace
    rows = [
        row
        for row in rows
        if (not namespace or row.namespace == namespace) and (not name or name in (row.name, row.key))
    ]
    if not rows and name:
        raise CliError(Code.NOT_FOUND, f"there is no {kind} {name}")
    if not rows:
        say("no traffic" + (f" in {window_s:.0f} s" if window_s else "") + "; --all shows what had none")
        return EXIT_NO_DATA
    columns = columns_of(
        window_s, http=any(r.total.http.requests for r in rows), wide=options.output == "wide"
    )
    if kind == "ns":
        del columns[0]
    emit(
        options,
        "StatList",
        [row.data(window_s) for row in rows],
        [title for title, _ in columns],
        [[write(row) for _, write in columns] for row in rows],
        right=range(2, len(columns)),
    )
    return EXIT_OK


class Names:
    """Knows which Deployment a workload name of a metric means."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = {(p.namespace, p.name): p for p in pods}

    def owner(self, namespace: str, workload: str) -> str:
        """Return the owner's name; the name itself where it is no pod's."""
        pod = self.pods.get((namespace, workload))
        return pod.owner if pod else workload


def grouping(kind: str, names: Names) -> Callable[[Edge], str]:
    """Return what an edge counts for, as `namespace/name`."""

    def deploy(edge: Edge) -> str:
        peer = edge.destination
        return f"{peer.namespace}/{names.owner(peer.namespace, peer.workload)}" if peer.workload else ""

    def pod(edge: Edge) -> str:
        return edge.destination.key if edge.destination.workload else ""

    def namespace(edge: Edge) -> str:
        return f"/{edge.destination.namespace}" if edge.destination.namespace else ""

    def service(edge: Edge) -> str:
        return edge.service

    return {"deploy": deploy, "pod": pod, "ns": namespace, "svc": service}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatRow:
    """One line."""

    namespace: str
    name: str
    meshed: int
    pods: int
    total: Total

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def data(self, window_s: float) -> Mapping[str, Any]:
        """Write the row for JSON: numbers, None where there are none."""
        tcp, http = self.total.tcp, self.total.http
        return {
            "namespace": self.namespace,
            "name": self.name,
            "meshed": self.meshed,
            "pods": self.pods,
            "windowSeconds": round(window_s, 3),
            "success": self.total.success,
            "requests": http.requests,
            "requestsFailed": http.failed,
            "latencyMsP50": http.latency_ms(0.5),
            "latencyMsP95": http.latency_ms(0.95),
            "latencyMsP99": http.latency_ms(0.99),
            "tcpOpened": tcp.opened,
            "tcpClosed": tcp.closed,
            "tcpFailed": tcp.failed,
            "tcpDenied": tcp.denied,
            "bytesIn": tcp.received,
            "bytesOut": tcp.sent,
        }


Column = tuple[str, Callable[[StatRow], str | Cell]]


def columns_of(window_s: float, *, http: bool, wide: bool) -> list[Column]:
    """Return titles and how to write them; rates are per second, without a window totals.

    Requests have columns only where a waypoint saw some, unless all is asked for.
    """
    per, unit = window_s or 1.0, "/S" if window_s else ""
    columns: list[Column] = [
        ("NAMESPACE", lambda r: r.namespace or "-"),
        ("NAME", lambda r: r.name),
        ("MESHED", lambda r: f"{r.meshed}/{r.pods}" if r.pods else "-"),
        ("SUCCESS", lambda r: _success(r.total.success)),
    ]
    if http or wide:
        columns += [
            (f"REQ{unit}", lambda r: _rate(r.total.http.requests, per)),
            ("P50", lambda r: _ms(r.total.http.latency_ms(0.5))),
            ("P95", lambda r: _ms(r.total.http.latency_ms(0.95))),
            ("P99", lambda r: _ms(r.total.http.latency_ms(0.99))),
        ]
    columns += [
        (f"CONN{unit}", lambda r: _rate(r.total.tcp.opened, per)),
        ("DENIED", lambda r: _count(r.total.tcp.denied)),
        ("FAILED", lambda r: _count(r.total.tcp.failed - r.total.tcp.denied)),
    ]
    if wide or not http:
        columns += [
            (f"IN{unit}", lambda r: _bytes(r.total.tcp.received / per)),
            (f"OUT{unit}", lambda r: _bytes(r.total.tcp.sent / per)),
        ]
    return columns


def _count(count: float) -> str | Cell:
    return Cell(f"{count:.0f}", "red") if count > 0 else "-"


def _bytes(count: float) -> str:
    return size(count) if count else "-"


def _success(share: float | None) -> Cell:
    if share is None:
        return Cell("-")
    colour = "red" if share < BAD else "yellow" if share < POOR else "green"
    return Cell(f"{share * 100:.2f}%", colour)


def _rate(count: float, per: float) -> str:
    if not count:
        return "-"
    return f"{count / per:.1f}" if per != 1.0 else f"{count:.0f}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}ms" if value >= 10 else f"{value:.1f}ms"


def _rows(kind: str, facts: Facts, traffic: Mapping[str, Total], *, everything: bool) -> list[StatRow]:
    pods = [p for p in facts.pods() if not p.ended]
    members: dict[str, list[Pod]] = {}
    for pod in pods:
        for key in _keys(kind, pod, facts):
            members.setdefault(key, []).append(pod)
    busy = {key for key, total in traffic.items() if total.any}
    keys = busy | (set(traffic) | set(members) if everything else set())
    rows = []
    for key in sorted(keys):
        namespace, _, name = key.partition("/")
        own = members.get(key, [])
        rows.append(
            StatRow(
                namespace=namespace,
                name=name,
                meshed=sum(p.enrolled for p in own),
                pods=len(own),
                total=traffic.get(key, Total()),
            )
        )
    return rows


def _keys(kind: str, pod: Pod, facts: Facts) -> list[str]:
    if kind == "svc":
        return [
            f"{s.namespace}/{s.name}"
            for s in facts.of("Service")
            if s.namespace == pod.namespace
            and s.spec.get("selector")
            and all(pod.raw.labels.get(k) == v for k, v in s.spec["selector"].items())
        ]
    return {
        "deploy": [f"{pod.namespace}/{pod.owner}"],
        "pod": [pod.key],
        "ns": [f"/{pod.namespace}"],
    }[kind]
